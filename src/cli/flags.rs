//! The commands, and how keys become flags. A key's flag is its bare name, with dashes; where a
//! command has the bare name in several sections, the section goes before it
//! (`--sft-learning-rate`).

use super::deepspeed;
use crate::pipeline::config::keys::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, Key, Kind, PLAN, PPO, REWARD, SFT, TRAIN, VERIFY,
};
use crate::pipeline::config::{
    BENCHMARK, BenchConfig, CHECKUP, ChatConfig, DoctorConfig, EVALUATION, EvalConfig, INSPECTION,
    InspectConfig, PLANNING, PRESETS, PlanConfig, RUN, RunConfig, TALK, VERIFICATION, VerifyConfig,
    defaults,
};
use clap::{Arg, ArgAction, Command};

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
    fn bits(&self) -> Commands {
        if self.bit == PLAN { PLAN | TRAIN } else { self.bit }
    }

    /// Keys of its own beside those of a run.
    fn more(&self) -> &'static [Key] {
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

    fn defaults(&self) -> Vec<Option<String>> {
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

/// The whole command line, for clap.
pub(super) fn command() -> Command {
    let about = "RLHF training in one binary: supervised finetuning, reward model, PPO.";
    Command::new("duplex")
        .bin_name("duplex")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .after_help("`duplex COMMAND --help` lists the flags of a command.")
        .max_term_width(110)
        .subcommands(COMMANDS.iter().map(subcommand))
}

/// A command; its flags are made when it is the one that was given.
fn subcommand(entry: &'static Entry) -> Command {
    Command::new(entry.name).about(entry.about).defer(|command| {
        match COMMANDS.iter().find(|entry| entry.name == command.get_name()) {
            Some(entry) => with_flags(command, entry),
            None => command,
        }
    })
}

fn with_flags(command: Command, entry: &'static Entry) -> Command {
    let mut command = command.args(common(entry)).args(deepspeed::arguments(entry));
    let more = entry.more().iter().zip(defaults::<PlanConfig>(entry.more()));
    for (key, default) in entry.keys.iter().zip(entry.defaults()).chain(more) {
        if key.commands & entry.bits() != 0 {
            command = command.arg(flag(entry, key, default));
        }
        if key.path == "path" {
            let place = Arg::new("FOLDER").help(key.help).conflicts_with(key.path);
            command = command.arg(place);
        }
    }
    command
}

fn flag(entry: &Entry, key: &'static Key, default: Option<String>) -> Arg {
    let item = if let Kind::List(item) = &key.kind { item } else { &key.kind };
    let list = matches!(key.kind, Kind::List(_));
    let (name, choices) = match item {
        Kind::Bool => ("true|false", String::new()),
        Kind::Int { .. } => ("N", String::new()),
        Kind::Float { .. } => ("X", String::new()),
        Kind::Bytes => ("SIZE", String::new()),
        Kind::Every => ("N|TIME", String::new()),
        Kind::Time => ("TIME", String::new()),
        Kind::Choice(words) => ("WORD", format!(" [{}]", words.join("|"))),
        Kind::Device => ("DEVICE", " [auto|cpu|cuda|cuda:N|emulated]".into()),
        Kind::Text | Kind::List(_) => ("TEXT", String::new()),
    };
    let default = default.map_or(String::new(), |d| format!(" [default: {d}]"));
    let section = match key.section() {
        "" if entry.trains() => Some("Options of all steps".to_string()),
        "" => None,
        section => Some(format!("Options of [{section}]")),
    };
    let count = match (list, key.alone) {
        (true, _) => (1..).into(),
        (false, Some(_)) => (0..=1).into(),
        (false, None) => clap::builder::ValueRange::SINGLE,
    };
    let mut arg = Arg::new(key.path)
        .long(entry.flag(key))
        .aliases(entry.aliases(key))
        .value_name(name)
        .help(format!("{}{choices}{default}", key.help))
        .num_args(count)
        .allow_negative_numbers(true)
        .action(if list { ArgAction::Append } else { ArgAction::Set });
    if matches!(key.path, "prompt" | "system") {
        arg = arg.allow_hyphen_values(true);
    }
    if let Some(section) = section {
        arg = arg.help_heading(section);
    }
    if let Some(value) = key.alone {
        arg = arg.default_missing_value(value);
    }
    arg
}

/// Flags that are not keys.
fn common(entry: &Entry) -> Vec<Arg> {
    let mut args = vec![
        Arg::new("config").long("config").value_name("FILE").help("TOML file with these keys"),
        Arg::new("set")
            .long("set")
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help("set a key by its dotted name, over everything else"),
        Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("print the resulting configuration as TOML, and stop"),
    ];
    if entry.trains() {
        let list: Vec<String> =
            PRESETS.iter().map(|p| format!("{} ({})", p.name, p.help)).collect();
        args.push(
            Arg::new("preset")
                .long("preset")
                .value_name("NAME")
                .help(format!("values between the defaults and the file: {}", list.join("; "))),
        );
    }
    args
}
