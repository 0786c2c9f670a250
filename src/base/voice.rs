//! The voice of the process on standard error. Lines wait in a queue for a thread that writes them,
//! so that nobody who has work to do waits for a reader: a terminal that was stopped by Ctrl-S, a
//! pager, a connection that stalls. Where the queue is full, lines are left out and counted. No
//! lock is held while the thread writes, and the process ends without it.

use super::system::write_at_once;
use super::text::{printable, printable_lines};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most texts that wait, and the most bytes in them.
const MOST: usize = 4096;
const MOST_BYTES: usize = 4 << 20;
/// The bytes that are written in one call.
const CHUNK: usize = 4096;
/// How long [`finish_saying`] waits for a reader that reads nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a bar that nothing changes is drawn: it shows that the process is alive.
const TICK: Duration = Duration::from_secs(1);

/// A line below all text that changes, such as a progress bar. Only the output thread draws it. It
/// goes when it is dropped.
pub trait Bar: Send {
    /// Calls `write`, which writes text, with the bar out of the way.
    fn above(&self, write: &mut dyn FnMut());
    /// Shows how far the work has come.
    fn advance(&self, position: u64, message: String);
    /// Shows how late it is.
    fn tick(&self);
}

/// Something for the output thread to do.
enum Said {
    Text(String),
    /// Shows a bar instead of the one before, or none.
    Bar(Option<Box<dyn Bar>>),
}

/// The texts that wait for the output thread.
struct Queue {
    waiting: Vec<Said>,
    /// The bytes in them.
    bytes: usize,
    /// Texts that found no room.
    left_out: usize,
    /// The last position and message of the bar. Those before are of no interest.
    advance: Option<(u64, String)>,
}

impl Queue {
    const EMPTY: Queue = Queue { waiting: vec![], bytes: 0, left_out: 0, advance: None };

    /// Adds a text where there is room, or `always`.
    fn add(&mut self, text: String, always: bool) {
        let has_room = self.waiting.len() < MOST && self.bytes + text.len() <= MOST_BYTES;
        if has_room || always {
            self.bytes += text.len();
            self.waiting.push(Said::Text(text));
        } else {
            self.left_out += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.advance.is_none()
    }
}

struct State {
    queue: Queue,
    thread: Thread,
    /// True while the thread writes.
    busy: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Thread {
    /// Nothing was said yet.
    None,
    Runs,
    /// The system did not give one.
    Refused,
}

static STATE: Mutex<State> =
    Mutex::new(State { queue: Queue::EMPTY, thread: Thread::None, busy: false });
/// There is something to write.
static SAID: Condvar = Condvar::new();
/// Something was written.
static WRITTEN: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True if standard error is a terminal.
pub fn speaks_to_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Says `text`, of one or several lines. What would drive a terminal is shown by its number.
pub fn say(text: &str) {
    queue(text, false);
}

/// Says that something is not as it may be meant, in one line.
pub fn warn(text: &str) {
    say(&format!("warning: {}", printable(text)));
}

/// Says `text` and waits until it is written, as [`finish_saying`] does. It is never left out. For
/// who are read meanwhile, and for last words.
pub fn tell(text: &str) {
    queue(text, true);
    finish_saying();
}

/// Shows a bar instead of the one before, or none.
pub fn show_bar(bar: Option<Box<dyn Bar>>) {
    let mut state = state();
    if state.has_thread() {
        state.queue.advance = None;
        state.queue.waiting.push(Said::Bar(bar));
        SAID.notify_one();
    }
}

/// Moves the bar.
pub fn advance_bar(position: u64, message: String) {
    state().queue.advance = Some((position, message));
    SAID.notify_one();
}

/// Waits until all is written that was said, unless nothing at all is read for a second.
pub fn finish_saying() {
    let mut state = state();
    while state.thread == Thread::Runs && (state.busy || !state.queue.waiting.is_empty()) {
        let waited = WRITTEN.wait_timeout(state, PATIENCE);
        let (now, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        if timed_out.timed_out() {
            return;
        }
        state = now;
    }
}

fn queue(text: &str, always: bool) {
    let text = format!("{}\n", printable_lines(text));
    let mut state = state();
    if state.has_thread() {
        state.queue.add(text, always);
        SAID.notify_one();
    } else {
        write_at_once(text.as_bytes());
    }
}

impl State {
    /// True if there is a thread that writes. It is started where there is none yet.
    fn has_thread(&mut self) -> bool {
        if self.thread == Thread::None {
            let spawned = std::thread::Builder::new().name("output".into()).spawn(write_all);
            self.thread = if spawned.is_ok() { Thread::Runs } else { Thread::Refused };
        }
        self.thread == Thread::Runs
    }
}

/// The output thread.
fn write_all() {
    let mut bar: Option<Box<dyn Bar>> = None;
    loop {
        let Queue { waiting, left_out, advance, .. } = next(bar.is_some());
        for said in waiting {
            match said {
                Said::Text(text) => write_text(&bar, &text),
                Said::Bar(other) => {
                    // The one before goes first.
                    drop(bar.take());
                    bar = other;
                }
            }
        }
        if left_out > 0 {
            write_text(&bar, &format!("{left_out} lines were left out here: nobody read them\n"));
        }
        match (&bar, advance) {
            (Some(bar), Some((position, message))) => bar.advance(position, message),
            (Some(bar), None) => bar.tick(),
            (None, _) => {}
        }
    }
}

/// Waits for something to write. Takes all of it, so that new lines find room.
fn next(has_bar: bool) -> Queue {
    let mut state = state();
    state.busy = false;
    WRITTEN.notify_all();
    while state.queue.is_empty() {
        if !has_bar {
            state = SAID.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let waited = SAID.wait_timeout(state, TICK);
        let (now, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        state = now;
        if timed_out.timed_out() {
            break;
        }
    }
    state.busy = true;
    std::mem::replace(&mut state.queue, Queue::EMPTY)
}

fn write_text(bar: &Option<Box<dyn Bar>>, text: &str) {
    match bar {
        Some(bar) => bar.above(&mut || write_chunks(text)),
        None => write_chunks(text),
    }
}

/// Writes text, and tells of each part that was taken. Where it fails there is nobody to tell.
fn write_chunks(text: &str) {
    let mut out = std::io::stderr();
    for mut chunk in text.as_bytes().chunks(CHUNK) {
        while !chunk.is_empty() {
            match out.write(chunk) {
                Ok(n) => chunk = &chunk[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Another process has made the terminal so.
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(TICK / 100),
                Err(_) => return,
            }
        }
        WRITTEN.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_counts_what_it_leaves_out_and_keeps_last_words() {
        let mut queue = Queue::EMPTY;
        (0..MOST + 3).for_each(|i| queue.add(format!("{i}\n"), false));
        assert_eq!((queue.waiting.len(), queue.left_out), (MOST, 3));
        queue.add("the last\n".into(), true);
        let taken = std::mem::replace(&mut queue, Queue::EMPTY);
        let last = taken.waiting.last();
        assert!(matches!(last, Some(Said::Text(text)) if text == "the last\n"));
        // There is room again, but not for any number of bytes.
        queue.add("x".repeat(MOST_BYTES), false);
        queue.add("y".into(), false);
        assert_eq!((queue.waiting.len(), queue.left_out), (1, 1));
    }
}
