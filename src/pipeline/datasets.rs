//! The rows of a run made into the examples of its stages, and the batches training takes them in.

use super::batches::Batches;
use super::config::{ConversationFormat, DataSource, EvalConfig, RunConfig};
use super::demo;
use super::limits::{Lengths, chat_format, check_room};
use super::remarks::{self, Remarked, Rows, Seen};
use super::run::Run;
use super::sources::{Source, data_path};
use crate::algo::{Algorithm, Learns, Texts, built_in_rule};
use crate::base::{Error, Kind, Result, check_stop, warn};
use crate::data::{
    self, Blend, BlendConfig, Limits, PairExample, Part, Prompt, PromptExample, Row, RowKind,
    SftExample, Spec, Tokenizer, Use,
};
use crate::formats::Fingerprint;
use crate::report::Event;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// A file, and the fingerprint of what was read of it.
type Stamped = (PathBuf, Fingerprint);

/// A stage, and what its examples are made with.
pub(super) struct Staged {
    pub(super) of: &'static Algorithm,
    /// The model whose tokens it has.
    pub(super) source: Rc<Source>,
    pub(super) limits: Limits,
}

/// Examples of one stage.
pub(super) struct Examples<T> {
    pub(super) train: Vec<T>,
    pub(super) eval: Vec<T>,
    /// The sets in `train`, end to end: their sizes and weights.
    sets: Vec<(usize, f64)>,
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
    ) -> Batches {
        Batches::new(&self.sets, batch, epochs, max_steps, seed)
    }

    /// At most `most` of the held-out examples.
    pub(super) fn held_out(&self, most: usize) -> Vec<&T> {
        self.eval.iter().take(most).collect()
    }
}

/// Examples of one kind, made from rows.
pub(super) trait Learnt: Remarked + Sized {
    /// The example that a row makes; None where it is too long, or holds nothing to learn.
    fn of_row(
        row: &Row,
        tokenizer: &Tokenizer,
        limits: &Limits,
        texts: Texts,
    ) -> Result<Option<Self>>;
}

/// Examples that are learnt from as they are.
pub(super) trait Offline: Learnt {
    /// Sequences of an example.
    const SEQUENCES: usize;

    /// The longest example of so many tokens a sequence, to plan with.
    fn longest(tokens: usize) -> Self;
}

impl Learnt for SftExample {
    fn of_row(
        row: &Row,
        tokenizer: &Tokenizer,
        limits: &Limits,
        texts: Texts,
    ) -> Result<Option<SftExample>> {
        if texts.prompts && row.has_weights() {
            let what = "its messages have weights, which --loss-on-prompt would ignore";
            return Err(row.error(what));
        }
        let limits = Limits { all_turns: texts.all_turns, ..*limits };
        data::sft_example(row, tokenizer, &limits)
    }
}

impl Offline for SftExample {
    const SEQUENCES: usize = 1;

    // Half of a sequence is the prompt.
    fn longest(tokens: usize) -> SftExample {
        SftExample::new(vec![0; tokens], (tokens / 2).max(1))
    }
}

impl Learnt for PairExample {
    fn of_row(
        row: &Row,
        tokenizer: &Tokenizer,
        limits: &Limits,
        _: Texts,
    ) -> Result<Option<PairExample>> {
        data::pair_example(row, tokenizer, limits)
    }
}

impl Offline for PairExample {
    const SEQUENCES: usize = 2;

    fn longest(tokens: usize) -> PairExample {
        let (chosen, rejected) = (vec![0; tokens], vec![1; tokens]);
        let prompt_len = (tokens / 2).max(1);
        PairExample { prompt_len, chosen, rejected, ..PairExample::default() }
    }
}

impl Learnt for PromptExample {
    fn of_row(
        row: &Row,
        tokenizer: &Tokenizer,
        limits: &Limits,
        _: Texts,
    ) -> Result<Option<PromptExample>> {
        data::prompt_example(row, tokenizer, limits)
    }
}

/// Examples of a stage.
pub(super) fn examples<T: Learnt>(
    run: &mut Run<'_>,
    of: &Algorithm,
    source: &Source,
) -> Result<Examples<T>> {
    let blend = blend(run)?;
    let limits = Lengths::of(run.cfg)?.of_stage(of, source)?;
    let made = examples_of(run.cfg, &blend, of, source, &limits)?;
    Ok(told(run, made))
}

/// Blocks of text for the mixture loss of a stage; none where no data is given for it.
pub(super) fn texts(run: &mut Run<'_>, of: &Algorithm, source: &Source) -> Result<Vec<Vec<i32>>> {
    let limits = Lengths::of(run.cfg)?.of_stage(of, source)?;
    let (files, blocks) = texts_of(run.cfg, of, source, &limits)?;
    run.note_data(&files);
    Ok(blocks)
}

/// The same with the files that it comes from.
fn texts_of(
    cfg: &RunConfig,
    of: &Algorithm,
    source: &Source,
    limits: &Limits,
) -> Result<(Vec<Stamped>, Vec<Vec<i32>>)> {
    let data = specs(&cfg.unsupervised_sources(of)?)?;
    if data.is_empty() {
        return Ok((vec![], vec![]));
    }
    let config = BlendConfig { sft_only: data, data: vec![], by_use: false, ..blend_config(cfg)? };
    let blend = Blend::load(&BlendConfig { split: [1.0, 0.0, 0.0], eval_fraction: 0.0, ..config })?;
    let rows = in_order(blend.parts(Use::Texts, of.name)?, cfg.seed);
    let tokenizer = &source.tokenizer;
    let blocks = data::text_blocks(rows, tokenizer, limits.max_seq_len, limits.allow_special)?;
    Ok((blend.files, blocks))
}

/// Makes the examples of stages only to see that they can be made.
pub(super) fn check_examples(cfg: &RunConfig, blend: &Blend, stages: &[Staged]) -> Result<()> {
    stages.iter().try_for_each(|Staged { of, source, limits }| match of.learns {
        Learns::Texts(..) => examples_of::<SftExample>(cfg, blend, of, source, limits).map(drop),
        Learns::Pairs(_) => examples_of::<PairExample>(cfg, blend, of, source, limits).map(drop),
        Learns::Prompts(_) => examples_of::<PromptExample>(cfg, blend, of, source, limits)
            .and_then(|_| texts_of(cfg, of, source, limits))
            .map(drop),
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
    let (made, blend): (Vec<Row>, Blend);
    let rows: Vec<&Row> = if data.is_empty() {
        made = demo::held_out_prompts(cfg.prompts).into_iter().map(demo_row).collect();
        made.iter().collect()
    } else {
        let config = BlendConfig {
            data,
            sft_only: vec![],
            split: [0.0, 0.0, 1.0],
            eval_fraction: 0.0,
            seed: cfg.seed as u32,
            on_bad: data::OnBadRow::Error,
            by_use: true,
            columns: reads_columns(cfg.reward_rule.as_deref())?,
        };
        blend = Blend::load(&config)?;
        for warning in data_warnings(&blend, &["the evaluation"]) {
            warn(&warning);
        }
        in_order(blend.parts(Use::Prompts, "the evaluation")?, cfg.seed)
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
    let (prompts, long) = data::build("evaluation", rows, |row| {
        let example = data::prompt_example(row, &source.tokenizer, &limits)?;
        if let Some(example) = &example {
            seen.borrow_mut().note(example.remarks, row, &source.tokenizer, limits.chat);
        }
        Ok(example)
    })?;
    let left_out = (long > 0).then(|| format!("{long} rows were too long, and left out"));
    for warning in left_out.into_iter().chain(seen.borrow().warnings("the evaluation")) {
        warn(&warning);
    }
    Ok(prompts.into_iter().take(cfg.prompts).collect())
}

fn demo_row(prompt: String) -> Row {
    let prompt = Some(Prompt::Text(prompt));
    Row { file: "the demo".into(), prompt, ..Row::blank() }
}

fn specs(sources: &[DataSource]) -> Result<Vec<Spec>> {
    let spec = |s: &DataSource| Ok(Spec { path: data_path(&s.path)?, weight: s.weight });
    sources.iter().map(spec).collect()
}

fn blend_config(cfg: &RunConfig) -> Result<BlendConfig> {
    let data = specs(&cfg.data_sources()?)?;
    Ok(BlendConfig {
        // Without data to share out, there are texts only.
        split: if data.is_empty() { [1.0, 0.0, 0.0] } else { cfg.split()? },
        data,
        sft_only: specs(&cfg.sft_only_sources()?)?,
        eval_fraction: cfg.eval_fraction,
        seed: cfg.seed as u32,
        on_bad: cfg.on_bad_row,
        by_use: true,
        columns: cfg.stages.iter().filter(|a| a.samples()).try_fold(false, |any, of| {
            Ok::<bool, Error>(any || reads_columns(cfg.online(of)?.reward_rule.as_deref())?)
        })?,
    })
}

/// True if this rule reads columns of the rows.
fn reads_columns(rule: Option<&str>) -> Result<bool> {
    match rule {
        Some(name) if name != demo::RULE => Ok(built_in_rule(name)?.asks_columns()),
        _ => Ok(false),
    }
}

/// All data of a run, divided among its stages.
///
/// # Errors
/// A file cannot be read, or a stage of the run gets no row.
pub(super) fn read_rows(cfg: &RunConfig) -> Result<Blend> {
    let config = blend_config(cfg)?;
    if config.data.is_empty() && config.sft_only.is_empty() {
        return Err(Error::user("no data given; name it with --data-path FILE"));
    }
    let blend = Blend::load(&config)?;
    let parts = |of: &&Algorithm| blend.parts(of.learns.rows(), of.name).map(drop);
    cfg.stages.iter().try_for_each(parts)?;
    Ok(blend)
}

/// The rows that no stage of these names can use: a line for each kind and set.
fn unused_lines(blend: &Blend, names: &[&str]) -> Vec<String> {
    let line = |(set, kind, n): &(String, RowKind, usize)| {
        format!("{} of {set} left out: {} cannot use them", kind.counted(*n), names.join(" and "))
    };
    blend.unused.iter().map(line).collect()
}

/// Warnings about the rows of the stages of these names as they were read.
fn data_warnings(blend: &Blend, names: &[&str]) -> Vec<String> {
    let first = blend.bad.first.first().cloned().unwrap_or_default();
    let unread = Rows { count: blend.bad.count, first }.line("rows could not be read");
    let warnings = unused_lines(blend, names).into_iter().chain(unread);
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
        None => read_rows(run.cfg)?,
    };
    let blend = Rc::new(blend);
    run.note_data(&blend.files);
    // An earlier program has told of them.
    let repeats = run.reporter.repeat(run.goes_on);
    for stage in &run.cfg.stages {
        let rows = blend.tally(stage.learns.rows()).join("; ");
        run.reporter.emit(Event::note(format!("data for {}: {rows}", stage.name)));
    }
    for warning in data_warnings(&blend, &run.cfg.stage_names()) {
        run.reporter.emit(Event::warning(warning));
    }
    run.reporter.repeat(repeats);
    run.blend = Some(blend.clone());
    Ok(blend)
}

/// The training rows of all sets in the order of a first epoch.
fn in_order(parts: &[Part], seed: u64) -> Vec<&Row> {
    let sets: Vec<(usize, f64)> = parts.iter().map(|p| (p.train.len(), p.weight)).collect();
    let rows: Vec<&Row> = parts.iter().flat_map(|p| &p.train).collect();
    data::epoch_order(&sets, seed, 0).into_iter().map(|i| rows[i]).collect()
}

/// Examples with what is to be told of them.
type Made<T> = (Examples<T>, Vec<String>);

/// The examples, once their warnings are told.
fn told<T>(run: &mut Run<'_>, (examples, warnings): Made<T>) -> Examples<T> {
    warnings.into_iter().for_each(|warning| run.reporter.emit(Event::warning(warning)));
    examples
}

fn examples_of<T: Learnt>(
    cfg: &RunConfig,
    blend: &Blend,
    of: &Algorithm,
    source: &Source,
    limits: &Limits,
) -> Result<Made<T>> {
    let (what, rows) = (of.name, of.learns.rows());
    let texts = match &of.learns {
        Learns::Texts(_, texts) => texts(&cfg.sections, of.name)?,
        _ => Texts::default(),
    };
    let skip = cfg.on_bad_row == data::OnBadRow::Skip;
    let mut out = Examples { train: vec![], eval: vec![], sets: vec![] };
    let (mut bad, mut long, mut silent) = (Rows::default(), Rows::default(), Rows::default());
    let mut seen = Seen::default();
    for part in blend.parts(rows, of.name)? {
        let before = out.train.len();
        for (from, to) in [(&part.train, &mut out.train), (&part.eval, &mut out.eval)] {
            for row in from {
                check_stop()?;
                match T::of_row(row, &source.tokenizer, limits, texts) {
                    Ok(Some(example)) => {
                        seen.note(example.remarks(), row, &source.tokenizer, limits.chat);
                        to.push(example);
                    }
                    Ok(None) => {
                        let weightless = rows == Use::Texts && row.learns_nothing();
                        let left_out = if weightless { &mut silent } else { &mut long };
                        left_out.add(row);
                    }
                    Err(e) if skip && e.kind() == Kind::User => bad.add_told(|| e.to_string()),
                    Err(e) => return Err(e),
                }
            }
        }
        out.sets.push((out.train.len() - before, part.weight));
    }
    // A row can also be left out for having nothing to learn within that length.
    let nothing = rows.nothing();
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
