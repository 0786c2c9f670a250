//! Metrics as they are declared: once, by the algorithm that computes them.

/// Metrics by name.
pub type Metrics = Vec<(&'static str, f64)>;

/// One metric of an algorithm.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name in the log, in snake case. `eval_x` is `x` over rows that are not trained on.
    pub name: &'static str,
    /// Its name for people; None: the name in words.
    pub label: Option<&'static str>,
    /// The direction that makes a better checkpoint, where one does.
    pub better: Option<Better>,
    /// True if it is a fraction that is shown in percent.
    pub percent: bool,
    /// True if it is shown while the stage runs, and first in the report.
    pub shown: bool,
    /// True if it sums the stage up, before and after.
    pub headline: bool,
    /// True if it is the price of the change, told beside the headline.
    pub price: bool,
    /// Its unit: a throughput, which is shown last.
    pub unit: Option<&'static str>,
}

/// The direction in which a metric gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Downwards.
    Lower,
    /// Upwards.
    Higher,
}

impl Metric {
    /// A number that is written to the log and to the report.
    pub const fn new(name: &'static str) -> Metric {
        let (label, better, unit) = (None, None, None);
        let (percent, shown, headline, price) = (false, false, false, false);
        Metric { name, label, better, percent, shown, headline, price, unit }
    }

    /// With a name for people.
    pub const fn labelled(mut self, label: &'static str) -> Metric {
        self.label = Some(label);
        self
    }

    /// Better when it is lower.
    pub const fn falls(mut self) -> Metric {
        self.better = Some(Better::Lower);
        self
    }

    /// Better when it is higher.
    pub const fn rises(mut self) -> Metric {
        self.better = Some(Better::Higher);
        self
    }

    /// A fraction.
    pub const fn percent(mut self) -> Metric {
        self.percent = true;
        self
    }

    /// Shown while the stage runs.
    pub const fn shown(mut self) -> Metric {
        self.shown = true;
        self
    }

    /// The price of the change.
    pub const fn price(mut self) -> Metric {
        self.price = true;
        self
    }

    /// A throughput.
    pub const fn unit(mut self, unit: &'static str) -> Metric {
        self.unit = Some(unit);
        self
    }

    /// Sums the stage up.
    pub const fn headline(mut self) -> Metric {
        self.headline = true;
        self
    }
}

/// Metrics of every stage, beside those that its algorithm declares.
pub static OF_ALL: &[Metric] = &[
    Metric::new("tokens_per_s").labelled("Tokens per second").unit("tok/s").shown(),
    Metric::new("skipped_steps"),
];
