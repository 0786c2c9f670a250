//! Evaluation on held-out prompts: mean reward of a model's answers, and its win rate against
//! another model, under a reward model or a rule.

use super::config::{ConversationFormat, EvalConfig};
use super::datasets;
use super::output::say;
use super::reading::{reading, talks};
use super::sources::Source;
use crate::algo::{Retokenise, RewardRule, Rollout, built_in_rule};
use crate::base::{Error, Result};
use crate::data::{PromptExample, Tokenizer};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions};
use crate::pipeline::demo;
use crate::rollout::Sampling;
use crate::tape::Workspace;
use crate::train::Batch;
use std::sync::Arc;

enum Scorer {
    Rule(Arc<dyn RewardRule>),
    /// With what makes its ids where it knows the answers by others.
    Model(Box<Engine>, Option<Retokenise>),
}

/// Answers of one model with their scores.
struct Scored {
    answers: Vec<String>,
    scores: Vec<f32>,
}

/// Evaluates and prints a table on standard output.
pub fn eval(cfg: &EvalConfig) -> Result<()> {
    let (device, _) = cfg.device.open()?;
    let frozen = |head| LoadOptions::frozen(head, cfg.dtype.dtype()).on(device);
    let (answering, scoring) = (frozen(Head::Lm), frozen(Head::Score));
    let mut ws = Workspace::new(device, usize::MAX)?;
    let source = Source::open(&cfg.path.display().to_string())?;
    let [max_prompt_len, max_new_tokens] = lengths(cfg, &source);
    let prompts = datasets::eval_prompts(cfg, &source, max_prompt_len, max_new_tokens)?;
    let cfg = &EvalConfig { max_new_tokens, ..cfg.clone() };
    let scorer = scorer(cfg, &source, &prompts, &scoring)?;
    let ours = score(cfg, &source, &scorer, &prompts, &answering, &mut ws)?;
    let mut table = format!("prompts          {}\n", prompts.len());
    table += &format!("mean reward      {:.4}  {}\n", mean(&ours.scores), cfg.path.display());
    let mut shown = vec![&ours];
    let theirs;
    if let Some(baseline) = &cfg.baseline {
        let other = Source::open(&baseline.display().to_string())?;
        source.same_tokens(&other)?;
        theirs = score(cfg, &other, &scorer, &prompts, &answering, &mut ws)?;
        table += &format!("mean reward      {:.4}  {}\n", mean(&theirs.scores), baseline.display());
        table += &format!("{}\n", win_rate(&ours.scores, &theirs.scores));
        shown.push(&theirs);
    }
    for (i, prompt) in prompts.iter().enumerate().take(cfg.print_samples) {
        table +=
            &format!("\nprompt    {}\n", one_line(&source.tokenizer.decode(&prompt.ids, true)?));
        for model in &shown {
            table += &format!("{:8.3}  {}\n", model.scores[i], one_line(&model.answers[i]));
        }
    }
    say(&table)
}

/// Longest prompt and longest answer: the defaults are halved to what the model has positions for.
fn lengths(cfg: &EvalConfig, source: &Source) -> [usize; 2] {
    let given = [cfg.max_prompt_seq_len, cfg.max_new_tokens];
    let default = EvalConfig::default();
    match given == [default.max_prompt_seq_len, default.max_new_tokens] {
        true => given.map(|n| n.min(source.arch.max_positions / 2)),
        false => given,
    }
}

fn mean(xs: &[f32]) -> f32 {
    xs.iter().sum::<f32>() / xs.len() as f32
}

/// How often `ours` is above `theirs`; a tie counts half.
fn win_rate(ours: &[f32], theirs: &[f32]) -> String {
    let pairs = || ours.iter().zip(theirs);
    let wins = pairs().filter(|(a, b)| a > b).count();
    let ties = pairs().filter(|(a, b)| a == b).count();
    let rate = (wins as f32 + 0.5 * ties as f32) / ours.len() as f32;
    let losses = ours.len() - wins - ties;
    format!("win rate         {rate:.3}  ({wins} wins, {ties} ties, {losses} losses)")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn scorer(
    cfg: &EvalConfig,
    source: &Source,
    prompts: &[PromptExample],
    options: &LoadOptions,
) -> Result<Scorer> {
    match (&cfg.reward_rule, &cfg.reward_model) {
        (Some(rule), _) if rule == demo::RULE => Ok(Scorer::Rule(Arc::new(demo::HiddenRule))),
        (Some(rule), _) => Ok(Scorer::Rule(built_in_rule(rule)?)),
        (None, Some(name)) => {
            let reward = Source::open(name)?;
            let talks = talks(prompts.iter());
            let translate = reading(source, &reward, talks, ConversationFormat::Auto);
            let model = reward.load_alone(options)?;
            Ok(Scorer::Model(Box::new(Engine::frozen(model)), translate))
        }
        (None, None) => Err(Error::user("eval needs --reward-model or --reward-rule")),
    }
}

fn score(
    cfg: &EvalConfig,
    source: &Source,
    scorer: &Scorer,
    prompts: &[PromptExample],
    options: &LoadOptions,
    ws: &mut Workspace,
) -> Result<Scored> {
    let tokenizer: &Tokenizer = &source.tokenizer;
    let model = source.load_alone(options)?;
    let mut engine = Engine::frozen(model);
    let sampling = Sampling {
        temperature: cfg.temperature as f32,
        top_k: cfg.top_k,
        top_p: cfg.top_p as f32,
        min_new_tokens: 0,
        max_new_tokens: cfg.max_new_tokens,
        eos: tokenizer.stop_ids().to_vec(),
        seed: cfg.seed,
    };
    let (mut answers, mut scores) = (vec![], vec![]);
    const GROUP: usize = 32;
    for (g, group) in prompts.chunks(GROUP).enumerate() {
        let rows: Vec<&[i32]> = group.iter().map(|p| p.ids.as_slice()).collect();
        let ids: Vec<u64> = (0..group.len()).map(|i| (g * GROUP + i) as u64).collect();
        let made = engine.generate(ws, &rows, &ids, &sampling, &mut |_, _| {})?;
        for (prompt, answer) in group.iter().zip(made) {
            let text = tokenizer.decode(&answer.tokens, true)?;
            scores.push(match scorer {
                Scorer::Rule(rule) => rule.score(&tokenizer.decode(&prompt.ids, true)?, &text)?,
                Scorer::Model(model, translate) => {
                    let ids = [prompt.ids.as_slice(), &answer.tokens].concat();
                    let (prompt_len, finished) = (prompt.ids.len(), answer.finished);
                    let all = match translate {
                        None => ids,
                        Some(f) => f(&Rollout { ids, prompt_len, finished, ..Rollout::default() })?,
                    };
                    model.scores(ws, &Batch::new(&[(&all, all.len() - 1..all.len())]))?[0]
                }
            });
            answers.push(text);
        }
    }
    Ok(Scored { answers, scores })
}
