//! The commands: the keys that each has as flags, and the names of these flags.

use crate::pipeline::config::keys::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, Key, PLAN, PPO, REWARD, SFT, TRAIN, VERIFY,
};
use crate::pipeline::config::{
    BENCHMARK, BenchConfig, CHECKUP, ChatConfig, DoctorConfig, EVALUATION, EvalConfig, INSPECTION,
    InspectConfig, PLANNING, RUN, RunConfig, TALK, VERIFICATION, VerifyConfig, defaults,
};

/// One command.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) bit: Commands,
    pub(super) keys: &'static [Key],
}

/// All commands.
pub(super) static COMMANDS: &[Entry] = &[
    Entry {
        name: "train",
        about: "Run the steps one after the other: SFT, reward model, PPO",
        bit: TRAIN,
        keys: RUN,
    },
    Entry { name: "sft", about: "Step 1 alone: supervised finetuning", bit: SFT, keys: RUN },
    Entry { name: "reward", about: "Step 2 alone: the reward model", bit: REWARD, keys: RUN },
    Entry {
        name: "ppo",
        about: "Step 3 alone: PPO against a reward model or rule",
        bit: PPO,
        keys: RUN,
    },
    Entry { name: "chat", about: "Talk to a model", bit: CHAT, keys: TALK },
    Entry {
        name: "eval",
        about: "Score a model's answers, beside a baseline's",
        bit: EVAL,
        keys: EVALUATION,
    },
    Entry {
        name: "inspect",
        about: "Tell what a model is, what of it would be trained, and the memory it takes",
        bit: INSPECT,
        keys: INSPECTION,
    },
    Entry {
        name: "plan",
        about: "Tell what a run would take: memory, bytes between ranks, time; with the flags of `duplex train`",
        bit: PLAN,
        keys: RUN,
    },
    Entry {
        name: "verify",
        about: "Check a checkpoint, the folder of a run, or a model: checksums, shapes, finite values",
        bit: VERIFY,
        keys: VERIFICATION,
    },
    Entry {
        name: "bench",
        about: "Measure generation, training and PPO on this machine",
        bit: BENCH,
        keys: BENCHMARK,
    },
    Entry {
        name: "doctor",
        about: "Look at this machine: what a run would use, and what would stop it",
        bit: DOCTOR,
        keys: CHECKUP,
    },
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
        self.bits() & (TRAIN | SFT | REWARD | PPO) != 0
    }

    /// The one step this command runs; None for `train`, which has a key for it.
    pub(super) fn step(&self) -> Option<u32> {
        match self.bit {
            SFT => Some(1),
            REWARD => Some(2),
            PPO => Some(3),
            _ => None,
        }
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
