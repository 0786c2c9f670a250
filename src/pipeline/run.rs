//! A run in progress: all that its stages share.

use super::config::RunConfig;
use super::doctor::free_memory;
use super::health::Health;
use super::ranks::{Ranks, asked_stage, blocks, fitting_stage};
use super::run_dir::RunDir;
use super::saver::Saver;
use super::sources::Source;
use super::straggler::StragglerDetector;
use super::watchdog::Watchdog;
use crate::algo::{Algorithm, RewardRule};
use crate::arch::Arch;
use crate::base::{DType, Result};
use crate::comm::Comm;
use crate::data::Blend;
use crate::device::Device;
use crate::engine::Engine;
use crate::formats::{Input, Snapshot};
use crate::model::{Head, LoadOptions, LoraConfig, Model};
use crate::pool::{Partition, Zero};
use crate::report::{Event, Reporter};
use crate::tape::Workspace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// A run in progress.
pub(super) struct Run<'c> {
    pub(super) cfg: &'c RunConfig,
    pub(super) ranks: Ranks,
    pub(super) comm: Comm,
    // Before the directory: what is being written ends before the lock is given up.
    pub(super) saver: Saver,
    pub(super) dir: RunDir,
    pub(super) device: Device,
    /// The device's description, for output.
    pub(super) device_name: String,
    pub(super) dtype: DType,
    pub(super) ws: Workspace,
    pub(super) watchdog: Watchdog,
    pub(super) reporter: Reporter,
    /// True if all ranks dropped the work just done.
    pub(super) dropped: bool,
    /// How fast this rank is beside the others.
    pub(super) straggler: StragglerDetector,
    /// When it began, in seconds since 1970: the date that chat templates write.
    pub(super) begun: i64,
    /// True if an iteration was done here.
    pub(super) trained: Rc<Cell<bool>>,
    /// Iterations of the step under way.
    pub(super) total: u64,
    /// The rows of all stages, as read before the directory was opened.
    pub(super) read: Option<Blend>,
    /// The same in use.
    pub(super) blend: Option<Rc<Blend>>,
    /// Scores answers for evaluation only; training never sees it.
    pub(super) rule: Option<&'c dyn RewardRule>,
    /// The health of the current step.
    pub(super) health: Health,
    /// The configuration as the user gave it, by key.
    pub(super) keys: BTreeMap<String, String>,
    /// The data files read so far.
    pub(super) data: Vec<Input>,
    /// The checkpoint that the first step to run resumes from.
    pub(super) resumed: Option<Snapshot>,
    /// True if this process resumes work that an earlier process began.
    pub(super) goes_on: bool,
    pub(super) started: Instant,
    /// Seconds that earlier programs spent on the run.
    pub(super) earlier: f64,
}

impl Run<'_> {
    /// Seconds spent on the run.
    pub(super) fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    /// Options for a model from `source` that is only asked, and does not generate.
    pub(super) fn frozen(&self, source: &Source, head: Head) -> Result<LoadOptions> {
        let strict = self.cfg.strict_weights;
        let partition = self.partition(&source.arch, head, false, false)?;
        let options = LoadOptions::frozen(head, self.dtype).on(self.device);
        Ok(LoadOptions { strict, partition, offload: self.cfg.offload, ..options })
    }

    /// Options for a model to be trained; `generates`: with tensor parallelism, if the run says so.
    pub(super) fn trained(
        &self,
        source: &Source,
        head: Head,
        lora: Option<LoraConfig>,
        generates: bool,
    ) -> Result<LoadOptions> {
        let (grads, seed) = (self.cfg.optimizer_state.grads(), self.cfg.seed);
        let partition = self.partition(&source.arch, head, true, generates)?;
        let strict = self.cfg.strict_weights;
        let options = LoadOptions::frozen(head, self.dtype).on(self.device);
        Ok(LoadOptions { train: true, grads, lora, seed, strict, partition, ..options })
    }

    /// A model that is only asked: its weights may be the host's.
    pub(super) fn asked(&mut self, source: &Source, head: Head, what: &str) -> Result<Engine> {
        let options = self.frozen(source, head)?;
        let model = source.load(&options, &mut self.reporter)?;
        if model.store.is_on_host() {
            let mib = model.store.host_bytes() as f64 / f64::from(1 << 20);
            let note = format!("{what}: {mib:.1} MiB of weights stay in the host's memory");
            self.reporter.emit(Event::note(note));
        }
        Ok(Engine::frozen(model))
    }

    /// Resolves a model of the run and loads its tokenizer, as of the time when the run began.
    pub(super) fn source(&self, name: &str) -> Result<Source> {
        Source::open_at(name, self.begun)
    }

    pub(super) fn describe(&mut self, what: &str, model: &Model) {
        self.reporter.emit(Event::note(format!(
            "{what}: {} with {:.1} M parameters, {:.1} M trained{}",
            model.arch.family.model_type,
            model.num_params() as f64 / 1e6,
            model.num_trained() as f64 / 1e6,
            if model.score_is_random { ", with a new score head" } else { "" }
        )));
    }

    /// Tells of optimizer steps that were skipped in an iteration, and stops the run when there are
    /// too many; returns their number so far as a metric.
    pub(super) fn skipped(
        &mut self,
        of: &Algorithm,
        why: &[String],
    ) -> Result<Option<(&'static str, f64)>> {
        if let Some(warning) = self.health.count(of.name, why)? {
            self.reporter.emit(Event::warning(warning));
        }
        Ok(self.health.skipped_steps())
    }
}

impl Run<'_> {
    /// How a model of `arch` with `head` is shared out; `generates`: with tensor parallelism where
    /// weights are shared out.
    pub(super) fn partition(
        &self,
        arch: &Arch,
        head: Head,
        trained: bool,
        generates: bool,
    ) -> Result<Partition> {
        let comm = &self.ranks.comm;
        let ranks = comm.size();
        if ranks == 1 {
            return Ok(Partition::alone());
        }
        let stage = match asked_stage(self.cfg, head) {
            Some(stage) => stage,
            None => self.fitting(arch, trained)?,
        };
        let blocks = if generates { blocks(self.cfg, stage, ranks, self.ranks.local) } else { 1 };
        Partition::new(comm.clone(), stage, blocks)
    }

    /// The lowest stage at which the models of a step of this size take no more than half of the
    /// memory there is: of the rank's card, or its share of the machine's.
    fn fitting(&self, arch: &Arch, trained: bool) -> Result<Zero> {
        let comm = &self.ranks.comm;
        let free = match self.ranks.card {
            Some(card @ Device::Cuda(_)) => card.stream()?.card().memory as f64,
            _ => free_memory().map_or(f64::INFINITY, |b| b as f64) / self.ranks.local as f64,
        };
        let own = fitting_stage(self.cfg, arch, trained, comm.size(), free) as u32;
        // The tightest rank decides.
        let all = comm.concat(&[own])?;
        Ok(Zero::ALL[all.into_iter().max().unwrap_or(own) as usize])
    }
}
