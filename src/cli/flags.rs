//! The command line for clap: how keys become flags. A key's flag is its bare name, with dashes;
//! where a command has the bare name in several sections, the section goes before it
//! (`--sft-learning-rate`).

use super::commands::{COMMANDS, Entry};
use super::deepspeed;
use crate::config::{Key, Kind, defaults};
use crate::pipeline::config::{PRESETS, PlanConfig};
use clap::{Arg, ArgAction, Command};

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
    if entry.own_keys().any(|k| k.path == "stages") {
        command = command.after_help(
            "A flag of a stage works without the stage's name where only one stage of the run has \
             it.",
        );
    }
    let more = entry.more().iter().zip(defaults::<PlanConfig>(entry.more()));
    for (key, default) in entry.keys.iter().zip(entry.defaults()).chain(more) {
        if key.commands & entry.bits() != 0 {
            command = command.arg(flag(entry, key, default));
        }
        if key.path == "path" {
            let place = Arg::new("DIRECTORY").help(key.help).conflicts_with(key.path);
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
        Kind::Named { all, .. } => ("WORD", format!(" [{}]", all().join("|"))),
        Kind::Device => ("DEVICE", " [auto|cpu|cuda|cuda:N|emulated]".into()),
        Kind::Text | Kind::List(_) => ("TEXT", String::new()),
    };
    let default = default.map_or(String::new(), |d| format!(" [default: {d}]"));
    let section = match key.section() {
        "" if entry.trains() => Some("Options of all stages".to_string()),
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
