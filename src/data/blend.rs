//! Blends data sets and divides them between the three uses: which rows each use gets to train on,
//! which are held out, and in what order an epoch takes them. It knows nothing of tokens.
//!
//! - A set is a path with a weight; the path is a file, or a directory whose files have the names
//!   of splits (`folder`).
//! - Held-out rows are the directory's own split, or else the share `eval_fraction` of the rows,
//!   taken off before anything else.
//! - Proportions such as "2,4,4" give each use its own rows of every set; sets for texts only are
//!   given to that whole. The division is DeepSpeed-Chat's, row for row, where every row is fit for
//!   every use. Rows that are fit for some only are divided among those, in their proportions.
//! - An epoch takes `round(weight * n)` of a set's `n` rows: below 1 it takes another part of them
//!   each epoch until all were seen, above 1 it repeats some. The order is new in every epoch.

use super::bad_rows::{BadRows, OnBadRow};
use super::folder;
use super::share::{self, Kind, Use};
use super::source;
use super::split::cut;
use super::types::Row;
use crate::base::{Error, Result, Rng, is_dir};
use crate::formats::Fingerprint;
use std::path::{Path, PathBuf};

/// One data set of a blend.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// File or directory.
    pub path: PathBuf,
    /// Share of its rows an epoch uses; 1 is all of them once.
    pub weight: f64,
}

/// The sets to blend, and how to divide them between the uses.
#[derive(Clone, Debug)]
pub struct BlendConfig {
    /// Sets divided between the uses.
    pub data: Vec<Spec>,
    /// Sets given whole to [`Use::Texts`].
    pub sft_only: Vec<Spec>,
    /// Proportions of [`Use::ALL`].
    pub split: [f64; 3],
    /// Share of the rows held out where a directory has no file for it; in `0..1`.
    pub eval_fraction: f64,
    /// Decides the division.
    pub seed: u32,
    /// How unusable rows are handled.
    pub on_bad: OnBadRow,
    /// True if rows go only to uses that they are fit for; else they are refused one by one.
    pub by_use: bool,
    /// True if rows keep all their columns, for a reward that reads them.
    pub columns: bool,
}

/// The rows that one use gets from one set.
#[derive(Clone, Debug)]
pub struct Part {
    /// Training rows.
    pub train: Vec<Row>,
    /// Held-out rows, disjoint from all training rows. May be empty.
    pub eval: Vec<Row>,
    /// The weight of the set.
    pub weight: f64,
}

/// Everything read, divided between the uses.
#[derive(Clone, Debug)]
pub struct Blend {
    uses: [Vec<Part>; 3],
    split: [f64; 3],
    sets: Vec<String>,
    /// The files read, with the fingerprints of what was read.
    pub files: Vec<(PathBuf, Fingerprint)>,
    /// The rows left out of all files.
    pub bad: BadRows,
    /// The rows that are fit for no use with a share: set, kind, number.
    pub unused: Vec<(String, Kind, usize)>,
}

impl Blend {
    /// Reads and divides the sets.
    pub fn load(config: &BlendConfig) -> Result<Blend> {
        if !(0.0..1.0).contains(&config.eval_fraction) {
            let given = config.eval_fraction;
            return Err(Error::user(format!("eval fraction {given} is not in 0..1")));
        }
        let all: Vec<&Spec> = config.data.iter().chain(&config.sft_only).collect();
        if all.is_empty() {
            return Err(Error::user("no data set given; name one"));
        }
        let names: Vec<String> = all.iter().map(|s| s.path.display().to_string()).collect();
        let mut blend = Blend {
            uses: Default::default(),
            split: config.split,
            sets: names,
            files: Vec::new(),
            bad: BadRows::default(),
            unused: Vec::new(),
        };
        for (i, spec) in all.into_iter().enumerate() {
            let split = if i < config.data.len() { config.split } else { [1.0, 0.0, 0.0] };
            let (train, eval) = blend.read_set(&spec.path, config)?;
            let divide = |rows| share::divide(rows, &split, config.seed, config.by_use);
            let ((train, unused), (eval, unused_eval)) = (divide(train), divide(eval));
            let unused = unused.iter().chain(&unused_eval);
            let counts = share::count(unused);
            blend.unused.extend(counts.map(|(kind, n)| (blend.sets[i].clone(), kind, n)));
            for (k, (train, eval)) in train.into_iter().zip(eval).enumerate() {
                blend.uses[k].push(Part { train, eval, weight: spec.weight });
            }
        }
        Ok(blend)
    }

    /// The kinds of rows that a use gets from each set that gives it some: a line each.
    pub fn tally(&self, of: Use) -> Vec<String> {
        let parts = self.uses[of as usize].iter().zip(&self.sets);
        let parts = parts.filter(|(part, _)| !part.train.is_empty() || !part.eval.is_empty());
        let line = |(part, set): (&Part, &String)| {
            let kinds = share::count(part.train.iter());
            let kinds: Vec<String> = kinds.map(|(kind, n)| kind.counted(n)).collect();
            let held_out = match part.eval.len() {
                0 => String::new(),
                n => format!(" ({n} held out)"),
            };
            format!("{} of {set}{held_out}", kinds.join(", "))
        };
        parts.map(line).collect()
    }

    /// The parts of a use, one for each set. An error when they hold no training row for `stage`.
    pub fn parts(&self, of: Use, stage: &str) -> Result<&[Part]> {
        let parts = &self.uses[of as usize];
        if parts.iter().any(|p| !p.train.is_empty()) {
            return Ok(parts);
        }
        let usable = self.rows().filter(|row| share::users(row)[of as usize]).count();
        let names = self.sets.join(", ");
        Err(Error::user(match usable {
            0 => format!(
                "no row for {stage}, which needs {}; data of {names}: {}",
                of.needs(),
                self.holds().join(", ")
            ),
            _ => {
                let [a, b, c] = self.split;
                format!(
                    "split {a},{b},{c} leaves no row of {names} for {stage}; give more data or \
                     another split"
                )
            }
        }))
    }

    /// All rows by their kinds.
    fn holds(&self) -> Vec<String> {
        let mut all: Vec<(Kind, usize)> = share::count(self.rows()).collect();
        for (_, kind, n) in &self.unused {
            match all.iter_mut().find(|(k, _)| k == kind) {
                Some((_, sum)) => *sum += n,
                None => all.push((*kind, *n)),
            }
        }
        all.into_iter().map(|(kind, n)| kind.counted(n)).collect()
    }

    /// All rows, of all uses.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let parts = self.uses.iter().flatten();
        parts.flat_map(|part| part.train.iter().chain(&part.eval))
    }

    /// Training and held-out rows of one set.
    fn read_set(&mut self, path: &Path, config: &BlendConfig) -> Result<(Vec<Row>, Vec<Row>)> {
        let directory = is_dir(path)?;
        let (train, eval) = match directory {
            true => folder::sets(path)?,
            false => (vec![path.to_owned()], vec![]),
        };
        if directory {
            let used = [&train[..], &eval].concat();
            self.bad.notes.extend(folder::unread(path, &used)?);
        }
        let rows = self.read_all(train, config)?;
        if !eval.is_empty() {
            return Ok((rows, self.read_all(eval, config)?));
        }
        if config.eval_fraction == 0.0 {
            return Ok((rows, Vec::new()));
        }
        let f = config.eval_fraction;
        let mut parts = cut(rows, &[1.0 - f, f], config.seed);
        let eval = parts.pop().unwrap_or_default();
        Ok((parts.pop().unwrap_or_default(), eval))
    }

    fn read_all(&mut self, files: Vec<PathBuf>, config: &BlendConfig) -> Result<Vec<Row>> {
        let mut rows = vec![];
        for file in files {
            rows.extend(self.read(file, config)?);
        }
        Ok(rows)
    }

    fn read(&mut self, path: PathBuf, config: &BlendConfig) -> Result<Vec<Row>> {
        let (rows, bad, stamp) = source::read(&path, config.on_bad, config.columns)?;
        self.files.push((path, stamp));
        self.bad.add(bad);
        Ok(rows)
    }
}

/// Rows of one epoch over sets, each given as (rows, weight).
pub fn epoch_rows(sets: &[(usize, f64)]) -> u64 {
    sets.iter().map(|&(n, weight)| taken(n, weight)).sum()
}

/// Rows that an epoch takes of a set of `n`.
fn taken(n: usize, weight: f64) -> u64 {
    match n {
        0 => 0,
        n => ((weight * n as f64).round() as u64).max(1),
    }
}

/// The order of one epoch over sets laid end to end, each given as (rows, weight): indices into
/// the whole. It depends only on its arguments.
pub fn epoch_order(sets: &[(usize, f64)], seed: u64, epoch: u64) -> Vec<usize> {
    let mut order = Vec::new();
    let mut start = 0;
    for (set, &(n, weight)) in sets.iter().enumerate() {
        let take = taken(n, weight);
        if take > 0 {
            // One fixed permutation of the set, which the epochs walk along in turn.
            let mut walk: Vec<usize> = (start..start + n).collect();
            Rng::new(seed, stream(0, set as u64)).shuffle(&mut walk);
            let from = (u128::from(epoch) * u128::from(take) % n as u128) as usize;
            order.extend(walk.iter().cycle().skip(from).take(take as usize));
        }
        start += n;
    }
    Rng::new(seed, stream(1, epoch)).shuffle(&mut order);
    order
}

/// Keeps the streams of the walks apart from those of the epochs.
fn stream(kind: u64, number: u64) -> u64 {
    kind << 48 | (number & 0xffff_ffff_ffff)
}

#[cfg(test)]
#[path = "blend_tests.rs"]
mod tests;
