//! Metrics as a stage declares them when it begins: how they are named and shown. A log of an
//! earlier version declares none; its metrics are shown as plain numbers.

use super::number::significant;
use serde::{Deserialize, Serialize};

/// A metric as it is declared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Declared {
    /// Its name in the log.
    pub name: String,
    /// Its name for people; None: the name in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its unit: a throughput, which is shown last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// A fraction that is shown in percent.
    pub percent: bool,
    /// Shown while the stage runs, and first in the report.
    pub shown: bool,
    /// Sums the stage up.
    pub headline: bool,
    /// The price of the change, told beside the headline.
    pub price: bool,
}

/// The metrics of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(pub(super) Vec<Declared>);

/// Ends of names in the summary of a stage: a metric before and after it.
pub(super) const ENDS: [[&str; 2]; 2] = [["_before", "_after"], ["_first", "_last"]];

impl Names {
    /// The declaration of a metric, or of what a summary tells of it.
    fn find(&self, name: &str) -> Option<&Declared> {
        let declared = |name: &str| self.0.iter().find(|d| d.name == name);
        let stem = || ENDS.iter().flatten().find_map(|end| name.strip_suffix(end));
        declared(name).or_else(|| declared(stem()?))
    }

    /// True if it is a fraction that is shown in percent.
    pub(super) fn is_percent(&self, name: &str) -> bool {
        self.find(name).is_some_and(|d| d.percent)
    }

    /// `x`, a value of the metric `name`, for a line of text.
    pub(super) fn show(&self, name: &str, x: f64, digits: usize) -> String {
        match self.is_percent(name) && x.is_finite() {
            true => format!("{:.1}%", 100.0 * x),
            false => significant(x, digits),
        }
    }

    /// The metric `name` for people.
    pub(super) fn label(&self, name: &str) -> String {
        if let Some(label) = self.find(name).and_then(|d| d.label.clone()) {
            return label;
        }
        match name.strip_prefix("eval_") {
            Some(rest) => format!("Held-out {}", small(&self.label(rest))),
            None => {
                let mut chars = name.chars();
                let first = chars.next().into_iter().flat_map(char::to_uppercase);
                first.chain(chars).collect::<String>().replace('_', " ")
            }
        }
    }

    /// Metrics shown while the stage runs, in order.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Declared> {
        self.0.iter().filter(|d| d.shown)
    }

    /// The place of a metric, or of its counterpart, among those that come first in the report.
    pub(super) fn rank(&self, name: &str) -> Option<usize> {
        let name = name.strip_prefix("eval_").unwrap_or(name);
        let own = |d: &Declared| d.name.strip_prefix("eval_").unwrap_or(&d.name) == name;
        self.shown().filter(|d| d.unit.is_none()).position(own)
    }
}

/// A label within a phrase: its first letter small, unless it begins an abbreviation.
fn small(label: &str) -> String {
    let mut chars = label.chars();
    match (chars.next(), chars.next()) {
        (Some(_), Some(second)) if second.is_uppercase() => label.to_owned(),
        (Some(first), _) => first.to_lowercase().chain(label.chars().skip(1)).collect(),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let named = |name: &str| Declared { name: name.into(), ..Declared::default() };
        let kl = Declared { label: Some("KL divergence".into()), shown: true, ..named("kl") };
        Names(vec![
            kl,
            Declared { percent: true, shown: true, ..named("eval_accuracy") },
            Declared { shown: true, unit: Some("tok/s".into()), ..named("tokens_per_s") },
        ])
    }

    #[test]
    fn names_and_values_are_as_declared() {
        let names = names();
        assert_eq!(names.label("kl"), "KL divergence");
        assert_eq!(names.label("eval_kl"), "Held-out KL divergence");
        assert_eq!(names.label("grad_norm"), "Grad norm");
        assert_eq!(names.label("eval_value_loss"), "Held-out value loss");
        assert_eq!(names.show("eval_accuracy_after", 0.7134, 3), "71.3%");
        assert_eq!(names.show("accuracy", 0.7134, 3), "0.713");
        assert_eq!(names.show("eval_accuracy", f64::NAN, 3), "nan");
        assert_eq!([names.rank("eval_kl"), names.rank("accuracy")], [Some(0), Some(1)]);
        assert_eq!([names.rank("tokens_per_s"), names.rank("other")], [None; 2]);
    }
}
