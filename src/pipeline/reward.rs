//! Step 2 as a run: pairs in, a reward model directory out.

use super::card::Card;
use super::stage::Stage;
use super::{Run, datasets, evaluates, settings, start};
use crate::base::Result;
use crate::data::PairExample;
use crate::engine::Engine;
use crate::formats::Draft;
use crate::model::Head;
use crate::report::Event;
use crate::rlhf::{RewardConfig, RewardTrainer};
use crate::tape::Workspace;
use std::time::Instant;

/// Runs step 2. Returns it with its number of iterations.
pub(super) fn run(run: &mut Run<'_>) -> Result<(Stage, u64)> {
    let cfg = run.cfg;
    let source = run.source(&start::reward(cfg)?)?;
    let data = datasets::pairs(run, &source)?;
    let (stage, from) = run.enter("reward", &[&source])?;
    let options = run.trained(&source, Head::Score, settings::critic_lora(cfg), false)?;
    let model = source.load(&options, &mut run.reporter)?;
    run.describe("reward", &model);
    let s = &cfg.reward.optimizer;
    let batches = data.batches(s.rows_per_step(), s.num_train_epochs, s.max_steps, cfg.seed);
    let total = batches.len() as u64;
    let engine = Engine::trained(
        model,
        settings::reward_adamw(cfg),
        settings::keep(cfg.gradient_checkpointing),
    )?;
    let step = settings::step(cfg, s, total);
    let loss = settings::reward_loss(cfg);
    let mut trainer = RewardTrainer::new(engine, RewardConfig { step, loss });
    run.start(&stage, "Reward model", total, "batches")?;
    let held_out = data.held_out(s.eval_batches * s.rows_per_step());
    // Of the evaluation before, the accuracy is all that is told at the end.
    let (before, mut ends) = match from {
        Some(from) => {
            trainer.restore(&from)?;
            (from.find("eval_accuracy_before")?, (from.get("loss_first")?, from.get("loss_last")?))
        }
        None => {
            let eval = run.droppable(|run| judge_pairs(&trainer, &mut run.ws, &held_out))?;
            (eval.map(|(_, accuracy)| accuracy), (f32::NAN, f32::NAN))
        }
    };
    for (i, batch) in batches.iter().enumerate().skip(stage.done) {
        let clock = Instant::now();
        let pairs: Vec<&PairExample> = batch.rows.iter().map(|&i| &data.train[i]).collect();
        let trained = run.droppable(|run| trainer.train(&mut run.ws, &pairs));
        let stats = run.unless_dropped(trained, &stage, i as u64, &|draft| {
            save(&trainer, ends, before, draft)
        })?;
        let skipped = run.skipped("reward", stats.skipped.as_slice())?;
        ends = (if i == 0 { stats.loss } else { ends.0 }, stats.loss);
        let mut values = vec![
            ("loss", f64::from(stats.loss)),
            ("accuracy", f64::from(stats.accuracy)),
            ("margin", f64::from(stats.margin)),
            ("grad_norm", f64::from(stats.grad_norm)),
            ("tokens_per_s", stats.tokens as f64 / clock.elapsed().as_secs_f64()),
        ];
        values.extend(skipped);
        if evaluates(s.eval_interval, i + 1, batch.ends_epoch) {
            let eval = judge_pairs(&trainer, &mut run.ws, &held_out)?;
            values.extend(
                eval.into_iter().flat_map(|(loss, accuracy)| {
                    [("eval_loss", loss), ("eval_accuracy", accuracy)]
                }),
            );
        }
        let done = i as u64 + 1;
        run.reporter.emit(Event::metrics("reward", done, &values));
        run.boundary(&stage, done, &values, &|draft| save(&trainer, ends, before, draft))?;
    }
    let after = judge_pairs(&trainer, &mut run.ws, &held_out)?;
    let dir = run.dir.reward();
    let card = Card::reward(cfg, total)?;
    source.save(&trainer.engine.model, &dir, &settings::save_as(cfg)?, None, &card)?;
    let mut summary = vec![("loss_first", f64::from(ends.0)), ("loss_last", f64::from(ends.1))];
    summary.extend(before.map(|accuracy| ("eval_accuracy_before", accuracy)));
    summary.extend(after.map(|(_, accuracy)| ("eval_accuracy_after", accuracy)));
    run.finish(&stage, &summary, &dir, trainer.engine.memory());
    Ok((stage, total))
}

/// Adds what the step knows to a checkpoint: the first and the last loss, the accuracy of before on
/// what is held out.
fn save<'d>(
    trainer: &'d RewardTrainer,
    (first, last): (f32, f32),
    before: Option<f64>,
    draft: &mut Draft<'d>,
) -> Result<()> {
    draft.set("loss_first", first);
    draft.set("loss_last", last);
    before.iter().for_each(|accuracy| draft.set("eval_accuracy_before", accuracy));
    trainer.save(draft)
}

/// Loss and accuracy on the pairs held out; `None` if none were.
fn judge_pairs(
    trainer: &RewardTrainer,
    ws: &mut Workspace,
    held_out: &[&PairExample],
) -> Result<Option<(f64, f64)>> {
    if held_out.is_empty() {
        return Ok(None);
    }
    let stats = trainer.evaluate(ws, held_out)?;
    Ok(Some((f64::from(stats.loss), f64::from(stats.accuracy))))
}
