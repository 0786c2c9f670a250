//! The settings of Tables 1 to 3 of DeepSpeed-Chat's release (Microsoft, 2023) beside what is
//! estimated for them here: step 3 on 264,292 pairs of prompt and answer of 256 tokens each, OPT
//! actors, an OPT-350M as critic and reward model.

use super::dry::Dry;
use super::machine::{CARDS, Card, Machine};
use super::models::OPT;
use super::text::columns;
use super::{fits, most, steps, time};
use crate::algo::{Algorithm, DEEPSPEED_CHAT};
use crate::base::{Error, Result};
use crate::pipeline::config::RunConfig;
use crate::tape::ActivationCheckpointing;
use crate::train::AdamWState;

/// Its step 3.
static STEP_3: &Algorithm = DEEPSPEED_CHAT[2];
/// Answers of the published epoch.
const ANSWERS: f64 = 264_292.0;
/// The published limit of a step: 1024 sequences of 512 tokens.
const MOST: usize = 1024;
/// Rank of the adapters where full finetuning does not fit: that of the shipped recipes.
const LORA: usize = 128;

/// A published result: the actor, hours of training, and dollars where given.
type Said = (&'static str, f64, Option<f64>);

/// Table 1, one node of eight.
static ONE_NODE: [(&str, &[Said]); 2] = [
    ("a100-40g", &[("opt-6.7b", 5.7, None), ("opt-13b", 10.8, None), ("opt-30b", 44.4, None)]),
    (
        "a100-80g",
        &[
            ("opt-6.7b", 4.1, Some(132.0)),
            ("opt-13b", 9.0, Some(290.0)),
            ("opt-30b", 18.0, Some(580.0)),
            ("opt-66b", 50.4, Some(1620.0)),
        ],
    ),
];

/// Table 2, 64 cards.
static NODES: [Said; 4] = [
    ("opt-13b", 1.25, Some(320.0)),
    ("opt-30b", 4.0, Some(1024.0)),
    ("opt-66b", 7.5, Some(1920.0)),
    ("opt-175b", 20.0, Some(5120.0)),
];

/// Table 3, the largest actor on one GPU.
static LARGEST: [(&str, &str); 4] = [
    ("v100-32g", "opt-2.7b"),
    ("a6000-48g", "opt-6.7b"),
    ("a100-40g", "opt-6.7b"),
    ("a100-80g", "opt-13b"),
];

/// The three tables.
pub(super) fn tables() -> Result<String> {
    let mut out = String::from(
        "DeepSpeed-Chat's published figures beside estimates of this program for the same work: \
         an epoch of step 3, 264,292 pairs of\n\
         256 + 256 tokens, critic and reward model OPT-350M. \
         Published were measured, estimates were not (docs/performance.md).\n",
    );
    for (card, said) in &ONE_NODE {
        out +=
            &format!("\nTable 1: 8 x {card}\n{}", epochs(Machine::of(8, card_of(card)?)?, said)?);
    }
    let many = Machine::of(64, card_of("a100-80g")?)?;
    out += &format!("\nTable 2: 64 x a100-80g\n{}", epochs(many, &NODES)?);
    let mut lines = vec![
        ["", "published", "estimate: full", "full, offloaded", "LoRA 128"]
            .map(String::from)
            .to_vec(),
    ];
    for (card, said) in &LARGEST {
        let machine = Machine::of(1, card_of(card)?)?;
        let own = [&WAYS[..2], &WAYS[2..3], &WAYS[3..]].map(|ways| largest_actor(machine, ways));
        let own = own.into_iter().collect::<Result<Vec<_>>>()?;
        lines.push([vec![card.to_string(), said.to_string()], own].concat());
    }
    out += &format!("\nTable 3: the largest actor on one GPU\n{}", columns(&lines));
    Ok(out)
}

fn card_of(name: &str) -> Result<Card> {
    let found = CARDS.iter().find(|c| c.name == name);
    found.copied().ok_or_else(|| Error::internal(format!("no GPU {name}")))
}

/// How an actor may be trained, in the order in which ways are tried.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    state: AdamWState,
    offload: bool,
    lora: usize,
}

#[rustfmt::skip]
static WAYS: [Way; 4] = [
    Way { name: "full", state: AdamWState::Full, offload: false, lora: 0 },
    Way { name: "full, compact", state: AdamWState::Compact, offload: false, lora: 0 },
    Way { name: "full, offloaded", state: AdamWState::Full, offload: true, lora: 0 },
    Way { name: "LoRA 128", state: AdamWState::Full, offload: false, lora: LORA },
];

/// Its step 3 as it was measured, on `rows` prompts in micro-batches of `micro`, with everything
/// computed again that can be.
fn setting(actor: &str, way: Way, rows: usize, micro: usize) -> Result<RunConfig> {
    let mut cfg = RunConfig {
        stages: vec![STEP_3],
        actor_model: Some(actor.to_string()),
        reward_model: Some("opt-350m".to_string()),
        gradient_checkpointing: ActivationCheckpointing::Full,
        optimizer_state: way.state,
        offload: way.offload,
        eval_fraction: 0.0,
        ..RunConfig::default()
    };
    cfg.lora.actor_lora_dim = way.lora;
    cfg.micro_batch_tokens = micro * (cfg.max_prompt_seq_len + cfg.max_answer_seq_len);
    let mut p = cfg.online(STEP_3)?;
    (p.per_device_generation_batch_size, p.generation_batches) = (rows, 1);
    p.per_device_training_batch_size = rows;
    cfg.sections.put(STEP_3.name, &p)?;
    Ok(cfg)
}

/// The setting with as many sequences a step as fit, up to the published limit; None if not even
/// one for each rank does.
fn fitted(actor: &str, way: Way, machine: Machine) -> Result<Option<(RunConfig, usize)>> {
    let with = |each: usize, micro: usize| setting(actor, way, each * machine.ranks, micro);
    // Micro-batches of one sequence: what is bounded here is the cache.
    let each = most((MOST / machine.ranks).max(1), |n| fits(&with(n, 1)?, machine, STEP_3))?;
    if each == 0 {
        return Ok(None);
    }
    // And with micro-batches as large as there is room for.
    let micro = most(each.min(32), |n| fits(&with(each, n)?, machine, STEP_3))?;
    Ok(Some((with(each, micro.max(1))?, each * machine.ranks)))
}

fn epochs(machine: Machine, said: &[Said]) -> Result<String> {
    let heads = ["", "published", "", "estimate", "", "sequences a step", "trained"];
    let mut lines = vec![heads.map(String::from).to_vec()];
    let money =
        |hours: f64, dollars: Option<f64>| match (dollars, machine.card.and_then(|c| c.dollars)) {
            (Some(dollars), _) => format!("${dollars:.0}"),
            (None, Some(rate)) => format!("${:.0}", hours * rate * machine.ranks as f64),
            (None, None) => String::new(),
        };
    for (actor, hours, dollars) in said {
        let mut ways = WAYS.iter();
        let found = loop {
            let Some(way) = ways.next() else { break None };
            if let Some(fitted) = fitted(actor, *way, machine)? {
                break Some((fitted, way.name));
            }
        };
        let mut line = vec![actor.to_string(), format!("{hours:.1} h"), money(*hours, *dollars)];
        match found {
            Some(((cfg, rows), how)) => {
                let hours = ANSWERS / rows as f64 * seconds(&cfg, machine)? / 3600.0;
                line.extend([format!("{hours:.1} h"), money(hours, None)]);
                line.extend([rows.to_string(), how.to_string()]);
            }
            None => line.push("does not fit".into()),
        }
        lines.push(line);
    }
    Ok(columns(&lines))
}

/// Seconds of an iteration.
fn seconds(cfg: &RunConfig, machine: Machine) -> Result<f64> {
    let mut dry = Dry::new(cfg, machine)?;
    let step = steps::step(&mut dry, STEP_3)?;
    let all = step.phases.iter().map(|p| time::seconds(p, &machine, cfg.offload));
    all.sum::<Option<f64>>().ok_or_else(|| Error::internal("no GPU"))
}

/// The largest actor that is trained on `machine` in one of `ways`, an answer a step.
fn largest_actor(machine: Machine, ways: &[Way]) -> Result<String> {
    for shape in OPT.iter().rev() {
        for way in ways {
            if fits(&setting(shape.0, *way, 1, 1)?, machine, STEP_3)? {
                return Ok(shape.0.to_string());
            }
        }
    }
    Ok("none".into())
}
