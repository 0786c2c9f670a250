//! How a run's ranks are started: one in this process, several as its threads, one of those that a
//! launcher has started, or with a card each as processes of its own.

use super::children;
use crate::base::{Error, Result};
use crate::comm::{Comm, DUPLEX, Launch, launched, nccl, run_ranks};
use crate::device::{Device, cuda};
use crate::pipeline::{self, Ranks, config::DeviceChoice, config::RunConfig};

/// True if this process is the one that warns of its command line: not a rank that another rank, or
/// the process that started it, speaks for.
pub(super) fn speaks() -> bool {
    let launch = launched(|name| std::env::var(name).ok());
    launch.is_ok_and(|l| l.rank == 0 && l.launcher != Some(DUPLEX))
}

/// Trains; the exit code is that of the rank that failed, which has told why.
pub(super) fn train(config: &RunConfig) -> Result<u8> {
    let launch = launched(|name| std::env::var(name).ok())?;
    let done = match (&launch, config.num_gpus) {
        (Launch { launcher: Some(DUPLEX), .. }, _) => on_a_card(config, &launch),
        (Launch { size: 1, .. }, 1) => pipeline::train(config),
        (Launch { size: 1, .. }, ranks) if have_cards(config)? => {
            enough_cards(config, ranks)?;
            nccl::find()?;
            return children::run(ranks);
        }
        (Launch { size: 1, .. }, ranks) => {
            let rank = |comm| pipeline::train_as(config, Ranks { comm, local: ranks, card: None });
            run_ranks(ranks, config.rank_timeout()?, rank).map(drop)
        }
        (launch, 1) if have_cards(config)? => on_a_card(config, launch),
        (launch, 1) => over_mpi(config, launch),
        (Launch { launcher, size, .. }, ranks) => Err(Error::user(format!(
            "{} started {size} ranks, and --num-gpus {ranks} asks for more in each; leave one of them out",
            launcher.unwrap_or("a launcher")
        ))),
    };
    done.map(|()| 0)
}

/// True if each of several ranks has its own GPU and NCCL connects them. A device index other than
/// 0 is an error.
fn have_cards(config: &RunConfig) -> Result<bool> {
    match config.device {
        DeviceChoice::On(Device::Cpu | Device::Imagined(_)) => Ok(false),
        DeviceChoice::On(Device::Cuda(0)) => Ok(true),
        DeviceChoice::On(Device::Cuda(n)) => Err(Error::user(format!(
            "--device cuda:{n} names one card, and there are several ranks; use --device cuda, and CUDA_VISIBLE_DEVICES to choose"
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
fn enough_cards(config: &RunConfig, ranks: usize) -> Result<()> {
    if config.device == DeviceChoice::On(Device::Emulated) {
        return Ok(());
    }
    let cards = cards()?;
    if ranks <= cards {
        return Ok(());
    }
    Err(Error::user(format!(
        "--num-gpus {ranks} asks for more cards than the driver knows: {cards}; `duplex doctor` lists them"
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

/// Trains as a rank with a card, among others that have one each.
fn on_a_card(config: &RunConfig, launch: &Launch) -> Result<()> {
    let card = match config.device {
        DeviceChoice::On(Device::Emulated) => Device::Emulated,
        // A launcher that gives each process a card of its own shows it no other.
        _ if cards()? == 1 => Device::Cuda(0),
        _ => Device::Cuda(launch.local_rank as u32),
    };
    let comm = nccl::start(card, launch, config.rank_timeout()?, &pipeline::alike(config)?)?;
    among(config, comm, Some(card))
}

/// Trains as one of the ranks that are processes, and tells the others of its end.
fn among(config: &RunConfig, comm: Comm, card: Option<Device>) -> Result<()> {
    let ranks = Ranks::on_this_machine(comm.clone(), card);
    let done = ranks.and_then(|ranks| pipeline::train_as(config, ranks));
    comm.leave(done.as_ref().err());
    done
}

/// Trains as one of the ranks that a launcher has started, on CPUs.
#[cfg(feature = "mpi")]
fn over_mpi(config: &RunConfig, _: &Launch) -> Result<()> {
    let comm = crate::comm::mpi::start(config.rank_timeout()?, &pipeline::alike(config)?)?;
    among(config, comm, None)
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(_: &RunConfig, launch: &Launch) -> Result<()> {
    Err(Error::resource(format!(
        "{} started {} ranks, which compute on the CPU, but this binary was built without MPI; build it with --features mpi",
        launch.launcher.unwrap_or("a launcher"),
        launch.size
    )))
}
