//! Writes what Duplex computes with a model directory, for `tools/verify_export.py` to compare with
//! `transformers`: random token rows, and the logits (or, for a reward model, the scores) at every
//! position, in f32.
//!
//! `cargo run --release --example logits -- DIR OUT.safetensors`

use duplex::base::{DType, Error, Result, Rng};
use duplex::device::Device;
use duplex::formats::{OutDir, SaveTensor, SourceDType, write_safetensors};
use duplex::model::{Head, LoadOptions, Model, Pass};
use duplex::tape::Workspace;
use duplex::train::Batch;
use std::borrow::Cow;
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [dir, out] => run(dir.as_ref(), out.as_ref()),
        _ => Err(Error::user("usage: logits DIR OUT.safetensors")),
    };
    if let Err(e) = done {
        eprintln!("logits: {e}");
        std::process::exit(i32::from(e.exit_code()));
    }
}

fn run(dir: &Path, out: &Path) -> Result<()> {
    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config).map_err(|e| Error::io("read", &config, &e))?;
    let score = text.contains("ForSequenceClassification");
    let head = if score { Head::Score } else { Head::Lm };
    let model = Model::load(dir, &LoadOptions::frozen(head, DType::F32))?;
    let longest = model.arch.max_positions.min(48);
    let mut rng = Rng::new(7, 0);
    let mut row = |n: usize| -> Vec<i32> {
        (0..n).map(|_| rng.below(model.arch.vocab as u32) as i32).collect()
    };
    let rows = [row(longest), row(longest / 2), row(7)];
    let all: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len())).collect();
    let mut ws = Workspace::new(Device::Cpu, usize::MAX)?;
    let values = ws.run("logits", &Batch::new(&all), |tape, batch: &Batch| {
        let (hidden, select) = batch.hidden(tape, &model, Pass::EVAL)?;
        let values = match head {
            Head::Lm => model.logits(tape, hidden, select)?,
            Head::Score => model.scores(tape, hidden, select)?,
        };
        tape.read_f32(values)
    })?;
    let width = if score { 1 } else { model.arch.vocab };
    write(out, &rows, &values, width, if score { "scores" } else { "logits" })
}

fn write(out: &Path, rows: &[Vec<i32>], values: &[f32], width: usize, what: &str) -> Result<()> {
    let mut tensors = vec![];
    for (i, row) in rows.iter().enumerate() {
        tensors.push(SaveTensor::new(format!("ids_{i}"), SourceDType::I64, &[row.len()]));
        let shape = if width == 1 { vec![row.len()] } else { vec![row.len(), width] };
        tensors.push(SaveTensor::new(format!("{what}_{i}"), SourceDType::F32, &shape));
    }
    let place = OutDir::open(out.parent().unwrap_or(Path::new("")))?;
    let name = out.file_name().and_then(|n| n.to_str()).unwrap_or("logits.safetensors");
    write_safetensors(&place, name, &tensors, Some(("format", "pt")), &mut |tensor| {
        let (kind, i) = tensor.name.rsplit_once('_').unwrap_or_default();
        let i: usize = i.parse().unwrap_or(0);
        if kind == "ids" {
            let ids = rows[i].iter().flat_map(|id| i64::from(*id).to_le_bytes());
            return Ok(Cow::Owned(ids.collect()));
        }
        let first: usize = rows[..i].iter().map(Vec::len).sum();
        let mine = &values[first * width..][..rows[i].len() * width];
        Ok(Cow::Owned(mine.iter().flat_map(|v| v.to_le_bytes()).collect()))
    })
    .map(drop)
}
