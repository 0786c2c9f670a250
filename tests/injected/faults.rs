//! The faults of a run: which calls fail, and how.

use crate::trace::Call;
use duplex::base::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// The effects on the calls of each function: the number of an error, `short` for half of the
/// bytes, or seconds by which the clock of the day jumps.
const EFFECTS: [(&str, &[&str]); 23] = [
    ("open", &["5", "24", "13", "116", "4", "30"]),
    ("opendir", &["5", "24", "116"]),
    ("readdir", &["5", "116"]),
    ("read", &["5", "116", "4", "short"]),
    ("write", &["5", "28", "4", "122", "short"]),
    ("copy", &["5", "28", "short"]),
    ("fsync", &["5", "28", "116", "4"]),
    ("rename", &["5", "28", "30", "13", "116"]),
    ("link", &["5", "28", "30"]),
    ("mkdir", &["5", "28", "30", "13"]),
    ("unlink", &["5", "30", "13", "116"]),
    ("stat", &["5", "116", "13"]),
    ("statfs", &["5", "38"]),
    ("truncate", &["5", "28", "4"]),
    ("allocate", &["28", "95"]),
    ("flock", &["5", "37", "95", "4"]),
    ("mmap", &["12"]),
    ("thread", &["11"]),
    ("close", &["5", "28"]),
    ("seek", &["5"]),
    ("fcntl", &["5", "24"]),
    ("readlink", &["5", "13"]),
    ("clock", &["+86400", "-86400", "+4000000000", "-1000000000"]),
];

/// Signals that come at any call.
const SIGNALS: [&str; 2] = ["kill", "term"];

/// Faults that last: from some call on, all calls of the function fail, wherever they are made.
const LASTING: [(&str, &str); 7] = [
    ("write", "28"),
    ("fsync", "5"),
    ("rename", "30"),
    ("open", "24"),
    ("open", "116"),
    ("thread", "11"),
    ("read", "5"),
];

/// A fault, by the name that the library takes: `FUNCTION:SITE:NUMBER[+]:EFFECT`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault(pub(crate) String);

impl Fault {
    fn part(&self, i: usize) -> &str {
        self.0.split(':').nth(i).expect("four parts")
    }

    /// The function whose calls fail.
    pub(crate) fn function(&self) -> &str {
        self.part(0)
    }

    /// The number of the error, unless the effect is another.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.part(3).parse().ok().filter(|_| self.function() != "clock")
    }

    /// True if a signal comes, and the call is made.
    pub(crate) fn is_signal(&self) -> bool {
        SIGNALS.contains(&self.part(3))
    }

    /// True if all later calls fail too.
    pub(crate) fn lasts(&self) -> bool {
        self.part(2).ends_with('+')
    }
}

/// All faults of a run that made `calls`, in an order that is random but always the same.
pub(crate) fn all(calls: &[Call]) -> Vec<Fault> {
    let mut sites: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut functions: BTreeMap<&str, usize> = BTreeMap::new();
    let mut reads = BTreeSet::new();
    for call in calls {
        *sites.entry((&call.function, &call.site)).or_default() += 1;
        if !call.path.contains("/run/") {
            reads.insert(call.site.as_str());
        }
        *functions.entry(&call.function).or_default() += 1;
    }
    let mut faults = vec![];
    for ((function, site), n) in sites {
        let known = EFFECTS.iter().find(|(name, _)| *name == function);
        let mut turns = vec![1, 2.min(n), n.div_ceil(2), n];
        turns.sort();
        turns.dedup();
        for turn in turns {
            let effects = known.iter().flat_map(|(_, effects)| *effects);
            // Nothing is read-only to who reads.
            let effects = effects.filter(|e| **e != "30" || !reads.contains(site));
            faults.extend(effects.map(|e| Fault(format!("{function}:{site}:{turn}:{e}"))));
        }
    }
    for (function, effect) in LASTING {
        let n = functions.get(function).copied().unwrap_or(0);
        faults.extend((1..=n).map(|turn| Fault(format!("{function}:*:{turn}+:{effect}"))));
    }
    for signal in SIGNALS {
        faults.extend((1..=calls.len()).map(|turn| Fault(format!("*:*:{turn}:{signal}"))));
    }
    Rng::new(18, 0).shuffle(&mut faults);
    faults
}
