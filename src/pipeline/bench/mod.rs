//! `duplex bench`: how fast this machine generates, trains and runs a PPO iteration with a model,
//! as shares of what the machine can do. Times whole phases of the code that a run uses; single
//! operators are timed by the benches in `bench/`.

mod count;
mod machine;
mod measured;
mod shapes;
mod work;

pub(super) use machine::{processor, resident_bytes};

use super::config::BenchConfig;
use super::output::write;
use crate::base::Result;
use crate::model::Head;
use machine::Ceilings;
use measured::{Measured, table};
use serde_json::json;
use shapes::Subject;
use work::Bench;

/// Measures the cases in order, writes the JSON file if one is asked for, and returns the table.
/// `progress` hears what is being measured.
pub fn bench(cfg: &BenchConfig, progress: &mut dyn FnMut(&str)) -> Result<String> {
    let (device, device_name) = cfg.device.open()?;
    let dtype = cfg.dtype.dtype();
    let subject = Subject::open(cfg)?;
    let parameters = count::Cost::of(&subject.config.arch()?, Head::Lm)?.parameters;
    let cases = cfg.cases()?;
    let bench = Bench { cfg, subject: &subject, device };
    // What cannot be done is found before the work.
    cases.iter().try_for_each(|case| bench.fits(*case))?;
    if let Some(path) = &cfg.json {
        write(path, "")?;
    }
    let mut ceilings = Ceilings::default();
    progress("this machine");
    ceilings.measure(device, dtype)?;
    let mut all: Vec<Measured> = vec![];
    for case in cases {
        progress(&case.to_string());
        all.push(bench.measure(case)?);
    }
    // Again, for a busy moment at the beginning.
    ceilings.measure(device, dtype)?;

    if let Some(path) = &cfg.json {
        let report = json!({
            "duplex": env!("CARGO_PKG_VERSION"),
            "processor": processor(),
            "device": device.to_string(),
            "threads": crate::device::cpu::threads(),
            "model": subject.name,
            "parameters": parameters,
            "dtype": dtype.to_string(),
            "optimizer_state": cfg.optimizer_state,
            "prompt_tokens": cfg.prompt_tokens,
            "new_tokens": cfg.new_tokens,
            "repeat": cfg.repeat,
            "gradient_checkpointing": cfg.gradient_checkpointing,
            "machine": ceilings,
            "cases": all.iter().map(|m| m.json(&ceilings)).collect::<Vec<_>>(),
        });
        write(path, &format!("{report:#}\n"))?;
    }
    let state = cfg.optimizer_state.name();
    Ok(format!(
        "{} ({:.1} M parameters), {dtype}, {state} optimizer state, {}, {device_name}; medians of \
         {}\n\
         ceilings measured here: reads {:.1} GB/s, our fastest matrix product {:.1} GFLOP/s\n\n{}",
        subject.name,
        parameters as f64 / 1e6,
        processor(),
        cfg.repeat,
        ceilings.read_bytes_per_s / 1e9,
        ceilings.matmul_flop_per_s / 1e9,
        table(&all, &ceilings)
    ))
}
