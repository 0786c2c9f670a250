//! How a run's ranks are started: one in this process, several as its threads, one of those that a
//! launcher has started, or with a card each as processes of its own.

use super::children;
use crate::base::{Error, Result};
use crate::comm::{Comm, DUPLEX, Launch, launched, nccl, run_ranks};
use crate::device::{Device, cuda};
use crate::pipeline::{self, Ranks, config::DeviceChoice, config::RunConfig};
use std::collections::BTreeMap;
use std::time::Duration;

/// True if this process is the one that warns of its command line: not a rank that another rank, or
/// the process that started it, speaks for.
pub(super) fn speaks() -> bool {
    let launch = launched(|name| std::env::var(name).ok());
    launch.is_ok_and(|l| l.rank == 0 && l.launcher != Some(DUPLEX))
}

/// The ways to start the ranks of a run.
enum Start {
    /// This process is the only rank.
    Alone,
    /// So many ranks are threads of this process.
    Threads(usize),
    /// So many ranks are child processes with a GPU each.
    Children(usize),
    /// This process is one of several ranks, and has this GPU.
    OnGpu(Device),
    /// This process is one of several ranks, and computes on the CPU.
    OnCpu,
}

/// Trains; the exit code is that of the rank that failed, which has told why.
pub(super) fn train(config: &RunConfig) -> Result<u8> {
    let launch = launched(|name| std::env::var(name).ok())?;
    let start = choose(config.device, config.num_gpus, &launch)?;
    let (timeout, alike) = (config.rank_timeout()?, || pipeline::alike(config));
    let run = |ranks| pipeline::train(config, ranks);
    let (comm, card) = match start {
        Start::Alone => return run(Ranks::alone()).map(|()| 0),
        Start::Threads(ranks) => {
            let rank = |comm| run(Ranks { comm, local: ranks, card: None });
            return run_ranks(ranks, timeout, rank).map(|_| 0);
        }
        Start::Children(ranks) => {
            nccl::find()?;
            return children::run(ranks);
        }
        Start::OnGpu(card) => (nccl::start(card, &launch, timeout, &alike()?)?, Some(card)),
        Start::OnCpu => (over_mpi(&launch, timeout, &alike()?)?, None),
    };
    // One of several processes: the others are told of its end.
    let done = Ranks::on_this_machine(comm.clone(), card).and_then(run);
    comm.leave(done.as_ref().err());
    done.map(|()| 0)
}

/// Most ranks that are threads of a process: waiting for each other they take its cores, and more
/// hardly move on.
const MOST_THREADS: usize = 64;

/// Chooses how the ranks are started. `ranks` is the number that this process is to start.
fn choose(device: DeviceChoice, ranks: usize, launch: &Launch) -> Result<Start> {
    match (launch, ranks) {
        (Launch { launcher: Some(DUPLEX), .. }, _) => own_card(device, launch).map(Start::OnGpu),
        (Launch { size: 1, .. }, 1) => Ok(Start::Alone),
        (Launch { size: 1, .. }, ranks) if have_cards(device)? => {
            enough_cards(device, ranks)?;
            Ok(Start::Children(ranks))
        }
        (Launch { size: 1, .. }, ranks) if ranks > MOST_THREADS => Err(Error::user(format!(
            "--num-gpus {ranks} asks for {ranks} ranks on the CPU, which are threads of this \
             process with a model each; use at most {MOST_THREADS}, or a launcher on several \
             machines"
        ))),
        (Launch { size: 1, .. }, ranks) => Ok(Start::Threads(ranks)),
        (launch, 1) if have_cards(device)? => own_card(device, launch).map(Start::OnGpu),
        (_, 1) => Ok(Start::OnCpu),
        (Launch { launcher, size, .. }, ranks) => Err(Error::user(format!(
            "{} started {size} ranks, and --num-gpus {ranks} asks for more in each; leave one of \
             them out",
            launcher.unwrap_or("a launcher")
        ))),
    }
}

/// True if each of several ranks has its own GPU and NCCL connects them. A device index other than
/// 0 is an error.
fn have_cards(device: DeviceChoice) -> Result<bool> {
    match device {
        DeviceChoice::On(Device::Cpu | Device::Fake(_)) => Ok(false),
        DeviceChoice::On(Device::Cuda(0)) => Ok(true),
        DeviceChoice::On(Device::Cuda(n)) => Err(Error::user(format!(
            "--device cuda:{n} names one GPU, but there are several ranks; use --device cuda, and \
             CUDA_VISIBLE_DEVICES to choose"
        ))),
        // Elsewhere ranks are threads that share the device; this is how what ranks with cards do
        // is tested.
        DeviceChoice::On(Device::Emulated) => Ok(nccl::given().is_some()),
        DeviceChoice::Auto => {
            Ok(cfg!(feature = "cuda") && cuda::cards().is_ok_and(|c| !c.is_empty()))
        }
    }
}

/// Refuses more ranks than there are cards. Nothing is done on a card here: it would take memory of
/// it.
fn enough_cards(device: DeviceChoice, ranks: usize) -> Result<()> {
    if device == DeviceChoice::On(Device::Emulated) {
        return Ok(());
    }
    let cards = cards()?;
    if ranks <= cards {
        return Ok(());
    }
    Err(Error::user(format!(
        "--num-gpus {ranks} asks for more GPUs than the driver finds: {cards}; `duplex doctor` \
         lists them"
    )))
}

/// How many cards there are.
fn cards() -> Result<usize> {
    if !cfg!(feature = "cuda") {
        // Says so.
        Device::Cuda(0).stream().map_err(|e| e.context("--device cuda"))?;
    }
    Ok(cuda::cards().map_err(|e| e.context("--device cuda"))?.len())
}

/// The card of this rank, among others that have one each.
fn own_card(device: DeviceChoice, launch: &Launch) -> Result<Device> {
    Ok(match device {
        DeviceChoice::On(Device::Emulated) => Device::Emulated,
        // A launcher that gives each process a card of its own shows it no other.
        _ if cards()? == 1 => Device::Cuda(0),
        _ => Device::Cuda(launch.local_rank as u32),
    })
}

/// Connects this process to the other ranks that a launcher has started, on CPUs.
#[cfg(feature = "mpi")]
fn over_mpi(_: &Launch, timeout: Duration, alike: &BTreeMap<String, String>) -> Result<Comm> {
    crate::comm::mpi::start(timeout, alike)
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(launch: &Launch, _: Duration, _: &BTreeMap<String, String>) -> Result<Comm> {
    Err(Error::resource(format!(
        "{} started {} ranks, which compute on the CPU, but this binary was built without MPI; \
         build it with --features mpi",
        launch.launcher.unwrap_or("a launcher"),
        launch.size
    )))
}
