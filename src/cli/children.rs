//! Ranks as processes that this one starts, each with the same words, and with the variables that a
//! launcher sets. They end with it, and it with them: with the exit code of the rank that failed,
//! and one line.

use crate::base::{Error, Result, machine_name, on_stop, printable, say};
use crate::comm::{SOCKET, nccl, secret};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the ranks are looked after.
const LOOK: Duration = Duration::from_millis(20);
/// How long the others may go on after one has failed before they are asked to end, and are ended.
/// They end by themselves as soon as they have met; a checkpoint that is being written is written
/// to its end.
const ASK: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(120);
/// How a rank's last line begins.
const LINE: &str = "duplex: ";

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

extern "C" fn came(signal: libc::c_int) {
    CAME.store(signal, Ordering::SeqCst);
}

/// A rank.
struct Rank {
    child: Child,
    status: Option<ExitStatus>,
    /// Passes on what it says, and keeps its line; rank 0 says all by itself.
    voice: Option<JoinHandle<Option<String>>>,
}

/// Starts `ranks` ranks and waits for their ends.
pub(super) fn run(ranks: usize) -> Result<u8> {
    // SAFETY: the handler changes an atomic.
    unsafe { on_stop(came) };
    let failed = |e: std::io::Error| Error::resource(format!("cannot start the ranks: {e}"));
    // Of this machine alone; rank 0 gets the socket itself, so that nobody takes the port
    // meanwhile.
    let socket = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
    let port = socket.local_addr().map_err(failed)?.port();
    let secret = secret()?;
    let mut all: Vec<Rank> = vec![];
    for rank in 0..ranks {
        let numbers = [("DUPLEX_RANK", rank), ("DUPLEX_LOCAL_RANK", rank)];
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args(std::env::args_os().skip(1))
            .envs(numbers.map(|(name, value)| (name, value.to_string())))
            .env("DUPLEX_WORLD_SIZE", ranks.to_string())
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port.to_string())])
            .env(nccl::SECRET, &secret)
            .env_remove("TORCHELASTIC_USE_AGENT_STORE")
            .stdin(Stdio::null());
        if rank == 0 {
            command.env(SOCKET, socket.as_raw_fd().to_string());
        } else {
            command.env_remove(SOCKET).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        apart(&mut command, (rank == 0).then(|| socket.as_raw_fd()));
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                all.iter_mut().for_each(|r| drop(r.child.kill()));
                return Err(failed(e));
            }
        };
        let voice = child.stderr.take().map(|said| std::thread::spawn(move || pass_on(said)));
        all.push(Rank { child, status: None, voice });
    }
    drop(socket);
    let order = wait(&mut all);
    Ok(verdict(all, &order))
}

/// Lets a process be told of signals by this one alone, and end with it.
fn apart(command: &mut Command, socket: Option<i32>) {
    // The terminal's Ctrl-C goes to a whole group; a second signal would end a rank at once.
    command.process_group(0);
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: system calls alone, which may be made between fork and exec.
        unsafe {
            #[cfg(target_os = "linux")]
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent as libc::pid_t {
                libc::_exit(75);
            }
            if socket.is_some_and(|fd| libc::fcntl(fd, libc::F_SETFD, 0) != 0) {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` makes system calls alone.
    unsafe { command.pre_exec(prepare) };
}

/// Passes on what a rank says, but for its last line, which it returns.
fn pass_on(said: std::process::ChildStderr) -> Option<String> {
    let mut last = None;
    for line in BufReader::new(said).split(b'\n').map_while(std::result::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        match line.strip_prefix(LINE) {
            Some(text) => last = Some(text.to_string()),
            None => say(&printable(&line)),
        }
    }
    last
}

/// Waits until all ranks have ended; returns them in the order of their ends.
fn wait(all: &mut [Rank]) -> Vec<usize> {
    let (mut order, mut failed, mut asked) = (vec![], None, false);
    while order.len() < all.len() {
        match CAME.swap(0, Ordering::SeqCst) {
            0 => {}
            signal => tell(all, signal),
        }
        for (number, rank) in all.iter_mut().enumerate().filter(|(_, r)| r.status.is_none()) {
            let Ok(Some(status)) = rank.child.try_wait() else { continue };
            rank.status = Some(status);
            order.push(number);
            if !status.success() {
                failed.get_or_insert_with(Instant::now);
            }
        }
        let since = failed.map_or(Duration::ZERO, |at: Instant| at.elapsed());
        if since > END {
            tell(all, libc::SIGKILL);
        } else if since > ASK && !asked {
            asked = true;
            tell(all, libc::SIGTERM);
        }
        std::thread::sleep(LOOK);
    }
    order
}

/// Sends a signal to those that are there.
fn tell(all: &[Rank], signal: libc::c_int) {
    for rank in all.iter().filter(|r| r.status.is_none()) {
        // SAFETY: a child that has not been waited for.
        unsafe { libc::kill(rank.child.id() as libc::pid_t, signal) };
    }
}

/// The exit code: of a rank that failed by itself, else that of those that miss another. Says why,
/// unless rank 0 has.
fn verdict(all: Vec<Rank>, order: &[usize]) -> u8 {
    let status = |rank: &usize| all[*rank].status.unwrap_or_default();
    let own = |rank: &&usize| !matches!(status(rank).code(), None | Some(0 | 75));
    let lost = |rank: &&usize| !status(rank).success();
    let Some(deciding) = order.iter().find(own).or(order.iter().find(lost)).copied() else {
        return 0;
    };
    let decided = status(&deciding);
    let told = status(&0).code().is_some_and(|code| code != 0);
    let lines: Vec<Option<String>> =
        all.into_iter().map(|r| r.voice.and_then(|v| v.join().ok()).flatten()).collect();
    if !told {
        let line = lines[deciding].clone().or(lines.into_iter().flatten().next());
        let line = line.unwrap_or_else(|| {
            let signal = decided.signal().unwrap_or_default();
            // The others may have ended before they had met it: the sentence is theirs.
            format!(
                "rank {deciding} on {} is gone: signal {signal} ended its process; the same \
                 command resumes from the last checkpoint",
                machine_name()
            )
        });
        say(&format!("{LINE}{}", printable(&line)));
    }
    decided.code().map_or(75, |code| code as u8)
}
