//! From the words of a command line to a checked configuration: preset, file, flags and `--set` in
//! that order; and every mistake as one line.

use super::bare::with_stages;
use super::commands::{COMMANDS, Entry};
use super::deepspeed;
use super::flags::command;
use crate::base::{Error, Result};
use crate::config::key::{BENCH, CHAT, DOCTOR, EVAL, INSPECT, PLAN, VERIFY};
use crate::config::{Key, Kind, Setting, flag_setting, nearest, read_toml, set_setting, to_toml};
use crate::model::resolve_model;
use crate::pipeline::config::{
    BENCHMARK, BenchConfig, CHECKUP, ChatConfig, DoctorConfig, EVALUATION, EvalConfig, INSPECTION,
    InspectConfig, PlanConfig, RUN, RunConfig, TALK, VERIFICATION, VerifyConfig, preset_settings,
};
use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The action that the command line requests.
#[derive(Debug)]
pub(super) enum Request {
    /// Print this text and stop.
    Print(String),
    /// Train.
    Run(Box<RunConfig>),
    /// `duplex chat`
    Chat(ChatConfig),
    /// `duplex eval`
    Eval(EvalConfig),
    /// `duplex inspect`
    Inspect(InspectConfig),
    /// `duplex verify`
    Verify(VerifyConfig),
    /// `duplex bench`
    Bench(BenchConfig),
    /// `duplex plan`
    Plan(Box<RunConfig>, PlanConfig),
    /// `duplex doctor`
    Doctor(DoctorConfig),
}

/// Reads a command line, the program's name first. Returns also what is to be warned of.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<(Request, Vec<String>)> {
    let mut warnings = vec![];
    parse_words(arguments, &mut warnings).map(|request| (request, warnings))
}

fn parse_words(arguments: Vec<OsString>, warnings: &mut Vec<String>) -> Result<Request> {
    let words = normalise(arguments)?;
    let entry = words.get(1).and_then(|w| COMMANDS.iter().find(|c| c.name == w));
    let words = match entry {
        Some(entry) => with_stages(entry, words),
        None => words,
    };
    let matches = match command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Request::Print(e.to_string())),
        Err(e) => return Err(Error::user(error_line(entry, &e))),
    };
    let (Some(entry), Some((_, matches))) = (entry, matches.subcommand()) else {
        return Ok(Request::Print(command().render_help().to_string()));
    };
    let mut settings = settings(entry, matches, warnings)?;
    warnings.extend(deepspeed::read(entry, matches, &mut settings)?);
    let print = matches.get_flag("print-config");
    match entry.bit {
        CHAT => {
            let config = ChatConfig::resolve(&settings)?;
            Ok(if print { Request::Print(to_toml(TALK, &config)?) } else { Request::Chat(config) })
        }
        EVAL => {
            let config = EvalConfig::resolve(&settings)?;
            let text = || to_toml(EVALUATION, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Eval(config) })
        }
        INSPECT => {
            let config = InspectConfig::resolve(&settings)?;
            let text = || to_toml(INSPECTION, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Inspect(config) })
        }
        VERIFY => {
            let config = VerifyConfig::resolve(&settings)?;
            let text = || to_toml(VERIFICATION, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Verify(config) })
        }
        BENCH => {
            let config = BenchConfig::resolve(&settings)?;
            let text = || to_toml(BENCHMARK, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Bench(config) })
        }
        DOCTOR => {
            let config = DoctorConfig::resolve(&settings)?;
            let text = || to_toml(CHECKUP, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Doctor(config) })
        }
        PLAN => {
            let (own, run) =
                settings.into_iter().partition::<Vec<_>, _>(|s| s.key.commands == PLAN);
            let (run, plan) = (RunConfig::resolve(run)?, PlanConfig::resolve(&own)?);
            let text = || to_toml(&RUN, &run);
            Ok(if print { Request::Print(text()?) } else { Request::Plan(Box::new(run), plan) })
        }
        _ => {
            let mut config = RunConfig::resolve(settings)?;
            if let Some(stage) = entry.stage {
                config.stages = vec![stage];
            }
            // One line for all that changes nothing.
            for idle in config.idle_settings()? {
                match warnings.first_mut() {
                    Some(line) => line.push_str(&format!("; {idle}")),
                    None => warnings.push(idle),
                }
            }
            let text = || to_toml(&RUN, &config);
            Ok(if print { Request::Print(text()?) } else { Request::Run(Box::new(config)) })
        }
    }
}

/// Words as text, with dashes for the underscores of DeepSpeed-Chat's flag names.
fn normalise(arguments: Vec<OsString>) -> Result<Vec<String>> {
    let mut words = Vec::with_capacity(arguments.len());
    for (i, argument) in arguments.into_iter().enumerate() {
        let word = argument.into_string().map_err(|word| not_utf8(i, &word))?;
        words.push(match (word.strip_prefix("--"), word.split_once('=')) {
            (None, _) => word,
            (Some(_), Some((flag, value))) => format!("{}={value}", flag.replace('_', "-")),
            (Some(_), None) => word.replace('_', "-"),
        });
    }
    Ok(words)
}

/// The error of a word that is not UTF-8, most often a path.
fn not_utf8(number: usize, word: &OsStr) -> Error {
    Error::user(format!(
        "argument {number} is not UTF-8: {word:?}; paths are recorded in config.toml, which is \
         UTF-8: rename the file, or link to it by another name"
    ))
}

/// The layers above the defaults, lowest first.
fn settings(
    entry: &'static Entry,
    matches: &ArgMatches,
    warnings: &mut Vec<String>,
) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Ok(Some(name)) = matches.try_get_one::<String>("preset") {
        settings.extend(preset_settings(name)?);
    }
    if let Some(file) = matches.get_one::<String>("config") {
        settings.extend(read_toml(entry.keys, Path::new(file))?);
    }
    let missing = !settings.iter().any(|s| s.key.path == "path");
    let swallowed = if missing { swallowed(entry, matches)? } else { None };
    for key in entry.own_keys() {
        let place = (key.path == "path").then(|| matches.get_many::<String>("DIRECTORY")).flatten();
        let values = matches.get_many::<String>(key.path).or(place);
        let mut values: Vec<String> = values.into_iter().flatten().cloned().collect();
        match &swallowed {
            Some((list, _)) if list.path == key.path => drop(values.pop()),
            Some((_, model)) if key.path == "path" => values.push(model.clone()),
            _ => {}
        }
        if values.is_empty() {
            continue;
        }
        for value in &mut values {
            if let Some((meant, warning)) = meant(entry, key.path, value) {
                warnings.extend(warning);
                *value = meant;
            }
        }
        if let Kind::List(Kind::Named { .. }) = key.kind {
            values = values.iter().flat_map(|v| v.split(',')).map(str::to_string).collect();
        }
        settings.push(flag_setting(key, &entry.flag(key), &values)?);
    }
    for text in matches.get_many::<String>("set").into_iter().flatten() {
        settings.push(set_setting(entry.keys, text)?);
    }
    Ok(settings)
}

/// A list's last word that is the model of a command, whose place is empty: `duplex eval
/// --data-path a.jsonl MODEL`.
///
/// # Errors
/// The place is empty, and the words of lists are no model.
fn swallowed(
    entry: &'static Entry,
    matches: &ArgMatches,
) -> Result<Option<(&'static Key, String)>> {
    let given = |id: &str| matches.try_contains_id(id).unwrap_or(false);
    let has_place = entry.own_keys().any(|k| k.path == "path");
    let set = matches.get_many::<String>("set").into_iter().flatten();
    let by_set = set.into_iter().any(|text| text.trim_start().starts_with("path"));
    if !has_place || given("path") || given("DIRECTORY") || by_set {
        return Ok(None);
    }
    let mut lists = vec![];
    for key in entry.own_keys().filter(|k| matches!(k.kind, Kind::List(_))) {
        let Some(mut values) = matches.get_many::<String>(key.path) else { continue };
        let Some(last) = values.next_back() else { continue };
        if matches.get_many::<String>(key.path).is_some_and(|v| v.len() > 1) && is_model(last) {
            return Ok(Some((key, last.clone())));
        }
        lists.push(format!("--{}", entry.flag(key)));
    }
    match lists.first() {
        None => Ok(None),
        Some(list) => Err(Error::user(format!(
            "no model given; write `duplex {} DIRECTORY {list} ...`: {list} takes all words after \
             it",
            entry.name
        ))),
    }
}

/// True if a word names a model rather than data.
fn is_model(word: &str) -> bool {
    let path = Path::new(word);
    match path.exists() {
        true => ["config.json", "adapter_config.json"].iter().any(|f| path.join(f).is_file()),
        false => resolve_model(word).is_ok(),
    }
}

/// The value that other programs' spelling of it means here, perhaps with a warning.
fn meant(entry: &Entry, path: &str, value: &str) -> Option<(String, Option<String>)> {
    match (path, value) {
        ("dtype", "fp16" | "float16" | "half") => Some((
            "bf16".into(),
            Some(format!(
                "--dtype {value} is not offered: bf16 is used, which needs no loss scale"
            )),
        )),
        ("dtype", "bfloat16") => Some(("bf16".into(), None)),
        ("dtype", "fp32" | "float32") => Some(("f32".into(), None)),
        ("actor_model" | "reward_model", size) if entry.trains() => {
            deepspeed::opt_of_size(size).map(|name| (name, None))
        }
        _ => None,
    }
}

/// clap's error as one line.
fn error_line(entry: Option<&Entry>, e: &clap::Error) -> String {
    let context = |kind| match e.get(kind) {
        Some(ContextValue::String(s)) => s.as_str(),
        _ => "",
    };
    let given = context(ContextKind::InvalidArg);
    match (e.kind(), entry) {
        (ErrorKind::UnknownArgument, Some(entry)) if given.starts_with("--") => {
            let flag = given.trim_start_matches('-').split(['=', ' ']).next().unwrap_or("");
            unknown_flag(entry, flag)
        }
        (ErrorKind::UnknownArgument, Some(entry)) => {
            format!("unexpected argument {given:?}; see `duplex {} --help`", entry.name)
        }
        (ErrorKind::UnknownArgument, None) => {
            format!("unknown flag {given}; flags follow a command, as in `duplex train {given}`")
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let word = context(ContextKind::InvalidSubcommand);
            let hint = match nearest(word, COMMANDS.iter().map(|c| c.name)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "see `duplex --help`".to_string(),
            };
            format!("unknown command {word:?}; {hint}")
        }
        (ErrorKind::ArgumentConflict, _) => {
            let word =
                |text: &str| text.trim_matches(['[', ']']).split(' ').next().map(String::from);
            let flag = word(given).unwrap_or_default();
            let other = word(context(ContextKind::PriorArg)).unwrap_or_default();
            match flag == other || other.is_empty() {
                true => format!("{flag} is given more than once"),
                false => format!("{flag} and {other} exclude each other"),
            }
        }
        (ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues, _) => {
            let flag = given.split(' ').next().unwrap_or("");
            format!("{flag} needs a value")
        }
        _ => {
            let text = e.to_string();
            let first: Vec<&str> = text.lines().take_while(|l| !l.trim().is_empty()).collect();
            first.join(" ").trim_start_matches("error: ").to_string()
        }
    }
}

/// The line for a flag that `entry` does not have.
fn unknown_flag(entry: &Entry, flag: &str) -> String {
    let name = flag.replace('-', "_");
    let with_leaf: Vec<_> = entry.own_keys().filter(|k| k.leaf() == name).collect();
    if !with_leaf.is_empty() {
        let flags: Vec<String> = with_leaf.iter().map(|k| format!("--{}", entry.flag(k))).collect();
        return format!(
            "--{flag} could mean several stages of `duplex {}`; write {}",
            entry.name,
            flags.join(" or ")
        );
    }
    let has = |c: &&Entry| {
        c.own_keys().any(|k| c.flag(k) == flag || c.aliases(k).iter().any(|a| a == flag))
            || deepspeed::of(c).any(|f| f.flag == flag)
    };
    let others: Vec<String> =
        COMMANDS.iter().filter(has).map(|c| format!("`duplex {}`", c.name)).collect();
    let own: Vec<String> = entry
        .own_keys()
        .map(|k| entry.flag(k))
        .chain(["config", "set", "print-config"].map(str::to_string))
        .chain(entry.trains().then(|| "preset".to_string()))
        .collect();
    let hint = match nearest(flag, own.iter().map(String::as_str)) {
        _ if !others.is_empty() => format!("it belongs to {}", others.join(" and ")),
        Some(near) => format!("did you mean --{near}?"),
        None => format!("see `duplex {} --help`", entry.name),
    };
    format!("unknown flag --{flag}; {hint}")
}
