//! NCCL's state that exists once per process: the communicators, the stream of all calls, the calls
//! under way, and a thread that watches over them.
//!
//! Most waits are for the device, which knows nothing of ranks. A kernel of NCCL whose other side
//! is gone runs forever, and so does the host thread that waits for it. So the watching thread
//! checks the monitor, NCCL and the clock. On an error it first ends the device ([`Device::end`])
//! and only then aborts NCCL's calls, whose kernels end. Every later wait for the device returns
//! the error, so nothing computed from then on leaves the GPU or reaches the disk.

use super::api::{Api, Code, IN_PROGRESS};
use crate::base::{Error, Result, tell};
use crate::comm::Span;
use crate::comm::monitor::{Monitor, PendingOp};
use crate::device::{Buffer, Device, Event, Stream};
use cudarc::nccl::sys::ncclComm_t;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the watching thread looks.
const LOOK: Duration = Duration::from_millis(20);
/// Looks of a thread that waits for NCCL that follow each other at once, and the time between later
/// ones.
const EAGER: u32 = 200;
const NAP: Duration = Duration::from_micros(50);
/// How long NCCL may take to abort before the process goes without that.
const ABORT: Duration = Duration::from_secs(5);
/// How long after that the rest of the process may take to notice; then it is stuck, and is ended.
const STUCK: Duration = Duration::from_secs(30);

/// A call under way.
struct Open {
    id: u64,
    what: PendingOp,
    /// The end of the device's work before it.
    ready: Event,
    /// Its end, once NCCL has taken it.
    done: Option<Arc<Event>>,
    /// When it was first seen to have begun.
    since: Option<Instant>,
}

/// NCCL in this process, as its watching thread sees it.
pub(super) struct Shared {
    pub(super) api: &'static Api,
    pub(super) device: Device,
    pub(super) monitor: Arc<Monitor>,
    timeout: Duration,
    /// All communicators; held by who is inside NCCL.
    comms: Mutex<Comms>,
    open: Mutex<VecDeque<Open>>,
    /// The first error that ends all.
    broken: OnceLock<Error>,
    aborted: AtomicBool,
}

#[derive(Default)]
struct Comms(Vec<ncclComm_t>);

// SAFETY: NCCL's communicators may be used from any thread, one at a time.
unsafe impl Send for Comms {}

/// The stream, buffers and numbers that calls use in turn.
pub(super) struct Lane {
    pub(super) stream: Stream,
    /// Others' values of a reduction; values of the host on their way. Made when first needed.
    held: [Option<Buffer>; 2],
    next: u64,
}

/// NCCL in this process.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    lane: Mutex<Lane>,
    /// Dropped, it ends the watch.
    watch: Mutex<Option<Sender<()>>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NCCL")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    /// Memory of the device, number `which` of two, of `bytes` the first time.
    pub(super) fn held(&mut self, which: usize, device: Device, bytes: usize) -> Result<Span> {
        if self.held[which].is_none() {
            self.held[which] = Some(Buffer::zeroed(device, bytes)?);
        }
        Ok(self.held[which].as_ref().map_or(Span::NOWHERE, |b| b.region().into()))
    }
}

impl World {
    pub(super) fn new(
        api: &'static Api,
        device: Device,
        monitor: Arc<Monitor>,
        timeout: Duration,
    ) -> Result<World> {
        let shared = Arc::new(Shared {
            api,
            device,
            monitor,
            timeout,
            comms: Mutex::default(),
            open: Mutex::default(),
            broken: OnceLock::new(),
            aborted: AtomicBool::new(false),
        });
        let ((watch, stop), watched) = (channel(), shared.clone());
        let thread = std::thread::Builder::new().name("nccl-watch".into());
        let started = thread.spawn(move || watched.watch(&stop));
        started.map_err(|e| Error::resource(format!("cannot start a thread: {e}")))?;
        let lane = Lane { stream: device.new_stream()?, held: [None, None], next: 0 };
        Ok(World { shared, lane: Mutex::new(lane), watch: Mutex::new(Some(watch)) })
    }

    /// Makes the call that `what` names by what `work` puts on the stream, behind what the calling
    /// thread's stream was given so far; returns its end.
    pub(super) fn run(
        &self,
        what: impl FnOnce() -> PendingOp,
        work: impl FnOnce(&mut Lane) -> Result<()>,
    ) -> Result<Arc<Event>> {
        let shared = &self.shared;
        let mut lane = lock(&self.lane);
        shared.device.ended()?;
        let ready = shared.device.stream()?.record()?;
        lane.stream.wait(&ready)?;
        let id = lane.next;
        lane.next += 1;
        // Known before it is made: NCCL may already wait for others in there.
        let open = Open { id, what: what(), ready, done: None, since: None };
        lock(&shared.open).push_back(open);
        let done = work(&mut lane).and_then(|()| lane.stream.record());
        let mut open = lock(&shared.open);
        match done {
            Ok(done) => {
                let done = Arc::new(done);
                let own = open.iter_mut().find(|o| o.id == id);
                own.into_iter().for_each(|o| o.done = Some(done.clone()));
                Ok(done)
            }
            Err(e) => {
                open.retain(|o| o.id != id);
                Err(e)
            }
        }
    }

    /// Memory of the device for values of the host on their way, which is `bytes` long the first
    /// time.
    pub(super) fn held_for_host(&self, bytes: usize) -> Result<Span> {
        lock(&self.lane).held(1, self.shared.device, bytes)
    }

    /// This rank makes no more calls.
    pub(super) fn leave(&self, error: Option<&Error>) {
        match error {
            Some(e) => drop(self.shared.break_up(e.clone())),
            None => self.shared.monitor.leave(None),
        }
    }
}

impl Shared {
    /// Makes calls into NCCL for one communicator, and waits until it has taken them.
    pub(super) fn call(
        self: &Arc<Shared>,
        what: &str,
        comm: ncclComm_t,
        calls: impl FnOnce(&Api) -> Result<()>,
    ) -> Result<()> {
        let called = {
            let _inside = lock(&self.comms);
            self.device.ended()?;
            calls(self.api)
        };
        called.map_err(|e| self.break_up(self.monitor.culprit(e)))?;
        self.settle(what, || comm)
    }

    /// Makes a communicator: `begin` begins to write it where it is told to. `parent`: the one that
    /// it is made of.
    pub(super) fn make(
        self: &Arc<Shared>,
        what: &str,
        parent: Option<ncclComm_t>,
        begin: impl FnOnce(&Api, *mut ncclComm_t) -> Code,
    ) -> Result<ncclComm_t> {
        // Where this fails NCCL may still write there.
        let made: &'static mut ncclComm_t = Box::leak(Box::new(std::ptr::null_mut()));
        let made: *mut ncclComm_t = made;
        let begun = {
            let _inside = lock(&self.comms);
            self.device.ended()?;
            self.api.check(what, begin(self.api, made))
        };
        begun.map_err(|e| self.break_up(self.monitor.culprit(e)))?;
        if let Some(parent) = parent {
            self.settle(what, || parent)?;
        }
        // SAFETY: written by NCCL alone, with one store, and read at each look.
        self.settle(what, || unsafe { made.read_volatile() })?;
        // SAFETY: made in this function, and NCCL is done with it.
        let comm = unsafe { *Box::from_raw(made) };
        lock(&self.comms).0.push(comm);
        Ok(comm)
    }

    /// Waits until NCCL has taken the calls for a communicator, which may be null as long as it is
    /// being made.
    fn settle(self: &Arc<Shared>, what: &str, comm: impl Fn() -> ncclComm_t) -> Result<()> {
        for look in 0u32.. {
            let mut state = IN_PROGRESS;
            {
                let _inside = lock(&self.comms);
                self.device.ended()?;
                if !comm().is_null() {
                    // SAFETY: a communicator that has not been aborted: that is done with the lock
                    // held, once the device ended.
                    let code = unsafe { (self.api.async_error)(comm(), &mut state) };
                    if self.api.check(what, code).is_err() {
                        state = code;
                    }
                }
            }
            if state != IN_PROGRESS {
                let done = self.api.check(what, state);
                return done.map_err(|e| self.break_up(self.monitor.culprit(e)));
            }
            if look < EAGER { std::thread::yield_now() } else { std::thread::sleep(NAP) }
        }
        Err(Error::internal("waiting without end"))
    }

    /// Looks after the calls under way until it is told to stop, or something is wrong.
    fn watch(self: &Arc<Shared>, stop: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK) {
            let Some(e) = self.trouble() else { continue };
            let e = self.break_up(e);
            let clock = Instant::now();
            while clock.elapsed() < ABORT + STUCK {
                if self.device.end_is_known() {
                    return;
                }
                std::thread::sleep(LOOK);
            }
            // The thread that waits for the device does not come back: not even aborting has
            // helped.
            tell(&format!("duplex: {e}"));
            // SAFETY: ends the process at once, which is what is left. Files are written beside
            // their places.
            unsafe { libc::_exit(i32::from(e.exit_code())) };
        }
    }

    /// The error that ends the run, if there is one.
    fn trouble(&self) -> Option<Error> {
        if let Some(e) = self.monitor.gone() {
            return Some(e);
        }
        if let Some(e) = self.reported() {
            return Some(self.monitor.culprit(e));
        }
        let (what, since) = self.oldest()?;
        if let Err(e) = self.monitor.may_end(&what) {
            return Some(e);
        }
        (since.elapsed() >= self.timeout).then(|| self.monitor.overdue(&what, self.timeout))
    }

    /// An error of a communicator that came while nobody waited for it.
    fn reported(&self) -> Option<Error> {
        // Who holds it is inside NCCL, and looks itself.
        let comms = self.comms.try_lock().ok()?;
        comms.0.iter().find_map(|comm| {
            let mut state = IN_PROGRESS;
            // SAFETY: those in the list have not been aborted, and the lock is held.
            let code = unsafe { (self.api.async_error)(*comm, &mut state) };
            self.api.check("watch", code).and(self.api.check("watch", state)).err()
        })
    }

    /// The first call that has begun and not ended, and since when that is so.
    fn oldest(&self) -> Option<(PendingOp, Instant)> {
        let mut open = lock(&self.open);
        let over = |event: &Event| event.is_over().unwrap_or(false);
        while open.front().is_some_and(|o| o.done.as_ref().is_some_and(|done| over(done))) {
            open.pop_front();
        }
        let first = open.front_mut()?;
        if first.since.is_none() && over(&first.ready) {
            first.since = Some(Instant::now());
        }
        Some((first.what.clone(), first.since?))
    }

    /// Ends the device, tells the others, and aborts NCCL, in this order: who waits for the device
    /// and comes back because of the last finds the first. The first error is everybody's.
    pub(super) fn break_up(self: &Arc<Shared>, e: Error) -> Error {
        let mut first = false;
        let broken = self.broken.get_or_init(|| {
            first = true;
            e
        });
        let e = broken.clone();
        self.device.end(e.clone());
        self.monitor.leave(Some(&e));
        if first {
            // On a thread of its own: the lock may be this thread's, and NCCL may not come back.
            let shared = self.clone();
            let aborted = std::thread::Builder::new().name("nccl-abort".into()).spawn(move || {
                let comms = std::mem::take(&mut *lock(&shared.comms));
                for comm in comms.0 {
                    // SAFETY: taken from the list, so it is aborted once; nobody calls NCCL once
                    // the device has ended.
                    unsafe { (shared.api.abort)(comm) };
                }
                shared.aborted.store(true, Ordering::Release);
            });
            drop(aborted);
        }
        e
    }
}

impl Drop for World {
    /// Gives NCCL's communicators back if all ranks come to that; else aborts what is under way, so
    /// that the process can end.
    fn drop(&mut self) {
        let shared = &self.shared;
        if std::thread::panicking() {
            shared.break_up(Error::internal("panicked"));
        }
        shared.monitor.leave(None);
        let clock = Instant::now();
        while shared.broken.get().is_none()
            && shared.monitor.gone().is_none()
            && clock.elapsed() < shared.timeout
        {
            if !shared.monitor.all_done(Duration::from_millis(1)) {
                continue;
            }
            lock(&self.watch).take();
            if lock(&self.lane).stream.synchronize().is_ok() {
                for comm in std::mem::take(&mut *lock(&shared.comms)).0 {
                    // SAFETY: taken from the list; no call is under way.
                    unsafe { (shared.api.destroy)(comm) };
                }
            }
            return;
        }
        let e =
            shared.monitor.gone().unwrap_or_else(|| Error::stopped("the ranks have not all ended"));
        shared.break_up(e);
        let clock = Instant::now();
        while !shared.aborted.load(Ordering::Acquire) && clock.elapsed() < ABORT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
