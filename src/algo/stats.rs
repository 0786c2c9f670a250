//! Running mean and variance of rewards over the whole run (Chan et al. 1979, parallel update).

/// Count, mean and variance of everything seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunningStats {
    count: f64,
    mean: f64,
    m2: f64,
}

impl RunningStats {
    /// Takes in a batch.
    pub fn update(&mut self, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let m2 = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
        let delta = mean - self.mean;
        let total = self.count + n;
        self.m2 += m2 + delta * delta * self.count * n / total;
        self.mean += delta * n / total;
        self.count = total;
    }

    /// Count, mean and sum of squared differences, which are all there is.
    pub fn parts(&self) -> [f64; 3] {
        [self.count, self.mean, self.m2]
    }

    /// Statistics from their [`RunningStats::parts`].
    pub fn from_parts([count, mean, m2]: [f64; 3]) -> RunningStats {
        RunningStats { count, mean, m2 }
    }

    /// Mean so far.
    pub fn mean(&self) -> f32 {
        self.mean as f32
    }

    /// Standard deviation so far; 1 while it is unknown or tiny.
    pub fn std(&self) -> f32 {
        let std = if self.count > 1.0 { (self.m2 / (self.count - 1.0)).sqrt() } else { 1.0 };
        if std > 1e-6 { std as f32 } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn batches_give_the_statistics_of_the_whole() {
        let mut rng = Rng::new(4, 0);
        let all: Vec<f32> = (0..1000).map(|_| rng.normal() * 3.0 + 7.0).collect();
        let mut running = RunningStats::default();
        all.chunks(37).for_each(|c| running.update(c));
        let mut whole = RunningStats::default();
        whole.update(&all);
        assert!((running.std() - whole.std()).abs() < 1e-4);
        assert!((running.mean() - whole.mean()).abs() < 1e-4);
        assert!((whole.std() - 3.0).abs() < 0.3 && (whole.mean() - 7.0).abs() < 0.5);
    }
}
