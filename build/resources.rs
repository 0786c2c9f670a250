//! Registers, shared memory, spills and stack of every kernel, as ptxas counts them. Spills and stack are errors. The rest is
//! compared with the committed table, so that a change of it is seen when it is made, not when it has made a run slow.
//!
//! `DUPLEX_WRITE_RESOURCES=1` rewrites the table. Differences are warnings, or errors where `CI` or `DUPLEX_STRICT` is set.

use crate::{Result, env};
use std::collections::BTreeMap;
use std::path::PathBuf;

const TABLE: &str = "cuda/resources.tsv";
/// Of a long list of differences, so many are shown.
const SHOWN: usize = 12;
const HEADER: &str = "kernel\tarch\tregisters\tshared\tspills\tstack";

/// By kernel and architecture, in the order of the table: registers per thread; then bytes of static shared memory per block,
/// of spills (stores and loads) and of stack per thread.
type Table = BTreeMap<(String, String), [u64; 4]>;

/// Reads the compiler's messages, one file per source, and checks what they tell about `archs`.
pub(crate) fn check(logs: &[PathBuf], archs: &[&str]) -> Result<()> {
    let mut now = Table::new();
    for log in logs {
        let text = std::fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
        read_ptxas(&text, &mut now)?;
    }
    let wrong: Vec<String> = now
        .iter()
        .filter(|(_, v)| v[2] != 0 || v[3] != 0)
        .map(|((kernel, arch), v)| {
            format!("{kernel} on sm_{arch}: {} bytes of spills, {} bytes of stack", v[2], v[3])
        })
        .collect();
    if !wrong.is_empty() {
        return Err(format!("Kernels must live in registers:\n{}", wrong.join("\n")));
    }

    let mut old = read_table(&std::fs::read_to_string(TABLE).unwrap_or_default())?;
    if env("DUPLEX_WRITE_RESOURCES").is_some() {
        old.retain(|(kernel, arch), _| {
            !archs.contains(&arch.as_str())
                && archs.iter().any(|a| now.contains_key(&(kernel.clone(), a.to_string())))
        });
        old.extend(now);
        return crate::write(TABLE.as_ref(), &write_table(&old));
    }
    old.retain(|(_, arch), _| archs.contains(&arch.as_str()));
    let strict = env("CI").is_some() | env("DUPLEX_STRICT").is_some();
    report(&differences(&old, &now), strict)
}

fn report(differences: &[String], strict: bool) -> Result<()> {
    if differences.is_empty() {
        return Ok(());
    }
    let advice = format!(
        "{TABLE} differs; if that is meant: DUPLEX_WRITE_RESOURCES=1 cargo build --release --features cuda"
    );
    let mut lines = differences[..differences.len().min(SHOWN)].to_vec();
    if lines.len() < differences.len() {
        lines.push(format!("and {} more", differences.len() - lines.len()));
    }
    lines.push(advice);
    if strict {
        return Err(lines.join("\n"));
    }
    lines.iter().for_each(|line| println!("cargo:warning={line}"));
    Ok(())
}

fn differences(old: &Table, now: &Table) -> Vec<String> {
    let say = |v: Option<&[u64; 4]>| match v {
        Some([registers, shared, ..]) => format!("{registers} registers, {shared} bytes shared"),
        None => "none".into(),
    };
    let mut keys: Vec<_> = old.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| old.get(key) != now.get(key))
        .map(|key| {
            format!(
                "{} on sm_{}: {} in the table, {} now",
                key.0,
                key.1,
                say(old.get(key)),
                say(now.get(key))
            )
        })
        .collect()
}

/// Adds what `ptxas -v` said. Other lines than its information are the compiler's warnings and passed on.
fn read_ptxas(text: &str, table: &mut Table) -> Result<()> {
    let mut key = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("ptxas info    : Compiling entry function '") {
            let (kernel, rest) = rest.split_once("' for 'sm_").ok_or_else(|| strange(line))?;
            let new = (kernel.to_string(), rest.trim_end_matches('\'').to_string());
            table.insert(new.clone(), [0; 4]);
            key = Some(new);
        } else if line.contains("bytes stack frame") {
            // Also follows functions that were not inlined; they count to the kernel they precede or follow.
            let values = table
                .get_mut(key.as_ref().ok_or_else(|| strange(line))?)
                .ok_or_else(|| strange(line))?;
            values[2] += number(line, "bytes spill stores")? + number(line, "bytes spill loads")?;
            values[3] += number(line, "bytes stack frame")?;
        } else if line.starts_with("ptxas info    : Used ") {
            let values = table
                .get_mut(key.as_ref().ok_or_else(|| strange(line))?)
                .ok_or_else(|| strange(line))?;
            values[0] = number(line, "registers")?;
            values[1] = if line.contains("bytes smem") { number(line, "bytes smem")? } else { 0 };
        } else if !line.starts_with("ptxas info") && !line.trim().is_empty() {
            println!("cargo:warning={line}");
        }
    }
    Ok(())
}

/// The number before `what` in a line.
fn number(line: &str, what: &str) -> Result<u64> {
    let before = line.split_once(what).map_or("", |(before, _)| before);
    let word = before.split_whitespace().next_back().unwrap_or("");
    word.parse().map_err(|_| strange(line))
}

fn strange(line: &str) -> String {
    format!("ptxas says something unknown to build/resources.rs: {line}")
}

fn read_table(text: &str) -> Result<Table> {
    let mut table = Table::new();
    for (i, line) in text.lines().enumerate().skip(1) {
        let wrong = || format!("{TABLE}, line {}: expected {HEADER:?}", i + 1);
        let cells: Vec<&str> = line.split('\t').collect();
        let [kernel, arch, values @ ..] = cells.as_slice() else { return Err(wrong()) };
        let values = values.iter().map(|v| v.parse()).collect::<std::result::Result<Vec<u64>, _>>();
        let values = values.ok().and_then(|v| v.try_into().ok()).ok_or_else(wrong)?;
        table.insert((kernel.to_string(), arch.to_string()), values);
    }
    Ok(table)
}

fn write_table(table: &Table) -> String {
    let rows = table.iter().map(|((kernel, arch), v)| {
        format!("{kernel}\t{arch}\t{}\t{}\t{}\t{}\n", v[0], v[1], v[2], v[3])
    });
    format!("{HEADER}\n{}", rows.collect::<String>())
}
