//! The commands: the keys that each has as flags, and the names of these flags.

use crate::algo::{ALGORITHMS, Algorithm};
use crate::config::key::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, PLAN, RUNS, TRAIN, VERIFY, algorithm,
};
use crate::config::{Key, defaults};
use crate::pipeline::config::{
    BENCHMARK, BenchConfig, CHECKUP, ChatConfig, DoctorConfig, EVALUATION, EvalConfig, INSPECTION,
    InspectConfig, PLANNING, RUN, RunConfig, TALK, VERIFICATION, VerifyConfig,
};
use std::sync::LazyLock;

/// One command.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) bit: Commands,
    pub(super) keys: &'static [Key],
    /// The one stage that it runs; None for `train`, which has a key for them.
    pub(super) stage: Option<&'static Algorithm>,
}

/// All commands: `train`, one for each algorithm, and those that do not train.
pub(super) static COMMANDS: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let about = "Run stages in order: supervised finetuning, reward model, PPO";
    let train = Entry { name: "train", about, bit: TRAIN, keys: &RUN, stage: None };
    let stage = |(i, of): (usize, &&'static Algorithm)| Entry {
        name: of.name,
        about: of.about,
        bit: algorithm(i),
        keys: &RUN,
        stage: Some(of),
    };
    let others = OTHERS.iter().map(|(name, about, bit, keys)| Entry {
        name,
        about,
        bit: *bit,
        keys: keys(),
        stage: None,
    });
    let stages = ALGORITHMS.iter().enumerate().map(stage);
    std::iter::once(train).chain(stages).chain(others).collect()
});

/// Name, help and keys of a command.
type Other = (&'static str, &'static str, Commands, fn() -> &'static [Key]);

static OTHERS: &[Other] = &[
    ("chat", "Talk to a model", CHAT, || TALK),
    ("eval", "Score a model's responses, next to a baseline's", EVAL, || EVALUATION),
    (
        "inspect",
        "Describe a model: what it is, what would be trained, and the memory it takes",
        INSPECT,
        || INSPECTION,
    ),
    (
        "plan",
        "Plan a run without starting it: memory, communication, time; takes the flags of `duplex \
         train`",
        PLAN,
        || &RUN,
    ),
    (
        "verify",
        "Check a checkpoint, a run directory, or a model: checksums, shapes, finite values",
        VERIFY,
        || VERIFICATION,
    ),
    ("bench", "Measure generation, training and PPO on this machine", BENCH, || BENCHMARK),
    ("doctor", "Check this machine: what a run would use, and what would stop it", DOCTOR, || {
        CHECKUP
    }),
];

impl Entry {
    /// The keys this command has as flags.
    pub(super) fn own_keys(&self) -> impl Iterator<Item = &'static Key> {
        let bits = self.bits();
        self.keys.iter().filter(move |k| k.commands & bits != 0).chain(self.more())
    }

    /// The commands whose keys it has: a plan is one of a training run.
    pub(super) fn bits(&self) -> Commands {
        if self.bit == PLAN { PLAN | TRAIN } else { self.bit }
    }

    /// Keys of its own beside those of a run.
    pub(super) fn more(&self) -> &'static [Key] {
        if self.bit == PLAN { PLANNING } else { &[] }
    }

    /// True if the command is a training run and takes the keys of one.
    pub(super) fn trains(&self) -> bool {
        self.bits() & RUNS != 0
    }

    /// The flag of `key` in this command, without dashes before it.
    pub(super) fn flag(&self, key: &Key) -> String {
        let unique = self.own_keys().filter(|k| k.leaf() == key.leaf()).count() == 1;
        let name = if unique { key.leaf().to_string() } else { key.path.replace('.', "_") };
        name.replace('_', "-")
    }

    /// Further names of that flag: with its section, and DeepSpeed-Chat's.
    pub(super) fn aliases(&self, key: &Key) -> Vec<String> {
        let flag = self.flag(key);
        let full = key.path.replace(['.', '_'], "-");
        let others = key.aliases.iter().filter(|(bits, _)| bits & self.bits() != 0);
        let others = others.map(|(_, name)| name.to_string());
        std::iter::once(full).chain(others).filter(|name| *name != flag).collect()
    }

    pub(super) fn defaults(&self) -> Vec<Option<String>> {
        match self.bit {
            CHAT => defaults::<ChatConfig>(self.keys),
            EVAL => defaults::<EvalConfig>(self.keys),
            INSPECT => defaults::<InspectConfig>(self.keys),
            BENCH => defaults::<BenchConfig>(self.keys),
            VERIFY => defaults::<VerifyConfig>(self.keys),
            DOCTOR => defaults::<DoctorConfig>(self.keys),
            _ => defaults::<RunConfig>(self.keys),
        }
    }
}
