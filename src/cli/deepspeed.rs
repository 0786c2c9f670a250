//! Flags of DeepSpeed and of DeepSpeed-Chat's scripts that are no keys here. They are accepted:
//! those that change nothing are named in one warning, those that would train another model in a
//! warning or an error each, and those that mean a key set it.

use super::commands::Entry;
use crate::algo;
use crate::base::{Error, Result};
use crate::config::key::{self, Commands, EVAL, PLAN};
use crate::config::{Setting, flag_setting};
use clap::{Arg, ArgAction, ArgMatches};

const RUNS: Commands = key::RUNS | PLAN;

/// A flag that is no key.
pub(super) struct Foreign {
    /// Without its dashes.
    pub(super) flag: &'static str,
    pub(super) commands: Commands,
    /// True if a value follows.
    value: bool,
    meaning: Meaning,
}

enum Meaning {
    /// It changes no number of the result.
    Nothing,
    /// It does something else than this line says.
    Differs(&'static str),
    /// It changes nothing at one value; at others it would train another model, of which this is
    /// said.
    Only(f64, &'static str),
    /// It asks for what no flag here does: the answer names what replaces it.
    Never(&'static str),
    /// It means a key, which [`read`] sets.
    Key,
}

use Meaning::{Differs, Key, Never, Nothing, Only};

const fn flag(flag: &'static str, commands: Commands, value: bool, meaning: Meaning) -> Foreign {
    Foreign { flag, commands, value, meaning }
}

const NO_DROPOUT: &str = "models are trained without dropout; give 0 or leave it out";
const OWN_TOKEN: &str = "answers end with the token by which the tokenizer or its chat template \
                         ends them, and no token is added";
const ONE_ANSWER: &str = "one answer is sampled or decoded greedily; give 1 or leave it out";
const NODES: &str =
    "start ranks on several machines with torchrun, srun or mpirun; see docs/clusters.md";
const CHOICE: &str = "choose GPUs with CUDA_VISIBLE_DEVICES=0,1 before the command and --num-gpus \
    2, and machines with torchrun, srun or mpirun";
const ELASTIC: &str = "the number of ranks is fixed during a run; resume with another number \
     through --num-gpus or a launcher";

/// All of them: DeepSpeed-Chat's, and those of the `deepspeed` launcher.
#[rustfmt::skip]
pub(super) static FOREIGN: &[Foreign] = &[
    flag("add-eot-token", RUNS | EVAL, false, Differs(OWN_TOKEN)),
    flag("eot-token", RUNS, true, Differs(OWN_TOKEN)),
    flag("dropout", RUNS, true, Only(0.0, NO_DROPOUT)),
    flag("actor-dropout", RUNS, true, Only(0.0, NO_DROPOUT)),
    flag("critic-dropout", RUNS, true, Only(0.0, NO_DROPOUT)),
    flag("align-overflow", RUNS, false, Nothing),
    flag("compute-fp32-loss", RUNS, false, Nothing),
    flag("critic-gradient-checkpointing", RUNS, false, Key),
    flag("critic-lora-module-name", RUNS, true, Key),
    flag("data-output-path", RUNS, true, Nothing),
    flag("deepscale", RUNS, false, Nothing),
    flag("deepscale-config", RUNS, true, Differs(
        "that file is not read; write its values as flags")),
    flag("deepspeed", RUNS, false, Nothing),
    flag("deepspeed-config", RUNS, true, Differs(
        "that file is not read; write its values as flags")),
    flag("deepspeed-mpi", RUNS, false, Nothing),
    flag("enable-hybrid-engine", RUNS, false, Nothing),
    flag("enable-mixed-precision-lora", RUNS, false, Nothing),
    flag("enable-test-mode", RUNS, false, Key),
    flag("test-stop-step", RUNS, true, Key),
    flag("exclude", RUNS, true, Never(CHOICE)),
    flag("hostfile", RUNS, true, Never(NODES)),
    flag("include", RUNS, true, Never(CHOICE)),
    flag("local-rank", RUNS, true, Nothing),
    flag("master-addr", RUNS, true, Nothing),
    flag("master-port", RUNS, true, Nothing),
    flag("num-nodes", RUNS, true, Only(1.0, NODES)),
    flag("node-rank", RUNS, true, Only(0.0, NODES)),
    flag("num-padding-at-beginning", RUNS | EVAL, true, Nothing),
    flag("offload-reference-model", RUNS, false, Nothing),
    flag("offload-reward-model", RUNS, false, Nothing),
    flag("only-optimize-lora", RUNS, false, Nothing),
    flag("per-device-eval-batch-size", RUNS, true, Nothing),
    flag("preprocessing-num-workers", RUNS, true, Nothing),
    flag("print-answers", RUNS, false, Nothing),
    flag("print-answers-interval", RUNS, true, Nothing),
    flag("print-loss", RUNS, false, Nothing),
    flag("release-inference-cache", RUNS, false, Nothing),
    flag("tensorboard-path", RUNS, true, Nothing),
    flag("tp-gather-partition-size", RUNS, true, Nothing),
    flag("unpin-actor-parameters", RUNS, false, Nothing),
    flag("unsupervised-dataset-config-name", RUNS, true, Differs(
        "name the files of the part that is meant with --unsupervised-data-path")),
    flag("autotuning", RUNS, true, Never(
        "Duplex makes no trial runs; `duplex plan` shows what fits and how long it takes")),
    flag("elastic-training", RUNS, false, Never(ELASTIC)),
    flag("min-elastic-nodes", RUNS, true, Never(ELASTIC)),
    flag("max-elastic-nodes", RUNS, true, Never(ELASTIC)),
    flag("enable-each-rank-log", RUNS, true, Differs(
        "what all ranks write goes to this process's output, and the log of the run to \
         --output-dir")),
    flag("bind-core-list", RUNS, true, Differs(
        "cores are chosen by taskset or numactl before the command")),
    flag("bind-cores-to-rank", RUNS, false, Nothing),
    flag("force-multi", RUNS, false, Nothing),
    flag("launcher", RUNS, true, Nothing),
    flag("launcher-args", RUNS, true, Nothing),
    flag("module", RUNS, false, Nothing),
    flag("no-local-rank", RUNS, false, Nothing),
    flag("no-python", RUNS, false, Nothing),
    flag("no-ssh", RUNS, false, Nothing),
    flag("no-ssh-check", RUNS, false, Nothing),
    flag("save-pid", RUNS, false, Nothing),
    flag("ssh-port", RUNS, true, Nothing),
    flag("venv-script", RUNS, true, Nothing),
    flag("language", EVAL, true, Differs("prompts come from --data-path")),
    flag("num-beam-groups", EVAL, true, Only(1.0, ONE_ANSWER)),
    flag("num-beams", EVAL, true, Only(1.0, ONE_ANSWER)),
    flag("num-return-sequences", EVAL, true, Only(1.0, ONE_ANSWER)),
    flag("penalty-alpha", EVAL, true, Differs(
        "there is no contrastive search; --temperature 0 decodes greedily")),
];

impl Foreign {
    fn id(&self) -> String {
        format!("foreign {}", self.flag)
    }
}

/// Those that `entry` takes.
pub(super) fn of(entry: &Entry) -> impl Iterator<Item = &'static Foreign> {
    let bit = entry.bit;
    FOREIGN.iter().filter(move |f| f.commands & bit != 0)
}

/// The same as arguments, which help does not show.
pub(super) fn arguments(entry: &Entry) -> impl Iterator<Item = Arg> {
    of(entry).map(|f| {
        let arg = Arg::new(f.id()).long(f.flag).hide(true);
        match f.value {
            true => arg
                .num_args(1)
                .allow_negative_numbers(true)
                .allow_hyphen_values(f.flag == "launcher-args")
                .action(ArgAction::Append),
            false => arg.num_args(0).action(ArgAction::Count),
        }
    })
}

/// Reads those that were given: sets the keys they mean, and returns what is to be said of the
/// others.
///
/// # Errors
/// One would train another model.
pub(super) fn read(
    entry: &'static Entry,
    matches: &ArgMatches,
    settings: &mut Vec<Setting>,
) -> Result<Vec<String>> {
    let line = Line { entry, matches };
    let (mut nothing, mut said) = (vec![], vec![]);
    for f in of(entry).filter(|f| line.gives(f)) {
        let name = format!("--{}", f.flag);
        match f.meaning {
            Nothing => nothing.push(name),
            Never(instead) => return Err(Error::user(format!("{name}: {instead}"))),
            Differs(how) => said.push(format!("{name}: {how}")),
            Only(neutral, why) => {
                let text = line.value(f.flag).map_or("", String::as_str);
                if text.parse() != Ok(neutral) {
                    return Err(Error::user(format!("{name} {text}: {why}")));
                }
                nothing.push(name);
            }
            Key => {}
        }
    }
    if line.switched("critic-gradient-checkpointing") && !line.has("gradient_checkpointing") {
        line.set(settings, "gradient_checkpointing", "full")?;
    }
    line.test_mode(settings, &mut nothing)?;
    line.critic_modules(settings)?;
    if !nothing.is_empty() {
        let preset = match line.has("preset") {
            false if entry.trains() => {
                "; --preset deepspeed-chat sets DeepSpeed-Chat's defaults too"
            }
            _ => "",
        };
        said.insert(0, format!("these flags change nothing here: {}{preset}", nothing.join(", ")));
    }
    Ok(said)
}

/// The flags of a command line.
struct Line<'a> {
    entry: &'static Entry,
    matches: &'a ArgMatches,
}

impl<'a> Line<'a> {
    fn gives(&self, f: &Foreign) -> bool {
        match f.value {
            true => self.matches.get_many::<String>(&f.id()).is_some(),
            false => self.matches.get_count(&f.id()) > 0,
        }
    }

    /// The value of one of DeepSpeed's flags.
    fn value(&self, flag: &str) -> Option<&'a String> {
        let named = of(self.entry).find(|f| f.flag == flag);
        named.and_then(|f| self.matches.get_one::<String>(&f.id()))
    }

    fn switched(&self, flag: &str) -> bool {
        of(self.entry).find(|f| f.flag == flag).is_some_and(|f| self.gives(f))
    }

    /// True if the flag of a key was given.
    fn has(&self, path: &str) -> bool {
        self.matches.try_get_one::<String>(path).ok().flatten().is_some()
    }

    fn set(&self, settings: &mut Vec<Setting>, path: &str, value: &str) -> Result<()> {
        if let Some(key) = self.entry.own_keys().find(|k| k.path == path) {
            settings.push(flag_setting(key, &self.entry.flag(key), &[value.to_string()])?);
        }
        Ok(())
    }

    /// In test mode, a stage ends after that many steps, or where it says none, after one epoch.
    fn test_mode(&self, settings: &mut Vec<Setting>, nothing: &mut Vec<String>) -> Result<()> {
        let stages = self.entry.stage.map_or_else(algo::names, |of| vec![of.name]);
        let keys = |leaf: &str| stages.iter().map(|s| format!("{s}.{leaf}")).collect::<Vec<_>>();
        let (max_steps, epochs) = (keys("max_steps"), keys("num_train_epochs"));
        let mut set = |key: &String, value: &str| self.set(settings, key, value);
        match (self.value("test-stop-step"), self.switched("enable-test-mode")) {
            (Some(steps), true) if max_steps.iter().any(|key| self.has(key)) => {
                return Err(Error::user(format!(
                    "--test-stop-step {steps} and --max-steps both set the end of the stage; \
                     leave one out"
                )));
            }
            (Some(steps), true) if steps != "0" => {
                max_steps.iter().try_for_each(|key| set(key, steps))?;
            }
            (_, true) => epochs.iter().try_for_each(|key| set(key, "1"))?,
            (Some(_), false) => nothing.push("--test-stop-step".into()),
            (None, false) => {}
        }
        Ok(())
    }

    /// The modules of the critic's LoRA, which are those of all models here.
    fn critic_modules(&self, settings: &mut Vec<Setting>) -> Result<()> {
        let Some(critic) = self.value("critic-lora-module-name") else { return Ok(()) };
        let names = self.matches.try_get_many::<String>("lora.lora_module_name").ok().flatten();
        let actor: Option<Vec<&String>> = names.map(Iterator::collect);
        let dim = |path| {
            let dim = self.matches.try_get_one::<String>(path).ok().flatten();
            dim.is_some_and(|d| d != "0")
        };
        match actor {
            Some(actor) if actor == [critic] || !dim("lora.critic_lora_dim") => Ok(()),
            Some(actor) if dim("lora.actor_lora_dim") => Err(Error::user(format!(
                "--critic-lora-module-name {critic} differs from the actor's {}; one \
                 --lora-module-name holds for all models",
                actor[0]
            ))),
            _ => self.set(settings, "lora.lora_module_name", critic),
        }
    }
}

/// The hub's name of a size in DeepSpeed-Chat's `--actor-model` and `--reward-model`.
pub(super) fn opt_of_size(word: &str) -> Option<String> {
    let sizes = ["125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b"];
    let is_size = sizes.contains(&word) && !std::path::Path::new(word).exists();
    is_size.then(|| format!("facebook/opt-{word}"))
}
