//! `docs/algorithms.md` is the list of algorithms, written out.

use duplex::algo::{ALGORITHMS, Better, Metric, Start};
use duplex::model::Head;
use std::fmt::Write;

fn page() -> String {
    let mut out = String::from(
        "# Algorithms\n\n\
         Made from the list of algorithms (`src/algo/list.rs`) by `tests/conformance/docs.rs`. A \
         run\n\
         takes its stages in this order; `duplex NAME` runs one of them alone, `--stages` names\n\
         several. Keys stand in the section `[NAME]` of a configuration file, and are flags of\n\
         `duplex NAME`.\n",
    );
    for a in ALGORITHMS {
        let head = match a.head {
            Head::Lm => "a language model",
            Head::Score => "a model with a score head",
        };
        let start = match a.start {
            Start::Pretrained => "the pretrained model",
            Start::Policy => "the policy of the last stage before it",
        };
        let rows = a.learns.rows().name();
        let about = wrapped(&format!("{}. Source: {}.", a.about, a.source));
        let roles = wrapped(&format!("Trains {head}, starts from {start}, learns from {rows}."));
        let _ = write!(
            out,
            "\n## {} (`{}`)\n\n{about}\n\n{roles}\n\n\
             | key | default | meaning |\n|---|---|---|\n",
            a.title, a.name
        );
        let defaults = a.section.defaults().unwrap();
        for key in a.section.keys(a.name, 0, 0) {
            let leaf = key.path.split_once('.').unwrap().1;
            let default = defaults.get(leaf).map_or("none".into(), |v| v.to_string());
            let _ = writeln!(out, "| `{leaf}` | `{default}` | {} |", key.help);
        }
        out += "\n| metric | better | shown |\n|---|---|---|\n";
        for metric in a.metrics() {
            let _ = writeln!(out, "{}", row(metric));
        }
    }
    out
}

/// A paragraph in lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= 100 {
            *line += &format!(" {word}");
        } else {
            lines.push(word.into());
        }
    }
    lines.join("\n")
}

fn row(metric: &Metric) -> String {
    let better = match metric.better {
        Some(Better::Lower) => "lower",
        Some(Better::Higher) => "higher",
        None => "",
    };
    let shown = match (metric.headline, metric.shown) {
        (true, _) => "sums the stage up",
        (_, true) => "while it runs",
        _ => "in the log and the report",
    };
    format!("| `{}` | {better} | {shown} |", metric.name)
}

#[test]
fn algorithms_md_is_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/algorithms.md");
    if std::env::var_os("DUPLEX_WRITE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), page(), "{path} is stale");
}
