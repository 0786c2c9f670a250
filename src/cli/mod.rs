//! The command line: commands, flags, messages, exit codes. Everything it knows of a run's settings
//! comes from the pipeline's table of keys; it does no work of its own.

mod args;
mod deepspeed;
mod flags;
#[cfg(test)]
mod tests;

use crate::base::{Error, Kind, Result, is_caught};
use crate::comm::{Launch, launched, run_ranks};
use crate::device::cpu::set_threads;
use crate::pipeline::{self, Ranks, config::RunConfig};
use args::Request;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

/// Runs the command line of this process and gives its exit code: 0 done, 1 a bug of ours, 2 the
/// user's input, 3 a missing resource, 75 stopped but resumable. An error is one line on stderr.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        if !is_caught() {
            say(&panic_line(info));
        }
    }));
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match std::panic::catch_unwind(|| run(arguments)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            say(&error_line(&e));
            ExitCode::from(e.exit_code())
        }
        // The hook has said why.
        Err(_) => ExitCode::from(1),
    }
}

fn run(arguments: Vec<OsString>) -> Result<()> {
    match args::parse(arguments)? {
        Request::Print(text) => print(&text),
        Request::Run(config) => {
            set_threads(config.threads);
            train(&config)
        }
        Request::Chat(config) => {
            set_threads(config.threads);
            end_with_the_reader();
            pipeline::chat(&config)
        }
        Request::Eval(config) => {
            set_threads(config.threads);
            end_with_the_reader();
            pipeline::eval(&config)
        }
        Request::Inspect(config) => print(&pipeline::inspect(&config)?),
        Request::Plan(config, own) => print(&pipeline::plan(&config, &own)?),
        Request::Verify(config) => pipeline::verify(&config, &mut |line| print(line)),
        Request::Bench(config) => {
            set_threads(config.threads);
            print(&pipeline::bench(&config, &mut |what| say(&format!("measuring {what}")))?)
        }
        Request::Doctor(config) => {
            let findings = pipeline::doctor(&config)?;
            print(&findings.table())?;
            findings.verdict()
        }
    }
}

/// Reads a command line, the program's name first, and does nothing else: an error is what [`main`] would tell.
pub fn check(arguments: Vec<OsString>) -> Result<()> {
    args::parse(arguments).map(|_| ())
}

/// Trains as the only rank, as one of those that a launcher has started, or as several in this process.
fn train(config: &RunConfig) -> Result<()> {
    let launch = launched(|name| std::env::var(name).ok())?;
    match (launch, config.num_gpus) {
        (Launch { size: 1, .. }, 1) => pipeline::train(config),
        (Launch { size: 1, .. }, ranks) => {
            let rank = |comm| pipeline::train_as(config, Ranks { comm, local: ranks });
            run_ranks(ranks, config.rank_timeout()?, rank).map(drop)
        }
        (launch, 1) => train_launched(config, &launch),
        (Launch { launcher, size, .. }, ranks) => Err(Error::user(format!(
            "{} started {size} ranks, and --num-gpus {ranks} asks for more in each; leave one of them out",
            launcher.unwrap_or("a launcher")
        ))),
    }
}

/// Trains as one of the ranks that a launcher has started.
#[cfg(feature = "mpi")]
fn train_launched(config: &RunConfig, _: &Launch) -> Result<()> {
    let comm = crate::comm::mpi::start(config.rank_timeout()?, &pipeline::alike(config)?)?;
    let ranks = Ranks::on_this_machine(comm.clone())?;
    let done = pipeline::train_as(config, ranks);
    comm.leave(done.as_ref().err());
    done
}

#[cfg(not(feature = "mpi"))]
fn train_launched(_: &RunConfig, launch: &Launch) -> Result<()> {
    Err(Error::resource(format!(
        "{} started {} ranks, but this binary was built without MPI; build it with --features mpi",
        launch.launcher.unwrap_or("a launcher"),
        launch.size
    )))
}

/// Lets a reader that goes away (`duplex chat | head`) end the process quietly, as it ends any
/// filter. Training goes on without its reader.
fn end_with_the_reader() {
    // SAFETY: restores the default action of a signal; no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Writes to stdout. A reader that has gone away (`duplex --help | head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output".as_ref(), &e))
        }
        _ => Ok(()),
    }
}

/// One line on stderr; where stderr is closed there is nobody to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "duplex: {line}");
}

fn error_line(e: &Error) -> String {
    match e.kind() {
        Kind::Internal => format!("internal error: {e}; please report this line"),
        _ => e.to_string(),
    }
}

fn panic_line(info: &PanicHookInfo) -> String {
    let place = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
    let message = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
    let mut line = format!("internal error{place}: {message}; please report this line");
    // Only where RUST_BACKTRACE asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        line.push_str(&format!("\n{trace}"));
    }
    line
}
