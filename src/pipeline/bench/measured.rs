//! The measurements as JSON and as a table: seconds of repeated runs, and the work done in them.

use super::machine::Ceilings;
use serde_json::{Map, Value, json};

/// Seconds of repeated runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seconds {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Seconds {
    /// Returns the median, minimum and maximum of `runs`, of which there is at least one.
    pub(super) fn of(runs: impl Iterator<Item = f64>) -> Seconds {
        let mut all: Vec<f64> = runs.collect();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        let median = match all.len() % 2 {
            0 => (all[middle - 1] + all[middle]) / 2.0,
            _ => all[middle],
        };
        Seconds { median, min: all[0], max: all[all.len() - 1] }
    }

    fn json(&self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

/// A part of a case.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) seconds: Seconds,
    pub(super) flops: f64,
}

/// One case.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Name of the case.
    pub(super) case: String,
    pub(super) sequences: usize,
    /// Tokens made (generation, PPO) or trained on in one run, as counted.
    pub(super) tokens: usize,
    pub(super) seconds: Seconds,
    /// Operations of one run.
    pub(super) flops: f64,
    /// Its parts, in order.
    pub(super) phases: Vec<Phase>,
    /// Steps of its phase "decode", and the bytes of weights each reads.
    pub(super) steps: Option<(usize, f64)>,
    /// The process's peak memory in this case.
    pub(super) peak_bytes: Option<u64>,
}

impl Measured {
    fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|p| p.name == name)
    }

    /// Bytes of weights read per second while decoding.
    fn read_rate(&self) -> Option<f64> {
        let ((steps, bytes), decode) = (self.steps?, self.phase("decode")?);
        Some(steps as f64 * bytes / decode.seconds.median)
    }

    /// All that is known of it, with its shares of the machine's ceilings.
    pub(super) fn json(&self, ceilings: &Ceilings) -> Value {
        let rates = |flops: f64, seconds: &Seconds| {
            let rate = flops / seconds.median;
            json!({"seconds": seconds.json(), "flops": flops, "flop_per_s": rate,
                "matmul_share": rate / ceilings.matmul_flop_per_s})
        };
        let phases: Map<String, Value> =
            self.phases.iter().map(|p| (p.name.to_string(), rates(p.flops, &p.seconds))).collect();
        let mut out = json!({"case": self.case, "sequences": self.sequences, "tokens": self.tokens,
            "tokens_per_s": self.tokens as f64 / self.seconds.median});
        let fields = out.as_object_mut().expect("an object");
        if let Value::Object(whole) = rates(self.flops, &self.seconds) {
            fields.extend(whole);
        }
        if !phases.is_empty() {
            fields.insert("phases".into(), Value::Object(phases));
        }
        if let (Some((steps, bytes)), Some(rate)) = (self.steps, self.read_rate()) {
            let decode = self.phase("decode").map_or(f64::NAN, |p| p.seconds.median);
            let step = json!({"steps": steps, "step_ms": 1e3 * decode / steps as f64,
                "weight_bytes": bytes, "read_bytes_per_s": rate,
                "read_share": rate / ceilings.read_bytes_per_s});
            fields.insert("decode".into(), step);
        }
        fields.insert("peak_bytes".into(), json!(self.peak_bytes));
        out
    }

    fn row(&self, ceilings: &Ceilings) -> [String; 8] {
        let s = &self.seconds;
        let rate = self.flops / s.median;
        let parts: Vec<String> =
            self.phases.iter().map(|p| format!("{} {:.3}", p.name, p.seconds.median)).collect();
        let read = self.read_rate().map_or(String::new(), |r| {
            format!("{:.1} GB/s {:.0}%", r / 1e9, 100.0 * r / ceilings.read_bytes_per_s)
        });
        [
            self.case.clone(),
            format!("{:.3}", s.median),
            format!("{:.3}-{:.3}", s.min, s.max),
            format!("{:.1}", self.tokens as f64 / s.median),
            format!("{:.1} GFLOP/s {:.0}%", rate / 1e9, 100.0 * rate / ceilings.matmul_flop_per_s),
            read,
            self.peak_bytes.map_or(String::new(), |b| format!("{} MiB", b >> 20)),
            parts.join(", "),
        ]
    }
}

const HEADER: [&str; 8] =
    ["case", "seconds", "range", "tokens/s", "matmul", "decode reads", "peak", "phases"];

/// All cases as a table for people.
pub(super) fn table(all: &[Measured], ceilings: &Ceilings) -> String {
    let mut rows = vec![HEADER.map(String::from)];
    rows.extend(all.iter().map(|m| m.row(ceilings)));
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        let of = |xs: &[f64]| Seconds::of(xs.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Seconds { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(of(&[7.0]), Seconds { median: 7.0, min: 7.0, max: 7.0 });
    }

    #[test]
    fn rates_are_work_over_medians() {
        let seconds = |median| Seconds { median, min: median, max: median };
        let decode = Phase { name: "decode", seconds: seconds(0.5), flops: 10.0 };
        let m = Measured {
            case: "generate-2".into(),
            sequences: 2,
            tokens: 6,
            seconds: seconds(2.0),
            flops: 30.0,
            phases: vec![decode],
            steps: Some((5, 8.0)),
            peak_bytes: Some(3 << 20),
        };
        let ceilings = Ceilings { read_bytes_per_s: 160.0, matmul_flop_per_s: 60.0 };
        let json = m.json(&ceilings);
        assert_eq!((&json["tokens_per_s"], &json["matmul_share"]), (&json!(3.0), &json!(0.25)));
        let step = &json["decode"];
        assert_eq!((&step["step_ms"], &step["read_share"]), (&json!(100.0), &json!(0.5)));
        let table = table(&[m], &ceilings);
        let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words[..5], ["generate-2", "2.000", "2.000-2.000", "3.0", "0.0"]);
        assert!(words.ends_with(&["3", "MiB", "decode", "0.500"]), "{words:?}");
    }
}
