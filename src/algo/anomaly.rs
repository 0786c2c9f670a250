//! Anomalies of training, as an algorithm declares them: a metric, a look at its values,
//! the way out. Nothing here stops or changes a run.

/// First values of a stage, kept to compare later ones with.
pub(crate) const START: usize = 8;
/// Values kept after those.
pub(crate) const KEPT: usize = 64;
/// Values whose mean stands for "now": one experience alone says little.
pub(crate) const BLOCK: usize = 8;

/// A metric whose values show that training goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Anomaly {
    /// Its name for people.
    pub name: &'static str,
    /// The metric it shows in.
    pub metric: &'static str,
    /// A metric that the values are divided by, where it is above 1.
    pub per: Option<&'static str>,
    /// True if the values so far show the anomaly. They are those of the start, then the newest,
    /// oldest first.
    pub shows: fn(&[f64]) -> bool,
    /// The way out.
    pub remedy: &'static str,
}

/// The loss of rows is suddenly far above what it was.
pub(super) const LOSS_SPIKE: Anomaly = Anomaly {
    name: "loss spike",
    metric: "loss",
    per: None,
    shows: spikes,
    remedy: "lower the learning rate or lengthen the warm-up, and look at the rows of these \
             batches",
};

/// The policy runs away from its reference.
pub(super) const KL_BLOW_UP: Anomaly = Anomaly {
    name: "KL blow-up",
    metric: "kl",
    per: Some("completions/mean_length"),
    shows: blows_up,
    remedy: "raise --kl-coef or --beta, the weight of the KL penalty, or lower \
        --actor-learning-rate",
};

/// The reward falls.
pub(super) const REWARD_COLLAPSE: Anomaly = Anomaly {
    name: "reward collapse",
    metric: "reward",
    per: None,
    shows: falls,
    remedy: "lower --actor-learning-rate or the epochs over an experience; --resume from a \
        checkpoint before it",
};

/// Completions get shorter and shorter.
pub(super) const LENGTH_COLLAPSE: Anomaly = Anomaly {
    name: "length collapse",
    metric: "completions/mean_length",
    per: None,
    shows: shrinks,
    remedy: "look whether the reward prefers short answers; raise --min-answer-seq-len or the \
        weight of the KL penalty",
};

/// The policy samples the same over and over.
pub(super) const ENTROPY_COLLAPSE: Anomaly = Anomaly {
    name: "entropy collapse",
    metric: "entropy",
    per: None,
    shows: freezes,
    remedy: "raise --entropy-coef or the weight of the KL penalty, or lower --actor-learning-rate",
};

/// The loss is far above what it was. Six deviations and half as much again: a hard batch is
/// neither, and the median of three passes over a single one. Half of what it was at the start:
/// where nearly all is learned, what is left comes in single hard rows (the reward models of the
/// demo's longest runs would be told of otherwise).
fn spikes(values: &[f64]) -> bool {
    const BEFORE: usize = 16;
    if values.len() < START + BEFORE + 3 {
        return false;
    }
    let (before, now) = values.split_at(values.len() - 3);
    let before = &before[before.len() - BEFORE..];
    let (level, now) = (median(before), median(now));
    now > level + 6.0 * noise(before) && now > 1.5 * level && now > 0.5 * mean(&values[..START])
}

/// The policy has left the reference. At 1 nat a token each token is e times as likely as under the
/// reference; what published runs end with is a tenth of that and less.
pub(super) fn blows_up(values: &[f64]) -> bool {
    values.len() >= 4 && mean(&values[values.len() - 4..]) > 1.0
}

/// The reward is far below its best. Means of eight differ by up to two deviations when nothing
/// happens, the best of many taken; it is four here, and a tenth of the best where there is no
/// noise.
pub(super) fn falls(values: &[f64]) -> bool {
    let Some((best, now)) = best_and_now(values) else { return false };
    now < best - 4.0 * noise(&values[START..]) && now < best - 0.1 * best.abs()
}

/// Answers are a quarter as long as they were at their longest. Short ones have no way to go.
pub(super) fn shrinks(values: &[f64]) -> bool {
    best_and_now(values).is_some_and(|(best, now)| best >= 8.0 && now < 0.25 * best)
}

/// The entropy is below a tenth of that at the start: samples are nearly always the same. Runs that
/// go well lose up to about half.
pub(super) fn freezes(values: &[f64]) -> bool {
    if values.len() < START + BLOCK {
        return false;
    }
    let start = mean(&values[..START]);
    start > 0.0 && mean(&values[values.len() - BLOCK..]) < 0.1 * start
}

/// Long after the start, the values explain nothing of the returns: a constant would do as well.
pub(super) fn explains_nothing(values: &[f64]) -> bool {
    values.len() >= START + KEPT && mean(&values[values.len() - KEPT / 2..]) < 0.02
}

/// The highest mean of so many values in a row before the newest, and theirs.
fn best_and_now(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < START + 2 * BLOCK {
        return None;
    }
    let (before, now) = values.split_at(values.len() - BLOCK);
    let best = before.windows(BLOCK).map(mean).fold(f64::MIN, f64::max);
    Some((best, mean(now)))
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The standard deviation around a slow change: from the differences of neighbours, each of which
/// has twice the variance.
fn noise(values: &[f64]) -> f64 {
    let squares: f64 = values.windows(2).map(|w| (w[1] - w[0]).powi(2)).sum();
    (squares / (2 * (values.len() - 1)) as f64).sqrt()
}
