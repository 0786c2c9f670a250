//! Limits that the system sets to this process.

use super::finding::{Finding, size};
use libc::rlimit;

/// One limit, and how little of it is too little.
struct Limit {
    name: &'static str,
    /// Wide enough for the type of every C library.
    number: i64,
    /// True if the limit counts bytes.
    bytes: bool,
    /// Below this a run stops.
    least: u64,
    /// Below this it may, or is slower; [`u64::MAX`] where only no limit is good.
    enough: u64,
    advice: &'static str,
}

const LIMITS: [Limit; 5] = [
    Limit {
        name: "open files",
        number: libc::RLIMIT_NOFILE as i64,
        bytes: false,
        least: 32,
        enough: 256,
        advice: "raise it with `ulimit -n 1024`: each shard of a model is an open file",
    },
    Limit {
        name: "locked memory",
        number: libc::RLIMIT_MEMLOCK as i64,
        bytes: true,
        least: 0,
        enough: 64 << 10,
        advice: "raise it with `ulimit -l unlimited` where network cards are to reach memory \
            themselves",
    },
    Limit {
        name: "stack",
        number: libc::RLIMIT_STACK as i64,
        bytes: true,
        least: 256 << 10,
        enough: 2 << 20,
        advice: "raise it with `ulimit -s 8192`",
    },
    Limit {
        name: "file size",
        number: libc::RLIMIT_FSIZE as i64,
        bytes: true,
        least: 16 << 20,
        enough: u64::MAX,
        advice: "raise it with `ulimit -f unlimited`, or save smaller files with --max-shard-size",
    },
    Limit {
        name: "address space",
        number: libc::RLIMIT_AS as i64,
        bytes: true,
        least: 1 << 30,
        enough: u64::MAX,
        advice: "raise it with `ulimit -v unlimited`: weights are mapped as well as held",
    },
];

pub(super) fn look() -> Vec<Finding> {
    LIMITS.iter().filter_map(|limit| Some(judge(limit, get(limit.number)?))).collect()
}

/// The limit in force; [`u64::MAX`] where there is none.
fn get(number: i64) -> Option<u64> {
    let mut limit = rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the right type.
    let code = unsafe { libc::getrlimit(number as _, &raw mut limit) };
    let value = if limit.rlim_cur == libc::RLIM_INFINITY { u64::MAX } else { limit.rlim_cur };
    (code == 0).then_some(value)
}

fn judge(limit: &Limit, value: u64) -> Finding {
    let text = match value {
        u64::MAX => "unlimited".to_string(),
        v if limit.bytes => size(v),
        v => v.to_string(),
    };
    let finding = match value {
        v if v < limit.least => Finding::problem(limit.name, text, limit.advice),
        v if v < limit.enough => Finding::note(limit.name, text).advise(limit.advice),
        _ => Finding::ok(limit.name, text),
    };
    finding.with("limit", (value != u64::MAX).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn every_limit_of_this_process_is_told_and_judged() {
        assert_eq!(look().len(), LIMITS.len());
        let marks = |i: usize, values: [u64; 3]| values.map(|v| judge(&LIMITS[i], v).mark);
        assert_eq!(marks(0, [16, 64, 1024]), [Mark::Problem, Mark::Note, Mark::Ok]);
        assert_eq!(marks(1, [0, 4096, 8 << 20]), [Mark::Note, Mark::Note, Mark::Ok]);
        assert_eq!(marks(3, [1 << 20, 1 << 30, u64::MAX]), [Mark::Problem, Mark::Note, Mark::Ok]);
        assert!(judge(&LIMITS[3], u64::MAX).values["limit"].is_null());
    }
}
