//! A stage under way and its checkpoints: what it goes on from, what is saved after an iteration
//! beside its trainer, and where the run stops when it is asked to.

use super::health::Health;
use super::ranks;
use super::resume::same_inputs;
use super::run::Run;
use super::sources::Source;
use crate::algo::{Algorithm, Metric, OF_ALL, place};
use crate::base::{Error, FileId, Finishing, Result, finish_first, stop_requested, stop_signal};
use crate::formats::{Fingerprint, Input, Label, Snapshot, SnapshotBuilder, fingerprint};
use crate::report::{Declared, Event};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A stage that has been entered.
pub(super) struct Stage {
    /// Its algorithm.
    pub(super) of: &'static Algorithm,
    /// Iterations done before.
    pub(super) done: usize,
    started: Instant,
    /// Seconds spent on it before.
    earlier: f64,
    /// The model files that the step reads, and the data files read so far.
    inputs: Vec<Input>,
    /// The model files as they were before they were read.
    read: Vec<(PathBuf, Option<FileId>)>,
    /// From its first iteration on, a signal stops it where its state is saved.
    finishing: Option<Finishing>,
}

impl Stage {
    /// Seconds spent on it.
    pub(super) fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    /// Refuses model files that are not what they were before they were read: a part of them could
    /// be of another model, and the checksums too.
    fn check_unchanged(&self) -> Result<()> {
        for (file, id) in &self.read {
            if FileId::of(file)? != *id {
                return Err(Error::resource(format!(
                    "{} was changed while the run read it; run the same command again when it is \
                     complete",
                    file.display()
                )));
            }
        }
        Ok(())
    }
}

/// True if a stage is complete at the moment that `label` marks.
pub(super) fn is_complete(label: &Label, of: &Algorithm) -> bool {
    place(of.name) < place(&label.step) || label.finished && of.name == label.step
}

/// True if `label` marks a moment within a stage.
pub(super) fn in_progress(label: &Label, of: &Algorithm) -> bool {
    label.step == of.name && !label.finished
}

/// A metric as the report is told of it.
fn declared(metric: &Metric) -> Declared {
    Declared {
        name: metric.name.into(),
        label: metric.label.map(Into::into),
        unit: metric.unit.map(Into::into),
        percent: metric.percent,
        shown: metric.shown,
        headline: metric.headline,
        price: metric.price,
    }
}

impl Run<'_> {
    /// Enters a step that reads the models of `sources`, once its data is read. Returns also the
    /// snapshot to go on from, where it does not begin.
    pub(super) fn enter(
        &mut self,
        of: &'static Algorithm,
        sources: &[&Source],
    ) -> Result<(Stage, Option<Snapshot>)> {
        let mut inputs = self.data.clone();
        let mut read = vec![];
        for source in sources {
            for (file, id) in source.files_as_read()? {
                inputs.push(self.input(&file, false, fingerprint(&file)?));
                read.push((file, id));
            }
        }
        let from = self.resumed.take();
        ranks::same(&self.comm, "models or data", format!("{inputs:?}").as_bytes())?;
        if let Some(snapshot) = &from {
            same_inputs(snapshot, &inputs, self.cfg.allow_changed_data)?;
        }
        let from = from.filter(|s| in_progress(s.label(), of));
        self.health = from.as_ref().map_or(Ok(Health::default()), |s| Health::restore(of, s))?;
        let earlier = from.as_ref().map_or(Ok(0.0), |s| s.get("seconds_of_step"))?;
        let done = from.as_ref().map_or(0, |s| s.label().iteration as usize);
        let started = Instant::now();
        Ok((Stage { of, done, started, earlier, inputs, read, finishing: None }, from))
    }

    /// Tells that a step begins, or goes on, once its models are loaded.
    ///
    /// # Errors
    /// More has been done than is asked for, or a model is not what was loaded any more.
    pub(super) fn start(&mut self, stage: &mut Stage, total: u64, unit: &str) -> Result<()> {
        if stage.done as u64 > total {
            return Err(Error::user(format!(
                "{} has done {} {unit} already, but this command asks for {total}; give more \
                 epochs or a \
                 larger --max-steps",
                stage.of.name, stage.done
            )));
        }
        stage.check_unchanged()?;
        stage.finishing = Some(finish_first());
        let (step, title) = (stage.of.name.to_string(), stage.of.title.to_string());
        let unit = unit.to_string();
        let goes_on = format!("resumes after {} of {total} {unit}", stage.done);
        self.total = total;
        self.watchdog.begin(stage.of.name, stage.done as u64 + 1);
        self.straggler.begin(&self.comm);
        let metrics = stage.of.metrics().chain(OF_ALL).map(declared).collect();
        self.reporter.emit(Event::StepStart { step, title, total, unit, metrics });
        if stage.done > 0 {
            self.reporter.emit(Event::note(goes_on));
        }
        self.reporter.repeat(false);
        Ok(())
    }

    /// Ends an iteration, with its metrics: saves a checkpoint when it is time, and stops where the
    /// run was asked to. `save` adds what the step knows to the checkpoint.
    pub(super) fn boundary<'d>(
        &mut self,
        stage: &Stage,
        iteration: u64,
        values: &[(&str, f64)],
        save: &dyn Fn(&mut SnapshotBuilder<'d>) -> Result<()>,
    ) -> Result<()> {
        self.trained.set(true);
        self.watchdog.next();
        if let Some(slow) = self.straggler.end(&self.comm)? {
            self.reporter.emit(Event::warning(slow));
        }
        for warning in self.health.observe(stage.of, values) {
            self.reporter.emit(Event::warning(warning));
        }
        self.saver.check()?;
        self.tell_of_checkpoints();
        if let Some(told) = self.ws.take_notice() {
            self.reporter.emit(Event::warning(told));
        }
        // The last state of all is what a longer run goes on from.
        let last = iteration == self.total && stage.of == self.cfg.last_stage();
        let due = self.saver.is_due(stage.of.name, iteration, values) || last;
        let [due, stops] = self.comm.any([due, stop_requested()])?;
        let signal = stops.then(stop_signal);
        if due || stops {
            let mut builder = SnapshotBuilder::default();
            save(&mut builder)?;
            self.save(stage, iteration, false, builder, self.dir.log_bytes()?)?;
        }
        match signal {
            Some(signal) => self.stop_after(stage, iteration, signal),
            None => Ok(()),
        }
    }

    /// Does work that leaves everything as it was when it is dropped, which it is once a signal
    /// asks to stop.
    pub(super) fn droppable<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.ws.cancel_when(Some(stop_requested));
        let done = work(self);
        self.ws.cancel_when(None);
        self.dropped = self.ws.take_dropped();
        match done {
            Err(e) if self.dropped => Err(e.context(format_args!("stopped by {}", stop_signal()))),
            done => done,
        }
    }

    /// The result of droppable work in the iteration after `done`. Where it was dropped, saves what
    /// was before it. `save` adds what the step knows to the checkpoint.
    pub(super) fn unless_dropped<'d, T>(
        &mut self,
        result: Result<T>,
        stage: &Stage,
        done: u64,
        save: &dyn Fn(&mut SnapshotBuilder<'d>) -> Result<()>,
    ) -> Result<T> {
        let e = match result {
            Err(e) if self.dropped => e,
            result => return result,
        };
        // Nothing has been done that the checkpoint it began with does not hold.
        if done == stage.done as u64 {
            return Err(e);
        }
        let mut builder = SnapshotBuilder::default();
        save(&mut builder)?;
        self.save(stage, done, false, builder, self.dir.log_bytes()?)?;
        self.stop_after(stage, done, stop_signal()).and(Err(e))
    }

    /// Ends a step whose result was saved to `dir`; `memory` is what its engine takes.
    pub(super) fn finish(
        &mut self,
        stage: &Stage,
        summary: &[(&str, f64)],
        dir: &Path,
        memory: [usize; 4],
    ) {
        self.watchdog.rest();
        let step = stage.of.name;
        let mib = |bytes: usize| bytes >> 20;
        let [weights, grads, optimizer, _] = memory;
        let activations = self.ws.programs().iter().map(|p| p.1).max().unwrap_or(0);
        self.reporter.emit(Event::note(format!(
            "{step}: saved {}; weights {} MiB, gradients {} MiB, optimizer {} MiB, activations {} \
             MiB, \
             copy for checkpoints {} MiB",
            dir.display(),
            mib(weights),
            mib(grads),
            mib(optimizer),
            mib(activations),
            mib(self.saver.bytes())
        )));
        self.reporter.emit(Event::step_end(step, stage.seconds(), summary));
    }

    /// Stops after an iteration that is being saved.
    fn stop_after(&mut self, stage: &Stage, iteration: u64, signal: &str) -> Result<()> {
        self.saver.wait()?;
        Err(Error::stopped(format!(
            "stopped by {signal} after iteration {iteration} of {}, which is saved; the same \
             command resumes from there",
            stage.of.name
        )))
    }

    /// Marks a step as finished, once its results are saved.
    pub(super) fn mark_finished(&mut self, stage: &Stage, iterations: u64) -> Result<()> {
        self.trained.set(true);
        self.save(stage, iterations, true, SnapshotBuilder::default(), self.dir.log_bytes()?)?;
        self.saver.wait()?;
        self.tell_of_checkpoints();
        Ok(())
    }

    /// Marks the run as begun, when the log had `log` bytes: from here on the same command may
    /// replace what it finds.
    pub(super) fn mark_beginning(&mut self, of: &'static Algorithm, log: u64) -> Result<()> {
        let (done, started, earlier) = (0, self.started, 0.0);
        let (inputs, read) = (vec![], vec![]);
        let stage = Stage { of, done, started, earlier, inputs, read, finishing: None };
        self.save(&stage, 0, false, SnapshotBuilder::default(), log)?;
        self.saver.wait()
    }

    /// Tells of checkpoints that could not be removed.
    fn tell_of_checkpoints(&mut self) {
        if let Some(told) = self.saver.take_notice() {
            self.reporter.emit(Event::warning(told));
        }
    }

    /// Stops between steps, where the run was asked to.
    pub(super) fn stop_before(&self, of: &Algorithm) -> Result<()> {
        let [stops] = self.comm.any([stop_requested()])?;
        if !stops {
            return self.dir.check_still_there();
        }
        Err(Error::stopped(format!(
            "stopped by {} before {}; the same command resumes from there",
            stop_signal(),
            of.name
        )))
    }

    fn save(
        &mut self,
        stage: &Stage,
        iteration: u64,
        finished: bool,
        mut builder: SnapshotBuilder<'_>,
        log: u64,
    ) -> Result<()> {
        builder.set("seconds_of_step", stage.seconds());
        builder.set("seconds_of_run", self.seconds());
        self.health.save(&mut builder);
        builder.set("device", self.hardware());
        builder.set("log_bytes", log);
        builder.set("begun", self.begun);
        if let Some(best) = self.saver.best() {
            builder.set("best_metric", best.metric.clone());
            builder.set("best", best.written());
        }
        let label = Label {
            step: stage.of.name.to_string(),
            iteration,
            finished,
            config: self.keys.clone(),
            // Later steps read other models.
            inputs: if finished { self.data.clone() } else { stage.inputs.clone() },
        };
        if let Some(told) = self.saver.write(label, builder)? {
            self.reporter.emit(Event::warning(told));
        }
        Ok(())
    }

    /// Takes over from a snapshot what belongs to no step; says what is different now.
    pub(super) fn take_over(&mut self, from: &Snapshot) -> Result<()> {
        self.earlier = from.get("seconds_of_run")?;
        if let Some(best) = self.saver.best()
            && from.find::<String>("best_metric")?.as_ref() == Some(&best.metric)
        {
            best.read(&from.get::<String>("best")?);
        }
        let (then, now) = (from.get::<String>("device")?, self.hardware());
        if then != now {
            self.reporter.emit(Event::warning(format!(
                "the run began on {then}, this is {now}: it resumes, but not bit for bit as it \
                 would have"
            )));
        }
        self.check_results(from.label())
    }

    /// Refuses to go on where the results of a finished step are gone.
    fn check_results(&self, label: &Label) -> Result<()> {
        for stage in self.cfg.stages.iter().filter(|s| is_complete(label, s)) {
            let dir = self.dir.model(stage);
            if !dir.join("config.json").is_file() {
                return Err(Error::user(format!(
                    "stage {} is finished, but its model is not in {}; put it back, or begin anew \
                     with \
                     --overwrite --resume never",
                    stage.name,
                    dir.display()
                )));
            }
        }
        Ok(())
    }

    /// Returns the hardware that decides the bits of sums: the CPU's SIMD level, or the device's
    /// name.
    fn hardware(&self) -> String {
        match self.device {
            crate::device::Device::Cpu => {
                let level = format!("{:?}", crate::op::cpu::simd::level());
                format!("a CPU with {}", level.to_lowercase())
            }
            _ => self.device_name.clone(),
        }
    }

    /// Notes data files that have been read.
    pub(super) fn note_data(&mut self, files: &[(PathBuf, Fingerprint)]) {
        for (file, stamp) in files {
            let input = self.input(file, true, *stamp);
            if !self.data.contains(&input) {
                self.data.push(input);
            }
        }
    }

    /// A file with its fingerprint. What lies in the run directory goes where that goes.
    fn input(&self, file: &Path, data: bool, fingerprint: Fingerprint) -> Input {
        let path = match file.strip_prefix(self.dir.path()) {
            Ok(inside) => format!("(run)/{}", inside.display()),
            Err(_) => file.display().to_string(),
        };
        Input { path, data, fingerprint }
    }
}
