//! The rows of a run made into the examples of its steps, and the batches training takes them in.

use super::config::{ConversationFormat, EvalConfig, OnBadRow, OnLongPrompt, RunConfig};
use super::demo;
use super::remarks::{self, Remarked, Rows, Seen};
use super::resume::STEPS;
use super::run::Run;
use super::sources::{Source, data_path};
use crate::base::{Error, Kind, Result};
use crate::data::{
    self, Blend, BlendConfig, ChatFormat, Limits, PairExample, Part, Prompt, PromptExample, Row,
    RowKind, SftExample, Spec, Tokenizer,
};
use crate::report::Event;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// Examples of one step.
pub(super) struct Examples<T> {
    pub(super) train: Vec<T>,
    pub(super) eval: Vec<T>,
    /// The sets in `train`, end to end: their sizes and weights.
    sets: Vec<(usize, f64)>,
}

/// Places in `train` of one batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BatchRows {
    pub(super) rows: Vec<usize>,
    /// True if this batch ends an epoch.
    pub(super) ends_epoch: bool,
}

impl<T> Examples<T> {
    /// The batches of `epochs` epochs, or `max_steps` of them where that is not 0. The last batch
    /// of an epoch may be short.
    pub(super) fn batches(
        &self,
        batch: usize,
        epochs: usize,
        max_steps: usize,
        seed: u64,
    ) -> Vec<BatchRows> {
        schedule(&self.sets, batch, epochs, max_steps, seed)
    }

    /// At most `most` of the held-out examples.
    pub(super) fn held_out(&self, most: usize) -> Vec<&T> {
        self.eval.iter().take(most).collect()
    }
}

fn schedule(
    sets: &[(usize, f64)],
    batch: usize,
    epochs: usize,
    max_steps: usize,
    seed: u64,
) -> Vec<BatchRows> {
    let mut out: Vec<BatchRows> = vec![];
    let mut epoch = 0;
    while (max_steps == 0 && epoch < epochs) || out.len() < max_steps {
        let order = data::epoch_order(sets, seed, epoch as u64);
        if order.is_empty() {
            break;
        }
        out.extend(order.chunks(batch).map(|c| BatchRows { rows: c.to_vec(), ends_epoch: false }));
        out.last_mut().expect("an epoch has a batch").ends_epoch = true;
        epoch += 1;
    }
    if max_steps > 0 {
        out.truncate(max_steps);
    }
    out
}

/// Examples of step 1.
pub(super) fn sft(run: &mut Run<'_>, source: &Source) -> Result<Examples<SftExample>> {
    let blend = blend(run)?;
    let made = sft_of(run.cfg, &blend, source)?;
    Ok(told(run, made))
}

fn sft_of(cfg: &RunConfig, blend: &Blend, source: &Source) -> Result<Made<SftExample>> {
    let limits = training_limits(cfg, source)?;
    let all = cfg.sft.loss_on_prompt;
    examples(cfg, blend, 0, source, &|row| match all && row.has_weights() {
        true => Err(row.error("its messages have weights, which --loss-on-prompt would ignore")),
        false => data::sft_example(row, &source.tokenizer, &limits),
    })
}

/// Examples of step 2.
pub(super) fn pairs(run: &mut Run<'_>, source: &Source) -> Result<Examples<PairExample>> {
    let blend = blend(run)?;
    let made = pairs_of(run.cfg, &blend, source)?;
    Ok(told(run, made))
}

fn pairs_of(cfg: &RunConfig, blend: &Blend, source: &Source) -> Result<Made<PairExample>> {
    let limits = training_limits(cfg, source)?;
    examples(cfg, blend, 1, source, &|row| data::pair_example(row, &source.tokenizer, &limits))
}

/// Prompts of step 3.
pub(super) fn prompts(run: &mut Run<'_>, source: &Source) -> Result<Examples<PromptExample>> {
    let blend = blend(run)?;
    let made = prompts_of(run.cfg, &blend, source)?;
    Ok(told(run, made))
}

fn prompts_of(cfg: &RunConfig, blend: &Blend, source: &Source) -> Result<Made<PromptExample>> {
    let limits = rollout_limits(cfg, source)?;
    examples(cfg, blend, 2, source, &|row| data::prompt_example(row, &source.tokenizer, &limits))
}

/// Blocks of text for the mixture loss of step 3; none where no data is given for it.
pub(super) fn texts(run: &mut Run<'_>, source: &Source) -> Result<Vec<Vec<i32>>> {
    let (files, blocks) = texts_of(run.cfg, source)?;
    run.note_data(&files)?;
    Ok(blocks)
}

/// The same with the files that it comes from.
fn texts_of(cfg: &RunConfig, source: &Source) -> Result<(Vec<PathBuf>, Vec<Vec<i32>>)> {
    let data = specs(&cfg.unsupervised_sources()?)?;
    if data.is_empty() {
        return Ok((vec![], vec![]));
    }
    let config = BlendConfig { sft_only: data, data: vec![], by_use: false, ..blend_config(cfg)? };
    let blend = Blend::load(&BlendConfig { split: [1.0, 0.0, 0.0], eval_fraction: 0.0, ..config })?;
    let rows = in_order(blend.step(0)?, cfg.seed);
    let block = rollout_limits(cfg, source)?.max_seq_len;
    let blocks = data::text_blocks(&rows, &source.tokenizer, block, cfg.pre_rendered)?;
    Ok((blend.files, blocks))
}

/// Makes the examples of steps only to see that they can be made. `steps` have their models.
pub(super) fn check(cfg: &RunConfig, blend: &Blend, steps: &[(u32, Rc<Source>)]) -> Result<()> {
    steps.iter().try_for_each(|(step, source)| match step {
        1 => sft_of(cfg, blend, source).map(|_| ()),
        2 => pairs_of(cfg, blend, source).map(|_| ()),
        _ => prompts_of(cfg, blend, source).and_then(|_| texts_of(cfg, source)).map(|_| ()),
    })
}

/// The prompts of an evaluation.
pub(super) fn eval_prompts(
    cfg: &EvalConfig,
    source: &Source,
    max_prompt_len: usize,
    max_new_tokens: usize,
) -> Result<Vec<PromptExample>> {
    let room = max_prompt_len + max_new_tokens;
    check_room(room, source, "--max-prompt-seq-len and --max-new-tokens")?;
    let data = specs(&cfg.data_sources()?)?;
    let rows: Vec<Row> = if data.is_empty() {
        demo::held_out_prompts(cfg.prompts).into_iter().map(demo_row).collect()
    } else {
        let config = BlendConfig {
            data,
            sft_only: vec![],
            split: [0.0, 0.0, 1.0],
            eval_fraction: 0.0,
            seed: cfg.seed as u32,
            on_bad: data::OnBadRow::Error,
            by_use: true,
        };
        let blend = Blend::load(&config)?;
        for warning in data_warnings(&blend, &[2]) {
            eprintln!("warning: {warning}");
        }
        in_order(blend.step(2)?, cfg.seed)
    };
    let limits = Limits {
        max_prompt_len,
        max_seq_len: room,
        on_long_prompt: data::OnLongPrompt::Skip,
        chat: chat_format(ConversationFormat::Auto, &source.tokenizer),
        allow_special: cfg.pre_rendered,
        all_turns: false,
    };
    let seen = RefCell::new(Seen::default());
    let (prompts, long) = data::build("evaluation", &rows, |row| {
        let example = data::prompt_example(row, &source.tokenizer, &limits)?;
        if let Some(example) = &example {
            seen.borrow_mut().note(example.remarks, row, &source.tokenizer, limits.chat);
        }
        Ok(example)
    })?;
    let left_out = (long > 0).then(|| format!("{long} rows were too long, and left out"));
    for warning in left_out.into_iter().chain(seen.borrow().warnings("the evaluation")) {
        eprintln!("warning: {warning}");
    }
    Ok(prompts.into_iter().take(cfg.prompts).collect())
}

fn demo_row(prompt: String) -> Row {
    let prompt = Some(Prompt::Text(prompt));
    Row { file: "the demo".into(), prompt, ..Row::blank() }
}

/// The format meant for this tokenizer.
pub(super) fn chat_format(asked: ConversationFormat, tokenizer: &Tokenizer) -> ChatFormat {
    match asked {
        ConversationFormat::Template => ChatFormat::Template,
        ConversationFormat::Auto if tokenizer.has_chat_template() => ChatFormat::Template,
        ConversationFormat::Auto | ConversationFormat::HumanAssistant => ChatFormat::HumanAssistant,
    }
}

fn check_room(wanted: usize, source: &Source, flags: &str) -> Result<()> {
    if wanted <= source.arch.max_positions {
        return Ok(());
    }
    Err(Error::user(format!(
        "{flags} ask for sequences of {wanted} tokens, but {} has {} positions; lower them",
        source.dir.display(),
        source.arch.max_positions
    )))
}

/// Limits of steps 1 and 2.
pub(super) fn training_limits(cfg: &RunConfig, source: &Source) -> Result<Limits> {
    let mut max_seq_len = cfg.max_seq_len;
    if cfg.given()?.contains("max_seq_len") {
        check_room(max_seq_len, source, "--max-seq-len")?;
    } else {
        max_seq_len = max_seq_len.min(source.arch.max_positions);
    }
    let max_prompt_len = cfg.max_prompt_seq_len.min(max_seq_len - 1);
    Ok(limits(cfg, source, max_prompt_len, max_seq_len))
}

/// Limits of step 3.
pub(super) fn rollout_limits(cfg: &RunConfig, source: &Source) -> Result<Limits> {
    let max_seq_len = cfg.max_prompt_seq_len + cfg.max_answer_seq_len;
    check_room(max_seq_len, source, "--max-prompt-seq-len and --max-answer-seq-len")?;
    Ok(limits(cfg, source, cfg.max_prompt_seq_len, max_seq_len))
}

fn limits(cfg: &RunConfig, source: &Source, max_prompt_len: usize, max_seq_len: usize) -> Limits {
    Limits {
        max_prompt_len,
        max_seq_len,
        on_long_prompt: match cfg.on_long_prompt {
            OnLongPrompt::Skip => data::OnLongPrompt::Skip,
            OnLongPrompt::Truncate => data::OnLongPrompt::TruncateLeft,
        },
        chat: chat_format(cfg.chat_format, &source.tokenizer),
        allow_special: cfg.pre_rendered,
        all_turns: cfg.sft.assistant_only_loss,
    }
}

fn specs(sources: &[super::config::DataSource]) -> Result<Vec<Spec>> {
    let spec =
        |s: &super::config::DataSource| Ok(Spec { path: data_path(&s.path)?, weight: s.weight });
    sources.iter().map(spec).collect()
}

fn blend_config(cfg: &RunConfig) -> Result<BlendConfig> {
    let data = specs(&cfg.data_sources()?)?;
    Ok(BlendConfig {
        // Without data to share out, steps 2 and 3 have none.
        split: if data.is_empty() { [1.0, 0.0, 0.0] } else { cfg.split()? },
        data,
        sft_only: specs(&cfg.sft_only_sources()?)?,
        eval_fraction: cfg.eval_fraction,
        seed: cfg.seed as u32,
        on_bad: match cfg.on_bad_row {
            OnBadRow::Error => data::OnBadRow::Error,
            OnBadRow::Skip => data::OnBadRow::Skip,
        },
        by_use: true,
    })
}

/// All data of a run, divided among its steps.
///
/// # Errors
/// A file cannot be read, or a step of the run gets no row.
pub(super) fn read(cfg: &RunConfig) -> Result<Blend> {
    let config = blend_config(cfg)?;
    if config.data.is_empty() && config.sft_only.is_empty() {
        return Err(Error::user("no data given; name it with --data-path FILE"));
    }
    let blend = Blend::load(&config)?;
    cfg.step.iter().try_for_each(|step| blend.step(*step as usize - 1).map(|_| ()))?;
    Ok(blend)
}

/// The rows that no step of `steps` (0 to 2) can use: a line for each kind and set.
fn unused_lines(blend: &Blend, steps: &[usize]) -> Vec<String> {
    let names: Vec<&str> = steps.iter().map(|k| STEPS[*k]).collect();
    let line = |(set, kind, n): &(String, RowKind, usize)| {
        format!("{} of {set} left out: {} cannot use them", kind.counted(*n), names.join(" and "))
    };
    blend.unused.iter().map(line).collect()
}

/// Warnings about the rows of `steps` as they were read.
fn data_warnings(blend: &Blend, steps: &[usize]) -> Vec<String> {
    let first = blend.bad.first.first().cloned().unwrap_or_default();
    let unread = Rows { count: blend.bad.count, first }.line("rows could not be read");
    let warnings = unused_lines(blend, steps).into_iter().chain(unread);
    let warnings = warnings.chain(remarks::unused_keys(blend.rows()));
    warnings.chain(blend.bad.notes.iter().cloned()).collect()
}

/// All data of the run, read once, and told of once: rows by step, and those that were left out.
pub(super) fn blend(run: &mut Run<'_>) -> Result<Rc<Blend>> {
    if let Some(blend) = &run.blend {
        return Ok(blend.clone());
    }
    let blend = match run.read.take() {
        Some(blend) => blend,
        None => read(run.cfg)?,
    };
    let blend = Rc::new(blend);
    run.note_data(&blend.files)?;
    // An earlier program has told of them.
    let repeats = run.reporter.repeat(run.goes_on);
    let steps: Vec<usize> = run.cfg.step.iter().map(|step| *step as usize - 1).collect();
    for k in &steps {
        let rows = blend.tally(*k).join("; ");
        run.reporter.emit(Event::note(format!("data for {}: {rows}", STEPS[*k])));
    }
    for warning in data_warnings(&blend, &steps) {
        run.reporter.emit(Event::warning(warning));
    }
    run.reporter.repeat(repeats);
    run.blend = Some(blend.clone());
    Ok(blend)
}

/// The training rows of all sets in the order of a first epoch.
fn in_order(parts: &[Part], seed: u64) -> Vec<Row> {
    let sets: Vec<(usize, f64)> = parts.iter().map(|p| (p.train.len(), p.weight)).collect();
    let rows: Vec<&Row> = parts.iter().flat_map(|p| &p.train).collect();
    data::epoch_order(&sets, seed, 0).into_iter().map(|i| rows[i].clone()).collect()
}

/// Examples with what is to be told of them.
type Made<T> = (Examples<T>, Vec<String>);

/// The examples, once their warnings are told.
fn told<T>(run: &mut Run<'_>, (examples, warnings): Made<T>) -> Examples<T> {
    warnings.into_iter().for_each(|warning| run.reporter.emit(Event::warning(warning)));
    examples
}

fn examples<T: Remarked>(
    cfg: &RunConfig,
    blend: &Blend,
    step: usize,
    source: &Source,
    make: &dyn Fn(&Row) -> Result<Option<T>>,
) -> Result<Made<T>> {
    let what = &format!("step {}", step + 1);
    let skip = cfg.on_bad_row == OnBadRow::Skip;
    let mut out = Examples { train: vec![], eval: vec![], sets: vec![] };
    let (mut bad, mut long, mut silent) = (Rows::default(), Rows::default(), Rows::default());
    let mut seen = Seen::default();
    let format = chat_format(cfg.chat_format, &source.tokenizer);
    for part in blend.step(step)? {
        let before = out.train.len();
        for (rows, to) in [(&part.train, &mut out.train), (&part.eval, &mut out.eval)] {
            for row in rows {
                match make(row) {
                    Ok(Some(example)) => {
                        seen.note(example.remarks(), row, &source.tokenizer, format);
                        to.push(example);
                    }
                    Ok(None) => {
                        let weightless = step == 0 && row.learns_nothing();
                        let rows = if weightless { &mut silent } else { &mut long };
                        rows.add(row);
                    }
                    Err(e) if skip && e.kind() == Kind::User => bad.add_told(|| e.to_string()),
                    Err(e) => return Err(e),
                }
            }
        }
        out.sets.push((out.train.len() - before, part.weight));
    }
    // A row can also be left out for having nothing to learn within that length.
    let nothing = ["no token to learn", "two equal answers", "no prompt"][step];
    let longer = "rows were longer than --max-prompt-seq-len or --max-seq-len";
    let weightless = "rows give their answers the weight 0 and are left out of";
    let left_out = [
        bad.line(&format!("rows could not be used for {what}")),
        long.line(&format!("{longer}, or had {nothing}, and left out of {what}")),
        silent.line(&format!("{weightless} {what}")),
    ];
    let warnings = left_out.into_iter().flatten().chain(seen.warnings(what)).collect();
    if out.train.is_empty() {
        let why = match (bad.count, long.count) {
            (0, 0) => "the answers of all have the weight 0".into(),
            (0, _) => format!(
                "all are too long, or have {nothing}; raise --max-prompt-seq-len or use \
                 --on-long-prompt truncate"
            ),
            _ => format!("none can be used, first: {}", bad.first),
        };
        return Err(Error::user(format!("no row is left for {what}: {why}")));
    }
    Ok((out, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_each_epoch_once_in_a_fresh_order() {
        let batches = schedule(&[(10, 1.0)], 4, 2, 0, 3);
        let sizes: Vec<usize> = batches.iter().map(|b| b.rows.len()).collect();
        assert_eq!(sizes, [4, 4, 2, 4, 4, 2]);
        let ends: Vec<bool> = batches.iter().map(|b| b.ends_epoch).collect();
        assert_eq!(ends, [false, false, true, false, false, true]);
        let epoch = |i: usize| -> Vec<usize> {
            batches[3 * i..3 * i + 3].iter().flat_map(|b| b.rows.clone()).collect()
        };
        let (a, b) = (epoch(0), epoch(1));
        assert_ne!(a, b);
        let sorted = |mut v: Vec<usize>| {
            v.sort_unstable();
            v
        };
        assert_eq!(sorted(a), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(b), (0..10).collect::<Vec<_>>());
        assert_eq!(schedule(&[(10, 1.0)], 4, 1, 7, 3).len(), 7);
        assert_eq!(schedule(&[(10, 1.0)], 4, 2, 0, 3), batches);
        assert!(schedule(&[(0, 1.0)], 4, 2, 5, 3).is_empty());
    }
}
