//! Memory: what the machine has, what the control groups around the process leave of it, and
//! whether it comes in huge pages.

use super::finding::{Finding, size};
use std::path::Path;

/// Less than this and not even the demonstration runs.
const LEAST: u64 = 256 << 20;
/// Less than this and only the smallest models are trained.
const LITTLE: u64 = 2 << 30;
/// A limit of control groups of the first version that is none.
const NO_LIMIT: u64 = 1 << 60;

/// Checks memory and huge pages from the files under `root`, the root of the file system.
pub(super) fn look(root: &Path) -> Vec<Finding> {
    vec![memory(root), huge_pages(root)]
}

fn memory(root: &Path) -> Finding {
    const NAME: &str = "memory";
    let info = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let line = |key: &str| field(&info, key).map(|kib| kib << 10);
    let (Some(total), Some(available)) = (line("MemTotal:"), line("MemAvailable:")) else {
        return Finding::note(NAME, "this system does not say how much there is");
    };
    let group = tightest_group(root);
    let free = group.map_or(available, |g| available.min(g.free));
    let limit = match group {
        Some(g) => format!(
            "; a control group allows {}, of which {} are free",
            size(g.limit),
            size(g.free)
        ),
        None => "; no control group limits it".to_string(),
    };
    let text = format!("{} of {} available{limit}", size(available), size(total));
    let finding = match free {
        f if f < LEAST => {
            let advice = format!(
                "at least {} must be free: end other programs, or raise the limit",
                size(LEAST)
            );
            Finding::problem(NAME, text, advice)
        }
        f if f < LITTLE => Finding::note(NAME, text).advise(
            "for small models only; --optimizer-state compact and --gradient-checkpointing save \
             some",
        ),
        _ => Finding::ok(NAME, text),
    };
    let finding = finding.with("total", total).with("available", available).with("usable", free);
    match group {
        Some(g) => finding.with("group_limit", g.limit).with("group_free", g.free),
        None => finding,
    }
}

/// Bytes that are free on this machine and in the control groups around the process; `None` where
/// the system does not say.
pub(in crate::pipeline) fn free() -> Option<u64> {
    let root = Path::new("/");
    let info = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let available = field(&info, "MemAvailable:")? << 10;
    Some(tightest_group(root).map_or(available, |g| available.min(g.free)))
}

/// The number after `key` in a file of lines of a key and a number.
fn field(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| if words.next()? == key { words.next()?.parse().ok() } else { None })
}

/// A control group's limit, and what is free of it, in bytes.
#[derive(Clone, Copy)]
struct Group {
    limit: u64,
    free: u64,
}

/// Returns the control group with the least free memory among the nested ones of this process; None
/// if no group has a limit.
fn tightest_group(root: &Path) -> Option<Group> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut all = vec![];
    for line in groups.lines() {
        // `0::/path` of the second version, `N:controllers:/path` of the first.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, files) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"]),
            c if c.split(',').any(|c| c == "memory") => (
                "sys/fs/cgroup/memory",
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
            ),
            _ => continue,
        };
        // In a container the path may be of the machine outside; then only the last one is there.
        let inner = Path::new(path.trim_start_matches('/'));
        all.extend(inner.ancestors().filter_map(|p| group(&root.join(base).join(p), files)));
    }
    all.into_iter().min_by_key(|g| g.free)
}

fn group(dir: &Path, [limit, used, cached]: [&str; 3]) -> Option<Group> {
    let number = |name| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(limit).filter(|l| *l < NO_LIMIT)?;
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    // Pages of files that nobody uses are given back.
    let used = number(used).unwrap_or(0).saturating_sub(field(&stat, cached).unwrap_or(0));
    Some(Group { limit, free: limit.saturating_sub(used) })
}

/// Weights are asked for in huge pages where the system gives them on request.
fn huge_pages(root: &Path) -> Finding {
    const NAME: &str = "huge pages";
    let file = root.join("sys/kernel/mm/transparent_hugepage/enabled");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mode =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(mode, _)| mode);
    let finding = match mode {
        Some(mode @ ("always" | "madvise")) => {
            Finding::ok(NAME, format!("{mode}: weights lie in them"))
        }
        Some(mode) => {
            Finding::note(NAME, format!("{mode}: weights lie in small pages, which reads slower"))
                .advise("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
        }
        None => Finding::note(NAME, "this system has none on request; weights lie in small pages"),
    };
    finding.with("mode", mode)
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       33554432 kB\nMemFree: 7 kB\nMemAvailable:   16777216 kB\n";

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_tightest_group_around_counts() {
        let dir = root(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/outer/memory.current", "4294967296\n"),
            ("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 1073741824\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
        ]);
        let f = memory(dir.path());
        assert_eq!(f.mark, Mark::Ok);
        assert_eq!(f.values["total"], 32u64 << 30);
        assert_eq!(
            (&f.values["group_limit"], &f.values["usable"]),
            (&(8u64 << 30).into(), &(5u64 << 30).into())
        );
        std::fs::write(dir.path().join("sys/fs/cgroup/outer/inner/memory.max"), "104857600")
            .unwrap();
        let f = memory(dir.path());
        assert!(f.mark == Mark::Problem && f.advice.is_some(), "{}", f.text);
        assert!(f.text.contains("allows 100 MiB"), "{}", f.text);
    }

    #[test]
    fn groups_of_the_first_version_and_no_limit() {
        let dir = root(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:cpu:/x\n3:blkio,memory:/job\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
        ]);
        assert!(memory(dir.path()).text.ends_with("no control group limits it"));
        std::fs::create_dir(dir.path().join("sys/fs/cgroup/memory/job")).unwrap();
        std::fs::write(
            dir.path().join("sys/fs/cgroup/memory/job/memory.limit_in_bytes"),
            "1073741824",
        )
        .unwrap();
        let f = memory(dir.path());
        assert_eq!((f.mark, &f.values["usable"]), (Mark::Note, &(1u64 << 30).into()));
        assert_eq!(memory(Path::new("/nowhere")).mark, Mark::Note);
    }

    #[test]
    fn huge_pages_have_a_mode() {
        let enabled = "sys/kernel/mm/transparent_hugepage/enabled";
        let mark = |text: &str| huge_pages(root(&[(enabled, text)]).path()).mark;
        assert_eq!(mark("always [madvise] never\n"), Mark::Ok);
        assert_eq!(mark("always madvise [never]\n"), Mark::Note);
        assert_eq!(huge_pages(Path::new("/nowhere")).mark, Mark::Note);
    }
}
