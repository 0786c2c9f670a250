//! The page of a run as one HTML text: no scripts, nothing from outside, everything escaped.

use super::Sample;
use super::chart::chart;
use super::declared::{ENDS, Names};
use super::escape::escape;
use super::number::{date, duration, significant};
use super::run::{Run, Step};
use super::series::{Series, smoothed};
use std::fmt::Write;

/// Characters shown of one sample's text.
const MOST_TEXT: usize = 4000;
/// Units across of a chart that has its row to itself, shares it with one and with two others.
const WIDTHS: [f64; 3] = [1072.0, 516.0, 332.0];
/// Units from top to bottom of a key metric's chart, and of the others'.
const HEIGHTS: [f64; 2] = [220.0, 150.0];

/// The whole page.
pub(super) fn page(run: &Run) -> String {
    let mut out =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    out.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\">\n",
    );
    if run.seconds.is_none() {
        out.push_str("<meta http-equiv=\"refresh\" content=\"30\">\n");
    }
    let _ = write!(out, "<title>{}</title>\n<style>\n", escape(&run.name));
    out.push_str(include_str!("style.css"));
    out.push_str("</style></head>\n<body><main>\n");
    header(&mut out, run);
    headlines(&mut out, run);
    warnings(&mut out, run);
    for step in &run.steps {
        section(&mut out, step);
    }
    for step in run.steps.iter().filter(|s| !s.samples.is_empty()) {
        samples(&mut out, step);
    }
    log(&mut out, run);
    let _ = write!(
        out,
        "<footer>Written by duplex {} on {}</footer>\n</main></body></html>\n",
        env!("CARGO_PKG_VERSION"),
        date(run.updated)
    );
    out
}

/// `x` of the metric `name`, with a true minus sign.
fn show(names: &Names, name: &str, x: f64, digits: usize) -> String {
    names.show(name, x, digits).replace('-', "\u{2212}")
}

/// How far a step is, such as "12 of 40 batches".
fn progress(iteration: u64, step: &Step) -> String {
    let unit = escape(&step.unit);
    match iteration == step.total {
        true => format!("{} {unit}", step.total),
        false => format!("{iteration} of {} {unit}", step.total),
    }
}

fn header(out: &mut String, run: &Run) {
    let (class, state) = match run.seconds {
        Some(seconds) => ("state done", format!("Finished in {}", duration(seconds))),
        None => ("state", "In progress".to_owned()),
    };
    let _ = write!(
        out,
        "<header><div class=\"row\"><h1>{}</h1><span class=\"{class}\">{state}</span></div>\n\
         <p class=\"meta\">Started {} &nbsp;·&nbsp; {}</p>\n",
        escape(&run.name),
        date(run.started.unwrap_or(run.updated)),
        escape(&run.dir)
    );
    if !run.summary.is_empty() {
        out.push_str("<dl class=\"facts\">");
        for (key, value) in &run.summary {
            fact(out, key, value);
        }
        out.push_str("</dl>\n");
    }
    out.push_str("</header>\n");
}

fn fact(out: &mut String, key: &str, value: &str) {
    let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(key), escape(value));
}

/// A step's outcome in one number, or two: before and after.
struct Headline {
    name: String,
    from: Option<f64>,
    to: f64,
    note: &'static str,
}

/// The results of `step`, numbers before and after the step as one.
fn results(step: &Step) -> Vec<Headline> {
    let mut found: Vec<Headline> = Vec::new();
    for (name, value) in &step.results {
        let mut head = Headline { name: name.clone(), from: None, to: *value, note: "" };
        for [first, last] in ENDS {
            let other = |this: &str, that: &str| {
                let stem = name.strip_suffix(this)?;
                Some((stem, step.result(&format!("{stem}{that}"))?))
            };
            if let Some((stem, to)) = other(first, last) {
                head = Headline { name: stem.to_owned(), from: Some(*value), to, note: "" };
            } else if other(last, first).is_some() {
                head.name.clear();
            }
        }
        if !head.name.is_empty() {
            found.push(head);
        }
    }
    found
}

/// Returns the numbers of `step` shown at the top: up to two results before and after. Without such
/// results it returns what sums the stage up, else the change of the first metric that is shown.
/// The price of the change follows.
fn headlines_of(step: &Step) -> Vec<Headline> {
    let mut found: Vec<_> = results(step).into_iter().filter(|r| r.from.is_some()).collect();
    found.truncate(2);
    let latest = |name: &str| match step.result(name) {
        Some(x) => Some(x),
        None => step.metric(name).map(Series::last),
    };
    let alone = |name: &str, to: f64| Headline { name: name.to_owned(), from: None, to, note: "" };
    if found.is_empty() {
        let all = step.names.0.iter().filter(|d| d.headline);
        found.extend(all.filter_map(|d| Some(alone(&d.name, latest(&d.name)?))));
    }
    let first = step.names.shown().find_map(|d| Some((&d.name, step.metric(&d.name)?)));
    if let Some((name, series)) = first.filter(|_| found.is_empty()) {
        let curve = smoothed(&series.points());
        if let (Some(a), Some(b)) = (curve.first(), curve.last()) {
            let (from, name) = ((a.0 < b.0).then_some(a.1), name.clone());
            found.push(Headline { name, from, to: b.1, note: ", smoothed" });
        }
    }
    let price = step.names.0.iter().filter(|d| d.price);
    found.extend(price.filter_map(|d| Some(alone(&d.name, latest(&d.name)?))));
    found
}

fn headlines(out: &mut String, run: &Run) {
    let all: Vec<_> =
        run.steps.iter().flat_map(|s| headlines_of(s).into_iter().map(move |h| (s, h))).collect();
    if all.is_empty() {
        return;
    }
    out.push_str("<div class=\"heads\">");
    for (step, head) in all {
        let from = head.from.map_or(String::new(), |x| {
            let x = show(&step.names, &head.name, x, 3);
            format!("<span class=\"from\">{x}</span> <span class=\"arrow\">→</span> ")
        });
        let _ = write!(
            out,
            "<div class=\"card\"><div class=\"of\">{}</div>\
             <div class=\"value\">{from}<span>{}</span></div><div class=\"what\">{}{}</div></div>",
            escape(&step.title),
            show(&step.names, &head.name, head.to, 3),
            escape(&step.names.label(&head.name)),
            head.note
        );
    }
    out.push_str("</div>\n");
}

fn section(out: &mut String, step: &Step) {
    let time = step.seconds.map_or(String::new(), |s| format!(" &nbsp;·&nbsp; {}", duration(s)));
    let _ = writeln!(
        out,
        "<section><div class=\"title\"><h2>{}</h2><span class=\"meta\">{}{time}</span></div>",
        escape(&step.title),
        progress(step.iteration, step)
    );
    if !step.results.is_empty() {
        out.push_str("<dl class=\"facts results\">");
        for r in results(step) {
            let value = |x: f64| show(&step.names, &r.name, x, 4);
            let from = r.from.map_or(String::new(), |x| format!("{} → ", value(x)));
            fact(out, &step.names.label(&r.name), &format!("{from}{}", value(r.to)));
        }
        out.push_str("</dl>\n");
    }
    charts(out, step);
    metrics_table(out, step);
    out.push_str("</section>\n");
}

/// Key metrics in large charts, the others in small ones; held-out values lie over their
/// counterpart's.
fn charts(out: &mut String, step: &Step) {
    let counterpart =
        |name: &str| name.strip_prefix("eval_").is_some_and(|of| step.metric(of).is_some());
    let rank = |name: &str| step.names.rank(name);
    let (mut key, rest): (Vec<_>, Vec<_>) =
        step.metrics.iter().filter(|m| !counterpart(&m.0)).partition(|m| rank(&m.0).is_some());
    key.sort_by_key(|m| rank(&m.0));
    out.push_str("<div class=\"charts\">\n");
    for (these, most, height) in [(key, 2, HEIGHTS[0]), (rest, 3, HEIGHTS[1])] {
        for ((name, series), across) in these.iter().zip(rows(these.len(), most)) {
            let held_out = step.metric(&format!("eval_{name}"));
            figure(out, &step.names, name, [Some(series), held_out], (across, height));
        }
    }
    out.push_str("</div>\n");
}

/// For each of `n` charts, how many share its row: at most `most`, and rows are full.
fn rows(n: usize, most: usize) -> Vec<usize> {
    let mut rows = Vec::new();
    while rows.len() < n {
        let left = n - rows.len();
        // Two rows of two rather than three and a lone one.
        let row = if left == most + 1 && most > 2 { most - 1 } else { left.min(most) };
        let row = if most == 2 && left % 2 == 1 { 1 } else { row };
        rows.extend(std::iter::repeat_n(row, row));
    }
    rows
}

/// One chart with its heading, `across` to a row and `height` units high.
fn figure(
    out: &mut String,
    names: &Names,
    name: &str,
    [series, held_out]: [Option<&Series>; 2],
    (across, height): (usize, f64),
) {
    let Some(series) = series else { return };
    let size = (WIDTHS[across - 1], height);
    let svg = chart(name, names.is_percent(name), series, held_out, size);
    let mut last = format!("<span class=\"value\">{}</span>", show(names, name, series.last(), 4));
    if let Some(held_out) = held_out {
        last = format!(
            "<span><small>train</small> {last} <small>held-out</small> \
             <span class=\"value held\">{}</span></span>",
            show(names, name, held_out.last(), 4)
        );
    }
    let _ = writeln!(
        out,
        "<figure class=\"in{across}\"><figcaption><span>{}</span>{last}</figcaption>{svg}</figure>",
        escape(&names.label(name))
    );
}

fn metrics_table(out: &mut String, step: &Step) {
    if step.metrics.is_empty() {
        return;
    }
    out.push_str(
        "<details><summary>All metrics</summary><div class=\"scroll\"><table><tr><th>Metric</th>\
         <th class=\"num\">First</th><th class=\"num\">Last</th><th class=\"num\">Lowest</th>\
         <th class=\"num\">Highest</th></tr>\n",
    );
    for (name, series) in &step.metrics {
        let _ = write!(out, "<tr><td>{}</td>", escape(&step.names.label(name)));
        for x in [series.first, series.last(), series.min, series.max] {
            let _ = write!(out, "<td class=\"num\">{}</td>", show(&step.names, name, x, 4));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div></details>\n");
}

fn samples(out: &mut String, step: &Step) {
    let before = step.samples.iter().any(|s| s.baseline.is_some());
    let scores = step.samples.iter().any(|s| s.score.is_some());
    let _ = write!(
        out,
        "<section><div class=\"title\"><h2>{}: {}</h2><span class=\"meta\">after {}</span></div>\n\
         <div class=\"scroll\"><table class=\"samples\"><tr><th>Prompt</th>",
        escape(&step.title),
        if before { "answers before and after" } else { "answers" },
        progress(step.samples[0].iteration, step)
    );
    for (wanted, head) in [
        (before, "<th>Answer before</th>"),
        (before && scores, "<th class=\"num\">Score</th>"),
        (before, "<th>Answer after</th>"),
        (!before, "<th>Answer</th>"),
        (scores, "<th class=\"num\">Score</th>"),
    ] {
        out.push_str(if wanted { head } else { "" });
    }
    out.push_str("</tr>\n");
    for sample in &step.samples {
        sample_row(out, sample, before, scores);
    }
    out.push_str("</table></div></section>\n");
}

fn sample_row(out: &mut String, sample: &Sample, before: bool, scores: bool) {
    let text = |out: &mut String, class: &str, text: &str| {
        let text = match text.char_indices().nth(MOST_TEXT) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        // The script of the text decides its direction, and it cannot turn its neighbours'.
        let text = escape(text.trim());
        let _ = write!(out, "<td><div dir=\"auto\" class=\"text {class}\">{text}</div></td>");
    };
    let score = |out: &mut String, class: &str, score: Option<f64>| {
        let score = score.map_or(String::new(), |s| significant(s, 3).replace('-', "\u{2212}"));
        let _ = write!(out, "<td class=\"num {class}\">{score}</td>");
    };
    out.push_str("<tr>");
    text(out, "prompt", &sample.prompt);
    if before {
        text(out, "before", sample.baseline.as_deref().unwrap_or(""));
        if scores {
            score(out, "before", sample.baseline_score);
        }
    }
    text(out, "", &sample.answer);
    if scores {
        let class = match (sample.baseline_score, sample.score) {
            (Some(old), Some(new)) if new > old => "up",
            (Some(old), Some(new)) if new < old => "down",
            _ => "",
        };
        score(out, class, sample.score);
    }
    out.push_str("</tr>\n");
}

/// The latest warnings, where they are seen.
fn warnings(out: &mut String, run: &Run) {
    let mut latest: Vec<_> = run.log.iter().rev().filter(|l| l.warning).take(5).collect();
    latest.reverse();
    if latest.is_empty() {
        return;
    }
    out.push_str("<ul class=\"warnings\">");
    for line in latest {
        let _ = write!(out, "<li>{}</li>", escape(&line.text));
    }
    out.push_str("</ul>\n");
}

fn log(out: &mut String, run: &Run) {
    if run.log.is_empty() {
        return;
    }
    out.push_str(
        "<section><div class=\"title\"><h2>Log</h2></div><div class=\"scroll\">\
         <table class=\"log\">\n",
    );
    for line in &run.log {
        let after = duration((line.time - run.started.unwrap_or(line.time)).max(0.0));
        let kind = if line.warning { "Warning: " } else { "" };
        let _ = writeln!(out, "<tr><td>{after}</td><td>{kind}{}</td></tr>", escape(&line.text));
    }
    out.push_str("</table></div></section>\n");
}

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn chart_rows_are_full() {
        assert_eq!(rows(3, 2), [1, 2, 2]);
        assert_eq!(rows(4, 2), [2; 4]);
        assert_eq!(rows(1, 3), [1]);
        assert_eq!(rows(5, 3), [3, 3, 3, 2, 2]);
        for n in 0..20 {
            for most in [2, 3] {
                let rows = rows(n, most);
                assert_eq!(rows.len(), n);
                for width in 1..=most {
                    assert_eq!(rows.iter().filter(|r| **r == width).count() % width, 0);
                }
            }
        }
    }
}
