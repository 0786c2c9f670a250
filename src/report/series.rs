//! The values of one metric over the iterations of a step, in bounded memory.

/// Points kept at most; more would not be seen in a chart.
const MOST: usize = 1024;

/// A curve. Every value counts for `first`, `min`, `max`; of the points some are dropped evenly
/// when there are too many.
#[derive(Clone, Debug)]
pub(super) struct Series {
    points: Vec<(u64, f64)>,
    /// Iterations between kept points.
    stride: u64,
    /// The newest value, kept even when its point was not.
    last: (u64, f64),
    /// The first value.
    pub(super) first: f64,
    /// The smallest finite value, or infinity.
    pub(super) min: f64,
    /// The largest finite value, or negative infinity.
    pub(super) max: f64,
}

impl Series {
    /// A series of one value.
    pub(super) fn new(iteration: u64, value: f64) -> Series {
        let mut series = Series {
            points: Vec::new(),
            stride: 1,
            last: (iteration, value),
            first: value,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        };
        series.push(iteration, value);
        series
    }

    /// Adds the value of `iteration`; what was there from this iteration on is replaced, as a
    /// resumed run repeats the iterations after its checkpoint.
    pub(super) fn push(&mut self, iteration: u64, value: f64) {
        let keep = self.points.partition_point(|p| p.0 < iteration);
        self.points.truncate(keep);
        if keep == 0 {
            self.first = value;
        }
        if value.is_finite() {
            self.min = self.min.min(value);
            self.max = self.max.max(value);
        }
        self.last = (iteration, value);
        if self.points.last().is_none_or(|p| iteration - p.0 >= self.stride) {
            self.points.push((iteration, value));
        }
        if self.points.len() > MOST {
            let mut i = 0;
            self.points.retain(|_| {
                i += 1;
                i % 2 == 1
            });
            let (n, (first, _)) = (self.points.len() as u64, self.points[0]);
            self.stride = self.points[n as usize - 1].0.saturating_sub(first) / (n - 1);
        }
    }

    /// The newest value.
    pub(super) fn last(&self) -> f64 {
        self.last.1
    }

    /// Iteration and value, in order, the newest included.
    pub(super) fn points(&self) -> Vec<(u64, f64)> {
        let mut points = self.points.clone();
        if points.last().is_none_or(|p| p.0 < self.last.0) {
            points.push(self.last);
        }
        points
    }
}

/// The finite `points` smoothed: at each a straight line fitted to its neighbours by weights of a
/// bell curve, which neither lags nor bends at the ends. Points too few or too calm to smooth, such
/// as a schedule's, are returned as they are.
pub(super) fn smoothed(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let points: Vec<_> = points.iter().copied().filter(|p| drawable(p.1)).collect();
    let width = (points.len() as f64 / 35.0).max(1.8);
    if points.len() < 20 || is_calm(&points) {
        return points;
    }
    let reach = (3.0 * width) as usize;
    let around = |i: usize| {
        let window = i.saturating_sub(reach)..(i + reach + 1).min(points.len());
        // Sums of weight times distance to a power, and of weight times value likewise.
        let (mut s, mut t) = ([0.0; 3], [0.0; 2]);
        for j in window {
            let distance = (j as f64 - i as f64) / width;
            let weight = (-0.5 * distance * distance).exp();
            s[0] += weight;
            s[1] += weight * distance;
            s[2] += weight * distance * distance;
            t[0] += weight * points[j].1;
            t[1] += weight * distance * points[j].1;
        }
        (points[i].0, (s[2] * t[0] - s[1] * t[1]) / (s[0] * s[2] - s[1] * s[1]))
    };
    (0..points.len()).map(around).collect()
}

/// True if the total variation along `points` is little more than their range.
fn is_calm(points: &[(u64, f64)]) -> bool {
    let values = || points.iter().map(|p| p.1);
    let range = values().fold(f64::MIN, f64::max) - values().fold(f64::MAX, f64::min);
    let way: f64 = points.windows(2).map(|p| (p[1].1 - p[0].1).abs()).sum();
    way <= 2.5 * range
}

/// True if a chart can show `x`: it is finite, and small enough that differences are finite too.
pub(super) fn drawable(x: f64) -> bool {
    x.abs() < 1e100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_series_are_thinned_evenly_and_keep_their_ends() {
        let mut series = Series::new(1, 0.5);
        for i in 2..=100_000 {
            series.push(i, if i == 777 { -9.0 } else { 1.0 / i as f64 });
        }
        let points = series.points();
        assert!((MOST / 2..=MOST + 1).contains(&points.len()), "{}", points.len());
        assert_eq!(points[0], (1, 0.5));
        assert_eq!(points[points.len() - 1], (100_000, 1e-5));
        assert_eq!((series.first, series.last(), series.min, series.max), (0.5, 1e-5, -9.0, 0.5));
        let gaps = points.windows(2).map(|p| p[1].0 - p[0].0);
        let inner = gaps.take(points.len() - 2).collect::<std::collections::BTreeSet<_>>();
        assert!(inner.last().unwrap() <= &(2 * inner.first().unwrap()), "{inner:?}");
    }

    #[test]
    fn repeated_iterations_replace_the_earlier_ones() {
        let mut series = Series::new(1, 5.0);
        for (i, x) in [(2, 4.0), (3, 3.0), (2, 8.0)] {
            series.push(i, x);
        }
        assert_eq!(series.points(), [(1, 5.0), (2, 8.0)]);
        assert_eq!(series.last(), 8.0);
    }

    #[test]
    fn smoothing_keeps_the_trend_and_quiets_noise() {
        let sign = |i: u64| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        let rising: Vec<_> = (0..200).map(|i| (i, 0.01 * i as f64 + sign(i))).collect();
        for (i, x) in smoothed(&rising) {
            let allowed = if (20..180).contains(&i) { 1e-3 } else { 0.3 };
            assert!((x - 0.01 * i as f64).abs() < allowed, "{i} {x}");
        }
        let calm: Vec<_> = (0..200).map(|i| (i, (i as f64).sqrt())).collect();
        assert_eq!(smoothed(&calm), calm);
        let few = [(1, 1.0), (2, f64::NAN), (3, 5.0)];
        assert_eq!(smoothed(&few), [(1, 1.0), (3, 5.0)]);
    }
}
