//! Bounds of memory and time for what others wrote: tokenizer files, chat templates, the libraries
//! that run them. Such work cannot be broken off from inside, so it ends the program, with a line
//! that names the file. The same allocator tells of memory that the system does not have.

use super::error::Error;
use super::system::write_at_once;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// Bytes that foreign code may hold at once, whatever its input.
const MEMORY: usize = 256 << 20;
/// Bytes more for each byte of its input. A tokenizer takes some 130.
const MEMORY_PER_BYTE: usize = 512;
/// Nanoseconds that its thread may compute, whatever its input.
const TIME: u64 = 5_000_000_000;
/// Nanoseconds more for each byte of its input. A slow tokenizer takes some 1000.
const TIME_PER_BYTE: u64 = 20_000;

/// No limit.
const FREE: i64 = i64::MAX;
/// No deadline.
const NEVER: u64 = u64::MAX;
/// Time between two looks at the deadlines.
const LOOK: Duration = Duration::from_millis(100);

thread_local! {
    /// Bytes that this thread may hold more than it does.
    static LEFT: Cell<i64> = const { Cell::new(FREE) };
    static CALL: Arc<Call> = Call::of_this_thread();
}

/// The bounded call that a thread is in, for the thread that watches all of them.
struct Call {
    /// Counts the computing of the thread.
    clock: libc::clockid_t,
    /// Time of that clock at which it has computed too long, in nanoseconds.
    deadline: AtomicU64,
    what: Mutex<What>,
}

/// The work of a call.
#[derive(Clone, Default)]
struct What {
    /// The file at fault, if something is.
    whose: String,
    /// Bytes of its input.
    bytes: usize,
}

/// The calls of all threads that have made one.
static CALLS: Mutex<Vec<Arc<Call>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f`, foreign code or code that a foreign file drives, which is given `bytes` of input.
/// Where it holds more memory, or computes longer, than so much input can need, the program ends
/// with exit code 2 and a line that names `whose` fault it is: a file, in words. The time is the
/// thread's own, so a busy machine takes nothing of it. Memory counts under [`Limited`] only.
pub fn bounded<T>(whose: &str, bytes: usize, f: impl FnOnce() -> T) -> T {
    let memory = MEMORY.saturating_add(bytes.saturating_mul(MEMORY_PER_BYTE)) as i64;
    let time = TIME.saturating_add((bytes as u64).saturating_mul(TIME_PER_BYTE));
    CALL.with(|call| {
        let what = What { whose: whose.to_owned(), bytes };
        let before = std::mem::replace(&mut *lock(&call.what), what);
        let now = time_of(call.clock).unwrap_or(NEVER);
        // Within another bounded call, both bounds hold.
        let deadline = call.deadline.load(Ordering::Relaxed);
        call.deadline.store(deadline.min(now.saturating_add(time)), Ordering::Relaxed);
        let outer = LEFT.get();
        let given = outer.min(memory.max(0));
        let _ends = Ends { call, before, deadline, outer, given };
        LEFT.set(given);
        f()
    })
}

/// Puts back the bounds of before a call, also when the code in between panics.
struct Ends<'c> {
    call: &'c Call,
    before: What,
    deadline: u64,
    outer: i64,
    given: i64,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let held = self.given - LEFT.get();
        LEFT.set(if self.outer == FREE { FREE } else { self.outer - held });
        self.call.deadline.store(self.deadline, Ordering::Relaxed);
        *lock(&self.call.what) = std::mem::take(&mut self.before);
    }
}

impl Call {
    /// The call of a thread that makes its first one. It is watched from here on.
    fn of_this_thread() -> Arc<Call> {
        static WATCH: Once = Once::new();
        // Without a thread to watch, the bounds of memory still hold.
        WATCH.call_once(|| {
            drop(std::thread::Builder::new().name("bounds".into()).spawn(watch));
        });
        let call = Call { clock: own_clock(), deadline: NEVER.into(), what: Mutex::default() };
        let call = Arc::new(call);
        lock(&CALLS).push(call.clone());
        call
    }
}

/// Ends the program when a call has computed too long.
fn watch() {
    loop {
        std::thread::sleep(LOOK);
        let mut calls = lock(&CALLS);
        // The others are of threads that have ended.
        calls.retain(|call| Arc::strong_count(call) > 1);
        for call in calls.iter() {
            let deadline = call.deadline.load(Ordering::Relaxed);
            if deadline != NEVER && time_of(call.clock).is_some_and(|now| now > deadline) {
                let What { whose, bytes } = lock(&call.what).clone();
                let seconds = TIME.saturating_add(bytes as u64 * TIME_PER_BYTE) / 1_000_000_000;
                end(&whose, &format!("computes for more than {seconds} s on {bytes} bytes of text"))
            }
        }
    }
}

/// Ends the program because of a file.
fn end(whose: &str, does: &str) -> ! {
    let e = Error::user(format!("{whose} {does}; repair it, or leave it out"));
    leave(i32::from(e.exit_code()), format!("duplex: {e}\n").as_bytes())
}

/// Ends the program with a line. Files are written beside their places, so none is left half
/// written.
fn leave(code: i32, line: &[u8]) -> ! {
    write_at_once(line);
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code) }
}

/// The clock that counts the computing of this thread, which other threads may read.
#[cfg(target_os = "linux")]
fn own_clock() -> libc::clockid_t {
    let mut clock = libc::CLOCK_MONOTONIC;
    // SAFETY: asks for a clock of the calling thread, and writes it to a local.
    unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    clock
}

/// Where threads have no clock that others may read: the clock of all.
#[cfg(not(target_os = "linux"))]
fn own_clock() -> libc::clockid_t {
    libc::CLOCK_MONOTONIC
}

/// Nanoseconds on a clock; None where its thread has ended.
fn time_of(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to a local. The clock of a thread that has ended is an error, not a fault.
    let done = unsafe { libc::clock_gettime(clock, &mut time) };
    (done == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The system's allocator with the bounds of [`bounded`]: for programs, as their
/// `#[global_allocator]`. Where the system has no memory, the program ends with exit code 3 and a
/// line with the size; large buffers ask the system themselves, and get an error.
#[derive(Debug)]
pub struct Limited;

/// Counts `more` bytes of this thread, or fewer where it is negative.
fn count(more: i64) {
    let left = LEFT.get();
    if left == FREE {
        return;
    }
    if left < more {
        // What the line takes is free.
        LEFT.set(FREE);
        let What { whose, bytes } = CALL.with(|call| lock(&call.what).clone());
        let most = MEMORY.saturating_add(bytes.saturating_mul(MEMORY_PER_BYTE)) >> 20;
        end(&whose, &format!("asks for more than {most} MiB of memory for {bytes} bytes of text"))
    }
    LEFT.set(left - more);
}

/// The block, or the end of the program where there is none.
fn found(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() {
        out_of_memory(bytes);
    }
    block
}

/// Ends the program without allocating.
#[cold]
fn out_of_memory(bytes: usize) -> ! {
    let mut line = [0; 256];
    let size = line.len();
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "duplex: out of memory: the system has no {bytes} bytes ({} MiB) more; free memory, raise \
         its limit, or give smaller models or less data, and run the same command again",
        bytes.div_ceil(1 << 20)
    );
    let length = size - rest.len();
    leave(3, &line[..length])
}

// SAFETY: all the work is the system's allocator's.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the layout is the caller's, not of size 0 by the contract of `GlobalAlloc`.
        found(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the layout is the caller's, not of size 0 by the contract of `GlobalAlloc`.
        found(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: by the contract of `GlobalAlloc`, the block came from this allocator with this
        // layout; so it came from `System`, which makes all of this allocator's blocks.
        found(unsafe { System.realloc(ptr, layout, size) }, size)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: by the contract of `GlobalAlloc`, the block came from this allocator with this
        // layout; so it came from `System`, which makes all of this allocator's blocks.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::catch_panic;

    #[test]
    fn bounds_end_with_their_scope_and_both_hold_where_one_is_inside_another() {
        let deadline = || CALL.with(|call| call.deadline.load(Ordering::Relaxed));
        let whose = || CALL.with(|call| lock(&call.what).whose.clone());
        let within = bounded("a test", 1 << 20, || {
            count(1000);
            let (left, first) = (LEFT.get(), deadline());
            let none = catch_panic(|| {
                bounded("another test", 0, || {
                    assert_eq!(LEFT.get(), MEMORY as i64);
                    assert!(deadline() < first);
                    count(24);
                    panic!("a panic of this test")
                })
            });
            assert_eq!((none, LEFT.get(), deadline()), (None::<()>, left - 24, first));
            count(-1024);
            whose()
        });
        assert_eq!(within, "a test");
        assert_eq!((LEFT.get(), deadline(), whose()), (FREE, NEVER, String::new()));
    }

    #[test]
    fn the_clock_of_a_thread_counts_its_computing_alone() {
        let clock = own_clock();
        let before = time_of(clock).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let slept = time_of(clock).unwrap() - before;
        let mut sum = 0u64;
        while time_of(clock).unwrap() < before + slept + 20_000_000 {
            sum = sum.wrapping_mul(3).wrapping_add(1);
        }
        assert!(slept < 40_000_000 && sum != 7, "{slept} ns");
    }
}
