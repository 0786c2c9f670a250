//! MPI's state that exists once per process: the calls under way in all groups, waiting, and the
//! end. Every rank that waits advances all calls in the order in which they were started, since
//! ranks may wait in different orders. Waiting does not take the processor from ranks that compute.

use super::super::monitor::Monitor;
use super::meet::Started;
use crate::base::{Error, Result};
use crate::comm::monitor::PendingOp;
use crate::device::keep_host_memory;
use ::mpi::environment::Universe;
use ::mpi::ffi;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A call that takes several steps until it is over.
pub(super) trait Work: Send {
    /// Advances the call; returns true once it is over.
    ///
    /// # Safety
    /// No other thread uses MPI meanwhile, and the memory of the call is alive and left alone.
    unsafe fn step(&mut self) -> Result<bool>;
}

impl Work for super::requests::Requests {
    unsafe fn step(&mut self) -> Result<bool> {
        // SAFETY: `over` has the contract of `Work::step`: no other thread uses MPI, and the memory
        // of the requests is there.
        unsafe { self.over() }
    }
}

/// Looks that follow each other at once; then the processor is given to others between them.
const EAGER: u32 = 100;
const NAP: Duration = Duration::from_micros(50);
/// MPI in this process.
pub(super) struct World {
    universe: ManuallyDrop<Universe>,
    pub(super) monitor: Arc<Monitor>,
    timeout: Duration,
    /// Held by who calls MPI.
    calls: Mutex<Calls>,
    /// Why no further call is made: MPI would wait for a rank that is gone.
    broken: OnceLock<Error>,
}

#[derive(Default)]
struct Calls {
    /// In the order in which they were started.
    open: BTreeMap<u64, Box<dyn Work>>,
    over: BTreeSet<u64>,
    next: u64,
}

impl Calls {
    /// Moves all calls on.
    fn step(&mut self) -> Result<()> {
        let mut ended = vec![];
        for (id, work) in &mut self.open {
            // SAFETY: the lock is held; a call's memory is left alone until it has been waited for.
            if unsafe { work.step() }? {
                ended.push(*id);
            }
        }
        for id in ended {
            self.open.remove(&id);
            self.over.insert(id);
        }
        Ok(())
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MPI")
    }
}

impl World {
    pub(super) fn new(started: Started, timeout: Duration) -> World {
        World {
            universe: started.universe,
            monitor: started.monitor,
            timeout,
            calls: Mutex::default(),
            broken: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what `begin` begins, and gives its number.
    pub(super) fn start(&self, begin: impl FnOnce() -> Result<Box<dyn Work>>) -> Result<u64> {
        let mut calls = self.lock();
        self.broken.get().map_or(Ok(()), |e| Err(e.clone()))?;
        let work = begin().map_err(|e| self.break_up(e))?;
        let id = calls.next;
        calls.next += 1;
        calls.open.insert(id, work);
        Ok(id)
    }

    /// Waits for the end of a call, and moves all others on meanwhile.
    pub(super) fn wait(&self, id: u64, what: &PendingOp) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        for look in 0u32.. {
            let stepped = {
                let mut calls = self.lock();
                if calls.over.remove(&id) {
                    return Ok(());
                }
                self.broken.get().map_or(Ok(()), |e| Err(e.clone()))?;
                let stepped = calls.step();
                if calls.over.remove(&id) {
                    return Ok(());
                }
                stepped
            };
            if let Err(e) = stepped {
                return Err(self.break_up(self.monitor.culprit(e).context(what)));
            }
            if let Some(e) = self.monitor.gone() {
                return Err(self.break_up(e));
            }
            if look < EAGER {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(NAP);
            // Now and then, since it is less cheap, and only after a while of waiting.
            if look.is_multiple_of(EAGER) {
                self.check(what, deadline)?;
            }
        }
        Err(Error::internal("waiting without end"))
    }

    /// Gives up if a rank has ended before the call, or time is over.
    fn check(&self, what: &PendingOp, deadline: Instant) -> Result<()> {
        self.monitor.may_end(what).map_err(|e| self.break_up(e))?;
        if Instant::now() < deadline {
            return Ok(());
        }
        let e = self.monitor.overdue(what, self.timeout);
        Err(self.break_up(e))
    }

    /// Does what blocks inside MPI, on a thread of its own, so that this one need not wait for
    /// ever. All have come to `what`.
    pub(super) fn blocking<T: Send + 'static>(
        self: &Arc<World>,
        what: &PendingOp,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let ((tell, told), world) = (channel(), self.clone());
        let inside = move || {
            let _calls = world.lock();
            let _ = tell.send(work());
        };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(inside);
        thread.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?;
        let deadline = Instant::now() + self.timeout;
        loop {
            match told.recv_timeout(Duration::from_millis(1)) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.break_up(Error::internal(format!("{what} panicked"))));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(e) = self.monitor.gone() {
                return Err(self.break_up(e));
            }
            if Instant::now() >= deadline {
                return Err(self.break_up(self.monitor.overdue(what, self.timeout)));
            }
        }
    }

    /// This rank makes no more calls.
    pub(super) fn leave(&self, error: Option<&Error>) {
        match error {
            Some(e) => drop(self.break_up(e.clone())),
            None => self.monitor.leave(None),
        }
    }

    /// Makes no further call, and tells the others. The first error is everybody's.
    ///
    /// Requests cannot be taken back without MPI, and a network card may write what still comes
    /// for them. So the memory of calls stays where it is: buffers give nothing back from here on,
    /// slices of callers are never given to MPI (`OnHost`), and reductions keep what they hold.
    fn break_up(&self, e: Error) -> Error {
        keep_host_memory();
        let e = self.broken.get_or_init(|| e).clone();
        self.monitor.leave(Some(&e));
        e
    }
}

impl Drop for World {
    /// Ends MPI if all ranks come to it. Else the process just ends: MPI would wait for those that
    /// do not.
    fn drop(&mut self) {
        let panicked = std::thread::panicking().then(|| Error::internal("panicked"));
        let calls = self.calls.get_mut().unwrap_or_else(PoisonError::into_inner);
        if self.broken.get().is_some() || panicked.is_some() {
            // MPI may still write into what they hold.
            std::mem::forget(std::mem::take(&mut calls.open));
        }
        self.monitor.leave(panicked.as_ref());
        let clock = Instant::now();
        while !self.monitor.all_done(Duration::from_millis(1)) {
            if self.broken.get().is_some()
                || self.monitor.gone().is_some()
                || clock.elapsed() > self.timeout
            {
                return;
            }
            // What was given to MPI may be on its way until here.
            let (mut flag, lock) = (0, &self.calls);
            let _calls = lock.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: MPI is there, and no other thread uses it.
            unsafe {
                let (any, world) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_COMM_WORLD);
                let ignore = ffi::RSMPI_STATUS_IGNORE;
                ffi::MPI_Iprobe(any, ffi::RSMPI_ANY_TAG, world, &mut flag, ignore);
            }
        }
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.universe) };
    }
}
