//! A plan as a table, and as JSON.

use super::{Plan, Planned};
use crate::comm::{CallKind, Count};
use serde_json::{Value, json};

/// The kinds of calls that move the models.
const TOLD: [CallKind; 3] = [CallKind::AllReduce, CallKind::AllGather, CallKind::ReduceScatter];

fn size(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10_000.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

/// Lines of cells, each column as wide as its widest cell; the first is flush left.
pub(super) fn columns(lines: &[Vec<String>]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |c: usize| lines.iter().filter_map(|l| l.get(c)).map(|t| t.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|c| wide(c).unwrap_or(0)).collect();
    let cell = |(c, text): (usize, &String)| {
        if c == 0 {
            format!("{text:<w$}", w = widths[0])
        } else {
            format!("  {text:>w$}", w = widths[c])
        }
    };
    let line = |l: &Vec<String>| l.iter().enumerate().map(cell).collect::<String>();
    lines.iter().map(|l| line(l).trim_end().to_string() + "\n").collect()
}

impl Planned {
    fn seconds(&self) -> Option<f64> {
        // An evaluation comes now and then.
        let parts = self.step.phases.iter().zip(&self.seconds);
        parts.filter(|(phase, _)| phase.name != "evaluation").map(|(_, s)| *s).sum()
    }

    /// Bytes of a rank at the worst moment.
    fn peak(&self) -> usize {
        self.step.phases.iter().map(|p| p.bytes.peak()).max().unwrap_or(0)
    }
}

impl Plan<'_> {
    /// Bytes of all ranks on this machine together at the worst moment, with the program, the copy
    /// for checkpoints, and what files are read and written with.
    fn process(&self) -> usize {
        let of = |p: &Planned| (p.peak() + self.files) * self.machine.ranks + p.step.checkpoint;
        self.steps.iter().map(of).max().unwrap_or(0) + self.program
    }
}

/// The plan for people.
pub(super) fn table(plan: &Plan<'_>) -> String {
    let cfg = plan.cfg;
    let state = cfg.optimizer_state.name();
    let memory = plan.machine.memory();
    let room = if memory.is_finite() { size(memory as usize) } else { "unknown".into() };
    let name = cfg.actor_model.clone().unwrap_or_default();
    let mut out = format!(
        "{name} on {}: {}, {state} optimizer state, {room} for each rank\n",
        plan.machine.name(),
        cfg.dtype.dtype()
    );
    out += &format!("\n{}\n{}", memory_of_phases(plan), work_of_steps(plan));
    if plan.steps.iter().any(|p| p.step.offloaded > 0) {
        let most = plan.steps.iter().map(|p| p.step.offloaded).max().unwrap_or(0);
        out += &format!(
            "\nin the host's memory, for each rank: {} of optimizer state and frozen weights\n",
            size(most)
        );
    }
    if plan.machine.card.is_none() {
        out += &format!(
            "\nall together, with {} of the program itself and {} to read and write files: {}\n",
            size(plan.program),
            size(plan.files * plan.machine.ranks),
            size(plan.process())
        );
    }
    if plan.machine.ranks > 1 {
        out += &format!("\n{}", traffic(plan));
    }
    out + "\n" + &times(plan)
}

/// Bytes of a rank in each phase, by what they are for.
fn memory_of_phases(plan: &Plan<'_>) -> String {
    let memory = plan.machine.memory();
    let heads = [
        "memory of a rank",
        "weights",
        "gradients",
        "optimizer",
        "KV-cache",
        "activations",
        "buffers",
        "together",
    ];
    let mut lines = vec![heads.map(String::from).to_vec()];
    for planned in &plan.steps {
        for p in &planned.step.phases {
            let b = &p.bytes;
            let parts = [b.weights, b.gradients, b.optimizer, b.kv_cache, b.activations, b.buffers];
            let name = format!("{} {}", planned.step.name, p.name);
            let mut line: Vec<String> = vec![name];
            line.extend(parts.into_iter().chain([b.peak()]).map(size));
            if b.peak() as f64 > memory {
                line.push("more than there is".into());
            }
            lines.push(line);
        }
    }
    columns(&lines)
}

/// Sequences, shares and micro-batches of a step of each stage.
fn work_of_steps(plan: &Plan<'_>) -> String {
    let heads = [
        "a step",
        "sequences",
        "tokens each",
        "ZeRO stage",
        "tensor parallel",
        "largest micro-batch",
        "copy for checkpoints",
    ];
    let mut lines = vec![heads.map(String::from).to_vec()];
    for p in &plan.steps {
        let largest = match p.largest {
            0 => "none fits".to_string(),
            1 => "1 sequence".to_string(),
            n => format!("{n} sequences"),
        };
        let stages: Vec<String> = p.step.stages.iter().map(ToString::to_string).collect();
        let stages = if stages.is_empty() { "-".into() } else { stages.join(", ") };
        let mut line =
            vec![p.step.name.to_string(), p.step.rows.to_string(), p.step.tokens.to_string()];
        line.extend([stages, p.step.tensor_parallel.to_string(), largest, size(p.step.checkpoint)]);
        lines.push(line);
    }
    columns(&lines)
}

/// Bytes that a rank gives to others in each phase.
fn traffic(plan: &Plan<'_>) -> String {
    let mut lines = vec![vec!["given to other ranks in a step".to_string()]];
    lines[0].extend(TOLD.iter().map(|kind| kind.name().to_string()));
    for planned in &plan.steps {
        for p in &planned.step.phases {
            let mut line = vec![format!("{} {}", planned.step.name, p.name)];
            line.extend(TOLD.iter().map(|kind| size(p.traffic.of(*kind).sent as usize)));
            lines.push(line);
        }
    }
    columns(&lines)
}

fn times(plan: &Plan<'_>) -> String {
    if plan.machine.card.is_none() {
        return "no estimate of time for this CPU: `duplex bench` measures it\n".into();
    }
    let mut lines =
        vec![["estimated time", "", "sequences/s", "TFLOP/s of a rank"].map(String::from).to_vec()];
    for planned in &plan.steps {
        for (phase, seconds) in planned.step.phases.iter().zip(&planned.seconds) {
            let Some(seconds) = seconds else { continue };
            let rate = phase.flops as f64 / seconds / 1e12;
            let name = format!("{} {}", planned.step.name, phase.name);
            lines.push(vec![name, duration(*seconds), String::new(), format!("{rate:.0}")]);
        }
        if let Some(seconds) = planned.seconds() {
            let rate = planned.step.rows as f64 / seconds;
            let name = format!("{} a step", planned.step.name);
            lines.push(vec![name, duration(seconds), format!("{rate:.1}")]);
        }
    }
    columns(&lines)
        + "(estimates from published peaks, not measured; docs/performance.md has the formulas)\n"
}

/// The plan for programs: bytes and seconds.
pub(super) fn json(plan: &Plan<'_>) -> Value {
    let told = |count: Count| json!({"calls": count.calls, "bytes": count.sent});
    let step = |p: &Planned| {
        let phase = |(phase, seconds): (&super::dry::Phase, &Option<f64>)| {
            let kinds = CallKind::ALL.iter();
            let sent: serde_json::Map<String, Value> = kinds
                .map(|kind| (kind.name().to_string(), told(phase.traffic.of(*kind))))
                .collect();
            json!({
                "phase": phase.name,
                "bytes": phase.bytes,
                "peak_bytes": phase.bytes.peak(),
                "flops": phase.flops,
                "given": sent,
                "estimated_seconds": seconds,
            })
        };
        let phases = p.step.phases.iter().zip(&p.seconds).map(phase);
        json!({
            "step": p.step.name,
            "sequences": p.step.rows,
            "tokens": p.step.tokens,
            "zero_stages": p.step.stages.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tensor_parallel": p.step.tensor_parallel,
            "largest_micro_batch": p.largest,
            "checkpoint_copy_bytes": p.step.checkpoint,
            "offloaded_bytes": p.step.offloaded,
            "phases": phases.collect::<Vec<_>>(),
            "estimated_seconds": p.seconds(),
        })
    };
    json!({
        "duplex": env!("CARGO_PKG_VERSION"),
        "model": plan.cfg.actor_model,
        "machine": plan.machine,
        "memory_bytes": Some(plan.machine.memory()).filter(|m| m.is_finite()),
        "program_bytes": plan.program,
        "process_bytes": plan.process(),
        "steps": plan.steps.iter().map(step).collect::<Vec<_>>(),
    })
}
