//! Checks a card with the built binary alone, and times it: instructions against their manual,
//! every operator against float64, the engine's exactness, then times beside cuBLAS and PyTorch on
//! the same card where they are there. Writes `gpu-check.json` and `gpu-check.md`.
//!
//! ```text
//! gpu-check [--device cuda:0] [--out DIR] [--commit HASH]
//!           [--only instructions|operators|exactness|launches|timings]
//! ```

mod cublas;
mod exactness;
mod launches;
mod timing;

use duplex::base::{Error, Result};
use duplex::device::{Card, Device, cuda::corpus};
use duplex::op::{conformance, registry::OPS};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

struct Options {
    device: Device,
    out: PathBuf,
    only: Option<String>,
    commit: String,
}

/// One part of the check and what came of it.
struct Part {
    name: &'static str,
    outcome: Result<String>,
    seconds: f64,
}

fn main() -> ExitCode {
    match options().and_then(|o| check(&o)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options {
        device: Device::Cuda(0),
        out: PathBuf::from("."),
        only: None,
        commit: "unknown".into(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| Error::user(format!("{flag} needs a value")))?;
        match flag.as_str() {
            "--device" => options.device = value.parse()?,
            "--out" => options.out = value.into(),
            "--only" => options.only = Some(value),
            "--commit" => options.commit = value,
            _ => return Err(Error::user(format!("{flag} is not known"))),
        }
    }
    Ok(options)
}

fn check(options: &Options) -> Result<bool> {
    let device = options.device;
    let card = device.stream()?.card().clone();
    println!("{}", describe(&card));
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let mut parts = vec![];
    let mut part = |name: &'static str, run: &mut dyn FnMut() -> Result<String>| {
        if options.only.as_deref().is_none_or(|only| only == name) {
            let start = Instant::now();
            let outcome = run();
            let seconds = start.elapsed().as_secs_f64();
            match &outcome {
                Ok(text) => println!("ok    {name:<14} {seconds:6.1} s  {text}"),
                Err(e) => println!("FAIL  {name:<14} {seconds:6.1} s  {e}"),
            }
            parts.push(Part { name, outcome, seconds });
        }
    };
    part("instructions", &mut || instructions(device, seed));
    part("operators", &mut || operators(device, seed));
    part("exactness", &mut || exactness::check(device));
    part("launches", &mut || launches::count(device));
    if device != Device::Emulated && options.only.is_none() {
        part("sanitizer", &mut || sanitizer(device));
    }
    let mut times = vec![];
    part("timings", &mut || {
        times = timing::run(device)?;
        Ok(format!("{} rows", times.len()))
    });
    write(options, &card, &parts, &times)?;
    Ok(parts.iter().all(|p| p.outcome.is_ok()))
}

fn describe(card: &Card) -> String {
    let (major, minor) = card.capability;
    format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {:.0} GiB, driver API {}.{}",
        card.name,
        card.multiprocessors,
        card.memory as f64 / f64::from(1 << 30),
        card.driver / 1000,
        card.driver % 1000 / 10
    )
}

fn instructions(device: Device, seed: u64) -> Result<String> {
    let mut run = 0;
    for i in 0..50 {
        run += corpus::check(device, seed + i)?.len();
    }
    Ok(format!("{run} runs of 8 kernels, bit for bit"))
}

fn operators(device: Device, seed: u64) -> Result<String> {
    let (mut cases, mut failures) = (0, vec![]);
    for def in OPS {
        for case in (def.cases)() {
            for dtype in case.dtypes {
                cases += 1;
                if let Err(e) = conformance::check(&case, device, *dtype, seed) {
                    failures.push(format!("{}: {e}", def.name));
                }
            }
        }
    }
    match failures.first() {
        None => Ok(format!("{} operators, {cases} cases against float64 (seed {seed})", OPS.len())),
        Some(first) => {
            failures.iter().skip(1).for_each(|f| println!("      {f}"));
            let line = format!("{} of {cases} cases: {first} (seed {seed})", failures.len());
            Err(Error::internal(line))
        }
    }
}

/// The operators again under compute-sanitizer, where it is installed.
fn sanitizer(device: Device) -> Result<String> {
    let found = Command::new("compute-sanitizer").arg("--version").output();
    if !found.is_ok_and(|o| o.status.success()) {
        return Ok("compute-sanitizer is not installed: skipped".into());
    }
    let this =
        std::env::current_exe().map_err(|e| Error::io("find", Path::new("gpu-check"), &e))?;
    for tool in ["memcheck", "racecheck", "synccheck"] {
        let status = Command::new("compute-sanitizer")
            .args(["--tool", tool, "--error-exitcode", "9"])
            .arg(&this)
            .args(["--device", &device.to_string(), "--only", "operators", "--out"])
            .arg(std::env::temp_dir())
            .status();
        if !status.is_ok_and(|s| s.success()) {
            return Err(Error::internal(format!("compute-sanitizer --tool {tool} found errors")));
        }
    }
    Ok("memcheck, racecheck and synccheck are clean".into())
}

fn write(options: &Options, card: &Card, parts: &[Part], times: &[timing::Row]) -> Result<()> {
    let text = |p: &Part| match &p.outcome {
        Ok(text) => text.clone(),
        Err(e) => e.to_string(),
    };
    let parts_json: Vec<Value> = parts
        .iter()
        .map(|p| {
            json!({"part": p.name, "ok": p.outcome.is_ok(), "seconds": p.seconds, "text": text(p)})
        })
        .collect();
    let date = date();
    let report = json!({
        "card": card.name,
        "compute_capability": format!("{}.{}", card.capability.0, card.capability.1),
        "driver_api": card.driver,
        "date": date,
        "commit": options.commit,
        "parts": parts_json,
        "timings": times.iter().map(timing::Row::json).collect::<Vec<_>>(),
    });
    let mut page = format!(
        "# {}\n\n{}; {date}; commit {}.\n\n| part | result | seconds | |\n|---|---|---|---|\n",
        card.name,
        describe(card),
        options.commit
    );
    for p in parts {
        let result = if p.outcome.is_ok() { "ok" } else { "FAILED" };
        let _ = writeln!(page, "| {} | {result} | {:.1} | {} |", p.name, p.seconds, text(p));
    }
    if !times.is_empty() {
        page += &timing::table(times);
    }
    let save = |name: &str, text: &str| {
        let path = options.out.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", &path, &e))
    };
    save("gpu-check.json", &format!("{report:#}\n"))?;
    save("gpu-check.md", &page)
}

/// Today, in UTC.
fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    output.map_or("unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_string())
}
