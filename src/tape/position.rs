//! The place where the programs of a workspace are, for another thread to read. Each program and
//! each operator that begins updates it, except those of a recorded program. It watches nothing
//! itself.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A place that one thread updates and another reads. An update takes a lock that is nearly always
/// free, and the clock: some tens of nanoseconds.
#[derive(Debug, Default)]
pub struct Position(Mutex<Place>);

/// The program, segment and operator that was begun last.
#[derive(Clone, Debug, Default)]
pub struct Place {
    program: String,
    operator: &'static str,
    segment: usize,
    backward: bool,
    since: Option<Instant>,
}

impl Position {
    /// The program, segment and operator that was begun last.
    pub fn last(&self) -> Place {
        self.place().clone()
    }

    pub(super) fn enter(&self, program: &str) {
        let mut place = self.place();
        *place = Place { since: Some(Instant::now()), ..Place::default() };
        place.program.push_str(program);
    }

    pub(super) fn at(&self, operator: &'static str, segment: usize, backward: bool) {
        let mut place = self.place();
        (place.operator, place.segment, place.backward) = (operator, segment, backward);
        place.since = Some(Instant::now());
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Time since then; none where nothing was begun yet.
    pub fn age(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { program, operator, segment, backward, .. } = self;
        match (program.as_str(), *operator) {
            ("", _) => f.write_str("no program has begun"),
            (program, "") => write!(f, "program {program:?}"),
            (program, operator) => {
                let way = if *backward { " backward" } else { "" };
                write!(f, "program {program:?}, segment {segment}, operator {operator}{way}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_was_begun_is_told() {
        let position = Position::default();
        assert!(position.last().age().is_none());
        assert_eq!(position.last().to_string(), "no program has begun");
        position.enter("sft 3");
        assert_eq!(position.last().to_string(), "program \"sft 3\"");
        position.at("linear", 4, true);
        let told = position.last().to_string();
        assert_eq!(told, "program \"sft 3\", segment 4, operator linear backward");
        position.enter("adamw 3");
        assert_eq!(position.last().to_string(), "program \"adamw 3\"");
        assert!(position.last().age().is_some());
    }
}
