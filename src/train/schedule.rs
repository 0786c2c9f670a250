//! Learning rate schedules, as factors of the peak rate.

use serde::{Deserialize, Serialize};

/// The shape after warm-up, in text `linear`, `cosine` or `constant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Falls to 0 along a line.
    Linear,
    /// Falls to 0 along half a cosine (Loshchilov and Hutter 2017).
    Cosine,
    /// Stays. DeepSpeed-Chat calls it `constant_with_warmup` with warm-up steps.
    #[serde(alias = "constant_with_warmup")]
    Constant,
}

/// A schedule over a known number of optimizer steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The factor for step `step`, counted from 0. The first step after warm-up runs at the peak.
    pub fn factor(&self, step: u64) -> f32 {
        if step < self.warmup {
            return (step + 1) as f32 / (self.warmup + 1) as f32;
        }
        let rest = self.total.saturating_sub(self.warmup).max(1) as f32;
        let done = ((step - self.warmup) as f32 / rest).min(1.0);
        match self.kind {
            ScheduleKind::Linear => 1.0 - done,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * done).cos()),
            ScheduleKind::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_peaks_and_falls() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let s = Schedule { kind, warmup: 4, total: 14 };
            assert!((0..4).all(|i| s.factor(i) < s.factor(i + 1)));
            assert_eq!(s.factor(4), 1.0);
            assert!((4..13).all(|i| s.factor(i) > s.factor(i + 1)));
            assert!(s.factor(9) - 0.5 < 1e-6 && s.factor(14) < 1e-6 && s.factor(99) < 1e-6);
        }
    }
}
