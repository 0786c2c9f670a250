//! The command line: commands, flags, messages, exit codes. Everything it knows of a run's settings
//! comes from the pipeline's table of keys; it does no work of its own.

mod args;
mod bare;
mod children;
mod commands;
mod deepspeed;
mod flags;
mod ranks;
#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests;

use crate::base::{
    Error, Kind, Result, catches_panic, finish_saying, listen_for_stop, print, printable, say,
    tell, tell_of_file_size_limits, warn,
};
use crate::device::cpu::set_threads;
use crate::pipeline;
use args::Request;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

/// Runs the command line of this process and gives its exit code: 0 done, 1 a bug of ours, 2 the
/// user's input, 3 a missing resource, 75 stopped but resumable. An error is one line on stderr.
pub fn main() -> ExitCode {
    tell_of_file_size_limits();
    std::panic::set_hook(Box::new(|info| {
        if !catches_panic() {
            tell(&panic_line(info));
        }
    }));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match std::panic::catch_unwind(|| run(arguments)) {
        Ok(Ok(code)) => {
            finish_saying();
            ExitCode::from(code)
        }
        Ok(Err(e)) => {
            tell(&error_line(&e));
            ExitCode::from(e.exit_code())
        }
        // The hook has said why.
        Err(_) => ExitCode::from(1),
    }
}

/// Does what the words ask for. The exit code is 0, or that of a rank that has told why.
fn run(arguments: Vec<OsString>) -> Result<u8> {
    let (request, warnings) = args::parse(arguments)?;
    if ranks::speaks() {
        for warning in warnings {
            warn(&warning);
        }
    }
    let done = match request {
        Request::Print(text) => print(&text),
        Request::Run(config) => {
            listen_for_stop();
            use_threads(config.threads);
            return ranks::train(&config);
        }
        Request::Chat(config) => {
            use_threads(config.threads);
            end_with_the_reader();
            pipeline::chat(&config)
        }
        Request::Eval(config) => {
            use_threads(config.threads);
            end_with_the_reader();
            pipeline::eval(&config)
        }
        Request::Inspect(config) => print(&pipeline::inspect(&config)?),
        Request::Plan(config, own) => print(&pipeline::plan(&config, &own)?),
        Request::Verify(config) => pipeline::verify(&config, &mut |line| {
            print(&format!("{}\n", printable(line.trim_end())))
        }),
        Request::Bench(config) => {
            use_threads(config.threads);
            print(&pipeline::bench(&config, &mut |what| say(&format!("duplex: measuring {what}")))?)
        }
        Request::Doctor(config) => {
            let findings = pipeline::doctor(&config)?;
            print(&findings.table())?;
            findings.verdict()
        }
    };
    done.map(|()| 0)
}

/// Reads a command line, the program's name first, and does nothing else: an error is what [`main`]
/// would tell.
pub fn check(arguments: Vec<OsString>) -> Result<()> {
    args::parse(arguments).map(|_| ())
}

/// Threads that are started for each core at most: thousands on a few cores hardly move on.
const THREADS_PER_CORE: usize = 8;

/// Sets the number of threads. More than the cores that the process may use wait for each other in
/// every loop.
fn use_threads(asked: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = asked.min(cores * THREADS_PER_CORE);
    if threads > cores && ranks::speaks() {
        let noun = if cores == 1 { "core" } else { "cores" };
        warn(&format!(
            "--threads {asked}: this process may use {cores} {noun}, and more threads slow it \
             down; it takes {threads}, and with --threads 0 one for each core"
        ));
    }
    set_threads(threads);
}

/// Lets a reader that goes away (`duplex chat | head`) end the process quietly, as it ends any
/// filter. Training goes on without its reader.
fn end_with_the_reader() {
    // SAFETY: restores the default action of a signal; no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn error_line(e: &Error) -> String {
    match e.kind() {
        Kind::Internal => format!("duplex: internal error: {e}; please report this line"),
        _ => format!("duplex: {e}"),
    }
}

fn panic_line(info: &PanicHookInfo) -> String {
    let place = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
    let message = printable(info.payload_as_str().unwrap_or("no message"));
    let mut line = format!("duplex: internal error{place}: {message}; please report this line");
    // Only where RUST_BACKTRACE asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        line.push_str(&format!("\n{trace}"));
    }
    line
}
