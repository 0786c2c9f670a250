//! Registers, shared memory, spills and stack of every kernel, as ptxas counts them. Spills and
//! stack are errors. The rest is compared with the committed table: a change is to be seen when it
//! is made, not when it has made a run slow.
//!
//! `DUPLEX_WRITE_RESOURCES=1` rewrites the table. Differences are warnings, or errors if `CI` or
//! `DUPLEX_STRICT` is set.

use crate::{Result, env};
use std::collections::BTreeMap;

const TABLE: &str = "cuda/resources.tsv";
const REMEDY: &str = "DUPLEX_WRITE_RESOURCES=1 cargo build --release --features cuda";
/// Most differences shown.
const SHOWN: usize = 12;
const HEADER: &str = "kernel\tarch\tregisters\tshared\tspills\tstack";

/// By kernel and architecture, in the order of the table: registers per thread; then bytes of
/// static shared memory per block, of spills (stores and loads) and of stack per thread.
type Table = BTreeMap<(String, String), [u64; 4]>;

/// Checks what the compiler said, a text for each source. `notes` gets its warnings, and those
/// about the table.
pub(crate) fn check(messages: &[String], archs: &[&str], notes: &mut Vec<String>) -> Result<()> {
    let mut now = Table::new();
    for text in messages {
        read_ptxas(text, &mut now, notes)?;
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
    let mut lines = differences(&old, &now);
    if lines.is_empty() {
        return Ok(());
    }
    if lines.len() > SHOWN {
        let more = lines.split_off(SHOWN).len();
        lines.push(format!("and {more} more"));
    }
    lines.push(format!("{TABLE} differs; if that is meant: {REMEDY}"));
    if env("CI").is_some() || env("DUPLEX_STRICT").is_some() {
        return Err(lines.join("\n"));
    }
    notes.extend(lines.iter().map(|line| format!("warning={line}")));
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

/// Adds what `ptxas -v` said to the table. What is not its usual information is a warning, the same
/// for each architecture.
fn read_ptxas(text: &str, table: &mut Table, notes: &mut Vec<String>) -> Result<()> {
    let mut values = &mut [0; 4];
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("ptxas info    : Compiling entry function '") {
            let (kernel, arch) = rest.split_once("' for 'sm_").ok_or_else(|| strange(line))?;
            let key = (kernel.to_string(), arch.trim_end_matches('\'').to_string());
            if table.contains_key(&key) {
                return Err(format!("two kernels in cuda/op are called {kernel}"));
            }
            values = table.entry(key).or_default();
        } else if line.contains("bytes stack frame") {
            // Functions that were not inlined follow the kernel that calls them.
            values[2] += number(line, "bytes spill stores")? + number(line, "bytes spill loads")?;
            values[3] += number(line, "bytes stack frame")?;
        } else if line.starts_with("ptxas info    : Used ") {
            values[0] = number(line, "registers")?;
            values[1] = if line.contains("bytes smem") { number(line, "bytes smem")? } else { 0 };
        } else if !line.starts_with("ptxas info") && !line.trim().is_empty() {
            let note = format!("warning={line}");
            if !notes.contains(&note) {
                notes.push(note);
            }
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
