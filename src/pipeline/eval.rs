//! Evaluation on held-out prompts: mean reward of a model's answers, and its win rate against
//! another model, under a reward model or a rule.

use super::config::{ConversationFormat, EvalConfig};
use super::datasets;
use super::reading::{reading, talks};
use super::settings::MICRO_BATCH_TOKENS;
use super::sources::Source;
use crate::algo::{
    Completion, ModelReward, RewardRule, RewardSource, Rollout, RuleReward, Scoring, built_in_rule,
};
use crate::base::{Error, Result, print, printable};
use crate::data::{PromptExample, Tokenizer};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions};
use crate::pipeline::demo;
use crate::rollout::Sampling;
use crate::tape::Workspace;
use std::path::Path;
use std::sync::Arc;

/// Answers of one model with their scores; None where the reward does not judge.
struct Scored {
    answers: Vec<String>,
    scores: Vec<Option<f32>>,
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
    let ours = score(cfg, &source, &*scorer, &prompts, &answering, &mut ws)?;
    let mut table = format!("prompts          {}\n", prompts.len());
    table += &mean_reward(&ours.scores, &cfg.path);
    let mut shown = vec![&ours];
    let theirs;
    if let Some(baseline) = &cfg.baseline {
        let other = Source::open(&baseline.display().to_string())?;
        source.same_tokens(&other)?;
        theirs = score(cfg, &other, &*scorer, &prompts, &answering, &mut ws)?;
        table += &mean_reward(&theirs.scores, baseline);
        table += &format!("{}\n", win_rate(&ours.scores, &theirs.scores));
        shown.push(&theirs);
    }
    for (i, prompt) in prompts.iter().enumerate().take(cfg.print_samples) {
        table +=
            &format!("\nprompt    {}\n", one_line(&source.tokenizer.decode(&prompt.ids, true)?));
        for model in &shown {
            let score = model.scores[i].map_or("-".into(), |score| format!("{score:.3}"));
            table += &format!("{score:>8}  {}\n", one_line(&model.answers[i]));
        }
    }
    print(&table)
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

/// The line with the mean of what was judged, and the number of answers that were not.
fn mean_reward(scores: &[Option<f32>], model: &Path) -> String {
    let judged: Vec<f32> = scores.iter().copied().flatten().collect();
    let mean = judged.iter().sum::<f32>() / judged.len() as f32;
    let unjudged = match scores.len() - judged.len() {
        0 => String::new(),
        n => format!("  ({n} not judged)"),
    };
    format!("mean reward      {mean:.4}  {}{unjudged}\n", model.display())
}

/// How often `ours` is above `theirs`, where both were judged; a tie counts half.
fn win_rate(ours: &[Option<f32>], theirs: &[Option<f32>]) -> String {
    let both: Vec<(f32, f32)> =
        ours.iter().zip(theirs).filter_map(|(a, b)| Some(((*a)?, (*b)?))).collect();
    let pairs = || both.iter();
    let wins = pairs().filter(|(a, b)| a > b).count();
    let ties = pairs().filter(|(a, b)| a == b).count();
    let rate = (wins as f32 + 0.5 * ties as f32) / both.len() as f32;
    let losses = both.len() - wins - ties;
    format!("win rate         {rate:.3}  ({wins} wins, {ties} ties, {losses} losses)")
}

fn one_line(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

fn scorer(
    cfg: &EvalConfig,
    source: &Source,
    prompts: &[PromptExample],
    options: &LoadOptions,
) -> Result<Box<dyn RewardSource>> {
    let rule: Arc<dyn RewardRule> = match (&cfg.reward_rule, &cfg.reward_model) {
        (Some(rule), _) if rule == demo::RULE => Arc::new(demo::HiddenRule),
        (Some(rule), _) => built_in_rule(rule)?,
        (None, Some(name)) => {
            let reward = Source::open(name)?;
            let talks = talks(prompts.iter());
            let retokenise = reading(source, &reward, talks, ConversationFormat::Auto);
            let engine = Engine::frozen(reward.load_alone(options)?);
            return Ok(Box::new(ModelReward { engine, retokenise }));
        }
        (None, None) => return Err(Error::user("eval needs --reward-model or --reward-rule")),
    };
    let tokenizer = source.tokenizer.clone();
    let decode = Box::new(move |ids: &[i32]| tokenizer.decode(ids, true));
    Ok(Box::new(RuleReward { rule, decode }))
}

fn score(
    cfg: &EvalConfig,
    source: &Source,
    scorer: &dyn RewardSource,
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
    let (mut answers, mut scores): (Vec<String>, Vec<Option<f32>>) = (vec![], vec![]);
    const GROUP: usize = 32;
    for (g, group) in prompts.chunks(GROUP).enumerate() {
        let rows: Vec<&[i32]> = group.iter().map(|p| p.ids.as_slice()).collect();
        let ids: Vec<u64> = (0..group.len()).map(|i| (g * GROUP + i) as u64).collect();
        let made = engine.generate(ws, &rows, &ids, &sampling, &mut |_, _| {})?;
        let mut rollouts = vec![];
        for (prompt, answer) in group.iter().zip(made) {
            answers.push(tokenizer.decode(&answer.tokens, true)?);
            let ids = [prompt.ids.as_slice(), &answer.tokens].concat();
            let (prompt_len, finished) = (prompt.ids.len(), answer.finished);
            rollouts.push(Rollout { ids, prompt_len, finished, ..Rollout::default() });
        }
        let batch = group.iter().zip(&rollouts);
        let batch: Vec<_> = batch.map(|(prompt, rollout)| Completion { prompt, rollout }).collect();
        let comm = engine.comm().clone();
        let mut on = Scoring { ws, comm: &comm, micro_batch_tokens: MICRO_BATCH_TOKENS };
        scores.extend(scorer.score(&mut on, &batch)?);
    }
    if scores.iter().all(Option::is_none) {
        return Err(Error::user(format!(
            "the reward {} judges none of the {} answers; look whether the rows have the columns \
             that it reads",
            scorer.name(),
            answers.len()
        )));
    }
    Ok(Scored { answers, scores })
}
