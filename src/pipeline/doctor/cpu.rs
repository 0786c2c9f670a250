//! The processor, and which of the paths for it a run takes.

use super::finding::Finding;
use crate::op::cpu::simd::{Level, features, level};
use crate::pipeline::bench::processor;
use serde_json::{Map, Value};

pub(super) fn look() -> Vec<Finding> {
    let asked = std::env::var("DUPLEX_CPU").ok();
    vec![instructions(), path(asked.as_deref(), Level::detected(), level())]
}

/// Reports which of the instruction sets used by the CPU paths this processor has.
fn instructions() -> Finding {
    let all = features();
    let names = |there: bool| {
        let some = all.iter().filter(|f| f.1 == there).map(|f| f.0);
        some.collect::<Vec<_>>().join(" ")
    };
    let text = match (names(true), names(false)) {
        (none, _) if none.is_empty() => processor(),
        (some, none) if none.is_empty() => format!("{}; {some}", processor()),
        (some, none) => format!("{}; {some}; without {none}", processor()),
    };
    let map: Map<String, Value> = all.iter().map(|f| (f.0.to_string(), f.1.into())).collect();
    Finding::ok("processor", text).with("features", map)
}

/// The path that is taken, `used`, where the processor's best is `best` and `DUPLEX_CPU` is
/// `asked`.
fn path(asked: Option<&str>, best: Level, used: Level) -> Finding {
    const NAME: &str = "CPU path";
    let finding = match asked.map(|word| (word, Level::parse(word))) {
        None if best == Level::Portable && cfg!(target_arch = "x86_64") => {
            Finding::note(NAME, "portable: the processor lacks AVX2 or FMA, or they are masked")
                .advise("expect a run to be many times slower; use a machine or setting with AVX2")
        }
        None => Finding::ok(NAME, format!("{}, the best of this processor", used.name())),
        Some((_, Err(e))) => {
            Finding::note(NAME, format!("{}; {e}", used.name())).advise("it is ignored as it is")
        }
        Some((_, Ok(asked))) if asked > best => {
            let text = format!(
                "{}: DUPLEX_CPU asks for {}, which this processor has not",
                used.name(),
                asked.name()
            );
            Finding::note(NAME, text).advise("unset DUPLEX_CPU")
        }
        Some((_, Ok(asked))) if asked < best => {
            let text = format!(
                "{} by DUPLEX_CPU, which masks this processor's {}",
                used.name(),
                best.name()
            );
            Finding::note(NAME, text)
                .advise("unset DUPLEX_CPU for speed; keep it to repeat the bits of such a machine")
        }
        Some(_) => Finding::ok(NAME, format!("{} by DUPLEX_CPU", used.name())),
    };
    finding.with("best", best.name()).with("used", used.name()).with("asked", asked)
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn a_masked_path_names_both() {
        let f = path(Some("avx2"), Level::Amx, Level::Avx2);
        assert_eq!(f.mark, Mark::Note);
        assert!(f.text.starts_with("avx2 by DUPLEX_CPU") && f.text.contains("amx"), "{}", f.text);
        assert_eq!((&f.values["used"], &f.values["best"]), (&"avx2".into(), &"amx".into()));
        assert_eq!(path(None, Level::Amx, Level::Amx).mark, Mark::Ok);
        assert_eq!(path(Some("amx"), Level::Amx, Level::Amx).mark, Mark::Ok);
        let above = path(Some("amx"), Level::Avx2, Level::Avx2);
        assert!(above.mark == Mark::Note && above.text.contains("has not"), "{}", above.text);
        let unknown = path(Some("sse"), Level::Avx2, Level::Avx2);
        assert!(unknown.mark == Mark::Note && unknown.text.contains("\"sse\""), "{}", unknown.text);
    }
}
