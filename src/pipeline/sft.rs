//! Step 1 as a run: data in, a finetuned model directory out.

use super::card::Card;
use super::stage::Stage;
use super::{Run, datasets, evaluates, settings, start};
use crate::base::Result;
use crate::data::SftExample;
use crate::engine::Engine;
use crate::formats::Draft;
use crate::model::Head;
use crate::report::Event;
use crate::rlhf::{SftConfig, SftTrainer};
use crate::tape::Workspace;
use std::time::Instant;

/// Runs step 1. Returns it with its number of iterations.
pub(super) fn run(run: &mut Run<'_>) -> Result<(Stage, u64)> {
    let cfg = run.cfg;
    let source = run.source(&start::sft(cfg)?)?;
    let data = datasets::sft(run, &source)?;
    let (stage, from) = run.enter("sft", &[&source])?;
    let options = run.trained(&source, Head::Lm, settings::actor_lora(cfg), false)?;
    let model = source.load(&options, &mut run.reporter)?;
    run.describe("actor", &model);
    let s = &cfg.sft.optimizer;
    let batches = data.batches(s.rows_per_step(), s.num_train_epochs, s.max_steps, cfg.seed);
    let total = batches.len() as u64;
    let engine = Engine::trained(
        model,
        settings::sft_adamw(cfg),
        settings::keep(cfg.gradient_checkpointing),
    )?;
    let step = settings::step(cfg, s, total);
    let mut trainer =
        SftTrainer::new(engine, SftConfig { step, loss_on_prompt: cfg.sft.loss_on_prompt });
    run.start(&stage, "Supervised finetuning", total, "batches")?;
    let held_out = data.held_out(s.eval_batches * s.rows_per_step());
    let (before, mut first, mut last) = match from {
        Some(from) => {
            trainer.restore(&from)?;
            (from.find("eval_loss_before")?, from.get("loss_first")?, from.get("loss_last")?)
        }
        None => {
            let eval = run.droppable(|run| eval_loss(&trainer, &mut run.ws, &held_out))?;
            (eval, f32::NAN, f32::NAN)
        }
    };
    for (i, batch) in batches.iter().enumerate().skip(stage.done) {
        let clock = Instant::now();
        let examples: Vec<&SftExample> = batch.rows.iter().map(|&i| &data.train[i]).collect();
        let trained = run.droppable(|run| trainer.train(&mut run.ws, &examples));
        let stats = run.unless_dropped(trained, &stage, i as u64, &|draft| {
            save(&trainer, [first, last], before, draft)
        })?;
        let skipped = run.skipped("sft", stats.skipped.as_slice())?;
        if i == 0 {
            first = stats.loss;
        }
        last = stats.loss;
        let mut values = vec![
            ("loss", f64::from(stats.loss)),
            ("grad_norm", f64::from(stats.grad_norm)),
            ("tokens_per_s", stats.tokens as f64 / clock.elapsed().as_secs_f64()),
        ];
        values.extend(skipped);
        if evaluates(s.eval_interval, i + 1, batch.ends_epoch) {
            let loss = eval_loss(&trainer, &mut run.ws, &held_out)?;
            values.extend(loss.map(|loss| ("eval_loss", loss)));
        }
        let done = i as u64 + 1;
        run.reporter.emit(Event::metrics("sft", done, &values));
        run.boundary(&stage, done, &values, &|draft| save(&trainer, [first, last], before, draft))?;
    }
    let after = eval_loss(&trainer, &mut run.ws, &held_out)?;
    let dir = run.dir.sft();
    let card = Card::sft(cfg, total)?;
    source.save(&trainer.engine.model, &dir, &settings::save_as(cfg)?, None, &card)?;
    let mut summary = vec![("loss_first", f64::from(first)), ("loss_last", f64::from(last))];
    summary.extend(before.map(|loss| ("eval_loss_before", loss)));
    summary.extend(after.map(|loss| ("eval_loss_after", loss)));
    run.finish(&stage, &summary, &dir, trainer.engine.memory());
    Ok((stage, total))
}

/// Adds what the step knows to a checkpoint: the first and the last loss, that of before on what is
/// held out.
fn save<'d>(
    trainer: &'d SftTrainer,
    [first, last]: [f32; 2],
    before: Option<f64>,
    draft: &mut Draft<'d>,
) -> Result<()> {
    draft.set("loss_first", first);
    draft.set("loss_last", last);
    before.iter().for_each(|loss| draft.set("eval_loss_before", loss));
    trainer.save(draft)
}

/// The loss on what was held out; `None` if nothing was.
fn eval_loss(
    trainer: &SftTrainer,
    ws: &mut Workspace,
    held_out: &[&SftExample],
) -> Result<Option<f64>> {
    if held_out.is_empty() {
        return Ok(None);
    }
    Ok(Some(f64::from(trainer.evaluate(ws, held_out)?)))
}
