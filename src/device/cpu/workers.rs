//! Worker threads that wait for the next loop by spinning a while before they sleep: the loops of a
//! decoding step are some microseconds apart, less than it takes to wake a thread.
//!
//! One thread, the owner, starts loops; it takes tasks like its workers and is the first to.
//! Workers join a loop while it is open. The owner closes it when it finds no more tasks, and
//! returns when all who joined have left: it never waits for one that was too late to help.

use std::any::Any;
use std::cell::Cell;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks for a new loop before a worker sleeps: some 50 microseconds.
const SPINS: u32 = 2000;
/// Looks for the last task's end before the owner lets others run between looks.
const OWNER_SPINS: u32 = 20_000;

thread_local!(static IS_WORKER: Cell<bool> = const { Cell::new(false) });

/// True if the calling thread is a worker, or an owner in a task of its own.
pub(super) fn is_worker() -> bool {
    IS_WORKER.get()
}

/// The body of a loop, on loan.
type Body<'a> = &'a (dyn Fn(usize) + Sync);

/// The loop that is open. It names the body without its lifetime, by the address of a reference to
/// it, which is there from the loop's opening to the end of [`Shared::close`].
#[derive(Clone, Copy)]
struct Loop {
    tasks: usize,
    body: *const (),
}

impl Loop {
    /// # Safety
    /// The loop has not been closed, or the caller has joined it and not left.
    unsafe fn task(&self, task: usize) {
        // SAFETY: `Workers::run` made the address from a `Body` of its own, and stays in `close`
        // until everybody who joined has left: so the reference and what it refers to are there.
        // Threads share it, for the body is `Sync`.
        let body = unsafe { &*self.body.cast::<Body<'_>>() };
        body(task);
    }
}

struct Shared {
    /// Loops started; what workers look at.
    started: AtomicU32,
    open: AtomicBool,
    /// Workers that joined and have not left.
    inside: AtomicUsize,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    current: UnsafeCell<Option<Loop>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `current` is written by the owner alone, while no loop is open, and read by those who
// joined and then found the loop open: the stores and loads of `open` and `inside` order the two.
unsafe impl Sync for Shared {}
// SAFETY: the loop that `current` names may be run by any thread: its body is `Sync`.
unsafe impl Send for Shared {}

/// A thread's workers. They are not shared between threads, so one thread alone opens loops.
pub(super) struct Workers {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    one_owner: PhantomData<Cell<()>>,
}

impl Workers {
    /// `threads` threads, the owner among them.
    pub(super) fn new(threads: usize) -> Workers {
        let shared = Arc::new(Shared {
            started: AtomicU32::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            current: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let start = |i: usize| {
            let shared = shared.clone();
            // Where no thread can be had, there are fewer.
            std::thread::Builder::new()
                .name(format!("worker-{i}"))
                .spawn(move || shared.work())
                .ok()
        };
        let handles = (1..threads).filter_map(start).collect();
        Workers { shared, handles, one_owner: PhantomData }
    }

    /// Threads of a loop.
    pub(super) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `body(0)`, ..., `body(tasks - 1)`; a panic in one of them is passed on.
    /// Within a task, it runs them all on this thread.
    pub(super) fn run(&self, tasks: usize, body: Body<'_>) {
        /// Closes the loop and waits for all inside, also when the owner's task panics.
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                IS_WORKER.set(false);
                self.0.close();
            }
        }
        // A loop that is open stays the only one: the owner opens none from its own tasks.
        if self.handles.is_empty() || is_worker() {
            return (0..tasks).for_each(body);
        }
        let shared = &*self.shared;
        let this = Loop { tasks, body: (&raw const body).cast() };
        // Dropped before `body` goes, whether this returns or unwinds: it waits for those inside
        // and lets nobody in after.
        let close = Close(shared);
        // SAFETY: only this thread opens loops, and it has none open: the last one was closed
        // before `run` returned. So nobody reads `current` until `open` is set.
        unsafe { *shared.current.get() = Some(this) };
        shared.next.store(0, SeqCst);
        shared.open.store(true, SeqCst);
        shared.started.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            drop(shared.lock());
            shared.wake.notify_all();
        }
        IS_WORKER.set(true);
        // SAFETY: the loop is open until `close` is dropped.
        unsafe { shared.take(this) };
        drop(close);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.started.fetch_add(1, SeqCst);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for handle in self.handles.drain(..) {
            // A worker's panics were caught.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does tasks until none is left.
    ///
    /// # Safety
    /// As for [`Loop::task`].
    unsafe fn take(&self, this: Loop) {
        loop {
            let task = self.next.fetch_add(1, SeqCst);
            if task >= this.tasks {
                return;
            }
            // SAFETY: the caller vouches for the loop until this returns.
            unsafe { this.task(task) };
        }
    }

    /// Lets nobody in any more, and waits for those inside. One that comes later finds the loop
    /// closed.
    fn close(&self) {
        // After a panic tasks may be left; nobody needs to do them.
        self.next.store(usize::MAX / 2, SeqCst);
        self.open.store(false, SeqCst);
        let mut looks = 0;
        while self.inside.load(SeqCst) > 0 {
            looks += 1;
            if looks < OWNER_SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// A worker's life.
    fn work(&self) {
        IS_WORKER.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(SeqCst) {
                return;
            }
            self.inside.fetch_add(1, SeqCst);
            if self.open.load(SeqCst) {
                // SAFETY: the owner wrote it before it opened the loop that was found open, and
                // writes again only after `close`, which waits until this thread has left.
                let this = unsafe { *self.current.get() };
                let done = this.map(|this| {
                    // SAFETY: this thread has joined the loop and leaves it below.
                    catch_unwind(AssertUnwindSafe(|| unsafe { self.take(this) }))
                });
                if let Some(Err(panic)) = done {
                    self.next.store(usize::MAX / 2, SeqCst);
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// Returns the number of loops started, once it is not `seen`.
    fn wait(&self, seen: u32) -> u32 {
        for _ in 0..SPINS {
            let started = self.started.load(SeqCst);
            if started != seen {
                return started;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock();
        self.sleepers.fetch_add(1, SeqCst);
        // Counted before this look: the owner either shows the new loop here, or sees the sleeper.
        while self.started.load(SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        self.started.load(SeqCst)
    }
}
