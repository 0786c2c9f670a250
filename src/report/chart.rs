//! A line chart as inline SVG: light grid, round ticks, the raw values pale under a smoothed line,
//! held-out values on top. Colours come from the page's style sheet by class.

use super::number::{round_step, tick_label, ticks};
use super::series::{Series, drawable, smoothed};
use std::fmt::Write;

/// Room for labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 14.0, 8.0, 24.0];

/// Marks along the iterations, which are some 90 units apart.
const MOST_MARKS: u32 = 100;

type Points = Vec<(u64, f64)>;

/// Where data lands in the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    size: (f64, f64),
}

impl Frame {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let share = |v: f64, (lo, hi): (f64, f64)| if hi > lo { (v - lo) / (hi - lo) } else { 0.5 };
        let [left, right, top, bottom] = MARGIN;
        let (width, height) = (self.size.0 - left - right, self.size.1 - top - bottom);
        // Far outliers end beyond the frame; the page's clip hides them.
        let up = share(y, self.y).clamp(-2.0, 3.0);
        (left + share(x, self.x) * width, top + (1.0 - up) * height)
    }
}

/// The metric `name` as a chart of `size` units, with the `held_out` values if there are any.
/// Values that are not finite leave gaps. Empty if there is nothing to draw.
pub(super) fn chart(
    name: &str,
    percent: bool,
    series: &Series,
    held_out: Option<&Series>,
    size: (f64, f64),
) -> String {
    let raw = series.points();
    let line = smoothed(&raw);
    let held_out: Points = held_out.map(Series::points).unwrap_or_default();
    let finite =
        |points: &Points| -> Points { points.iter().copied().filter(|p| drawable(p.1)).collect() };
    let (shown, held_out) = (finite(&raw), finite(&held_out));
    let Some((lo, hi)) = range(&shown, &[&line, &held_out]) else { return String::new() };
    let y_ticks = ticks(lo, hi, if size.1 < 200.0 { 3 } else { 4 });
    let all = || raw.iter().chain(&held_out).map(|p| p.0);
    let x = (all().min().unwrap_or(0) as f64, all().max().unwrap_or(1) as f64);
    let y = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
    let frame = Frame { x, y, size };

    let (width, height) = size;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#,
        super::escape::escape(name)
    );
    grid(&mut svg, &frame, &y_ticks, percent);
    // A nested view clips what lies outside the frame.
    let [left, right, top, bottom] = MARGIN;
    let (w, h) = (width - left - right, height - top - bottom);
    let _ = write!(
        svg,
        concat!(
            r#"<svg x="{:.0}" y="{:.0}" width="{:.0}" height="{:.0}" "#,
            r#"viewBox="{:.0} {:.0} {:.0} {:.0}">"#
        ),
        left - 4.0,
        top - 4.0,
        w + 8.0,
        h + 8.0,
        left - 4.0,
        top - 4.0,
        w + 8.0,
        h + 8.0
    );
    if line.len() > 1 && line != shown {
        polyline(&mut svg, "raw", &frame, &raw);
        polyline(&mut svg, "line", &frame, &line);
    } else {
        polyline(&mut svg, "line", &frame, &raw);
    }
    polyline(&mut svg, "held", &frame, &held_out);
    dots(&mut svg, "held-dot", &frame, if held_out.len() <= 40 { &held_out } else { &[] });
    dots(&mut svg, "dot", &frame, &line[line.len().saturating_sub(1)..]);
    svg.push_str("</svg></svg>");
    svg
}

/// The values to show: all of them, unless a few outliers would flatten the rest.
fn range(raw: &Points, others: &[&Points]) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = raw.iter().map(|p| p.1).collect();
    sorted.sort_by(f64::total_cmp);
    let others: Vec<f64> = others.iter().flat_map(|points| points.iter().map(|p| p.1)).collect();
    let low = |values: &[f64]| values.iter().copied().reduce(f64::min);
    let high = |values: &[f64]| values.iter().copied().reduce(f64::max);
    let inner = &sorted[sorted.len() / 50..sorted.len() - sorted.len() / 50];
    let (mut lo, mut hi) = match (low(inner), high(inner)) {
        (Some(lo), Some(hi)) => (lo, hi),
        _ => (low(&others)?, high(&others)?),
    };
    if let (Some(least), Some(most)) = (sorted.first(), sorted.last())
        && most - least <= 2.0 * (hi - lo)
    {
        (lo, hi) = (*least, *most);
    }
    Some((low(&others).map_or(lo, |x| x.min(lo)), high(&others).map_or(hi, |x| x.max(hi))))
}

fn grid(svg: &mut String, frame: &Frame, y_ticks: &[f64], percent: bool) {
    let (width, height) = frame.size;
    let [left, right, ..] = MARGIN;
    let scale = if percent { 100.0 } else { 1.0 };
    let step = (y_ticks[1] - y_ticks[0]) * scale;
    let largest = frame.y.0.abs().max(frame.y.1.abs()) * scale;
    for &tick in y_ticks {
        let (_, y) = frame.place(0.0, tick);
        let label = tick_label(tick * scale, step, largest).replace('-', "\u{2212}");
        let (unit, end) = (if percent { "%" } else { "" }, width - right);
        let _ = write!(svg, r#"<path class="grid" d="M{left:.0} {y:.1}H{end:.0}"/>"#);
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.0}" y="{:.1}" text-anchor="end">{label}{unit}</text>"#,
            left - 8.0,
            y + 3.5
        );
    }
    let (first, last) = frame.x;
    let step = round_step(((last - first) / (width / 90.0)).max(1.0)).max(1.0);
    // The scale begins with the data, not with the round number below it. Where iterations are so
    // large that a step adds nothing to them, a few marks are enough.
    let start = (first / step).ceil() * step;
    let all = (0..MOST_MARKS).map(|i| start + f64::from(i) * step);
    let mut marks: Vec<f64> = all.take_while(|tick| *tick <= last).collect();
    marks.dedup();
    if marks.first().is_none_or(|m| m - first > 0.6 * step) || first == last {
        marks.insert(0, first);
        marks.dedup();
    }
    for x in marks {
        let (at, y) = (frame.place(x, 0.0).0, height - 7.0);
        let label = tick_label(x, step, last);
        let _ = write!(
            svg,
            r#"<text class="tick" x="{at:.1}" y="{y:.1}" text-anchor="middle">{label}</text>"#
        );
    }
}

/// A line through `points`, broken where a value cannot be drawn.
fn polyline(svg: &mut String, class: &str, frame: &Frame, points: &[(u64, f64)]) {
    let mut path = String::new();
    let mut pen = 'M';
    for &(x, y) in points {
        if !drawable(y) {
            pen = 'M';
            continue;
        }
        let (x, y) = frame.place(x as f64, y);
        let _ = write!(path, "{pen}{x:.1} {y:.1}");
        pen = 'L';
    }
    if !path.is_empty() {
        let _ = write!(svg, r#"<path class="{class}" d="{path}"/>"#);
    }
}

fn dots(svg: &mut String, class: &str, frame: &Frame, points: &[(u64, f64)]) {
    for &(x, y) in points {
        let (x, y) = frame.place(x as f64, y);
        let _ = write!(svg, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let mut series = Series::new(1, values[0]);
        (2..).zip(&values[1..]).for_each(|(i, x)| series.push(i, *x));
        series
    }

    /// Every number in the drawing's paths and places.
    fn assert_drawn(svg: &str) {
        for bad in ["NaN", "nan", "inf"] {
            assert!(!svg.contains(bad), "{svg}");
        }
    }

    #[test]
    fn values_that_are_not_finite_leave_gaps() {
        let values = [1.0, 2.0, f64::NAN, 2.5, f64::INFINITY, 3.0, 2.0];
        let svg = chart("loss", false, &series(&values), None, (400.0, 200.0));
        assert_drawn(&svg);
        let path = svg.split("class=\"line\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 3, "{path}");
    }

    #[test]
    fn there_is_no_chart_of_nothing_and_one_of_little() {
        let size = (400.0, 200.0);
        assert_eq!(chart("a", false, &series(&[f64::NAN, f64::NEG_INFINITY]), None, size), "");
        for values in
            [&[7.0][..], &[0.0, 0.0], &[1e300, 1.0], &[-1e-300, 1e-300], &[1e-320], &[5.0; 99]]
        {
            let svg = chart("a", false, &series(values), Some(&series(&[f64::NAN])), size);
            assert_drawn(&svg);
            assert!(svg.contains("class=\"dot\""), "{svg}");
        }
    }

    #[test]
    fn iterations_too_large_to_count_are_drawn() {
        for first in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 53) + 1] {
            let mut values = Series::new(first, 1.0);
            values.push(first.saturating_add(1), 2.0);
            assert_drawn(&chart("a", false, &values, None, (400.0, 200.0)));
        }
    }

    #[test]
    fn a_spike_does_not_flatten_the_rest() {
        let mut values: Vec<f64> = (0..300).map(|i| 3.0 - i as f64 / 300.0).collect();
        values[100] = 4e6;
        let points = (0..).zip(values).collect::<Points>();
        let (lo, hi) = range(&points, &[]).unwrap();
        assert!(1.9 < lo && hi < 3.1, "{lo} {hi}");
    }
}
