//! How ranks with cards meet: at rank 0's address, which the launcher tells (`MASTER_ADDR`,
//! `MASTER_PORT`), or at the socket that `--num-gpus` opened for rank 0. There they get the id of
//! NCCL's communicator.

use super::api::{Api, START};
use crate::base::{Error, Result, machine_name};
use crate::comm::member::Member;
use crate::comm::monitor::Monitor;
use crate::comm::rendezvous::{Met, RendezvousConfig, bind, join, serve};
use crate::comm::{Launch, SOCKET};
use cudarc::nccl::sys::ncclUniqueId;
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The environment variable with the run's secret.
pub const SECRET: &str = "DUPLEX_SECRET";

/// Environment variables that distinguish the runs at one address where no secret is given.
const JOBS: [&str; 2] = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"];

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The way out where ranks do not meet.
const ADVICE: &str = "start all ranks with the same MASTER_ADDR, MASTER_PORT, WORLD_SIZE and \
                      DUPLEX_SECRET";

/// Where the ranks of `launch` meet, within `timeout` from now.
pub(super) fn place(launch: &Launch, timeout: Duration) -> Result<RendezvousConfig> {
    let needed = |name: &str, example: &str| {
        set(name).ok_or_else(|| {
            Error::user(format!(
                "{} started {} ranks, but {name} is not set; export it for all of them, as in \
                 {name}={example}",
                launch.launcher.unwrap_or("a launcher"),
                launch.size
            ))
        })
    };
    let address = needed("MASTER_ADDR", "node-1")?;
    let port = needed("MASTER_PORT", "29500")?;
    let port: u16 = port
        .trim()
        .parse()
        .map_err(|_| Error::user(format!("MASTER_PORT must be a port, not {port:?}")))?;
    // There torchrun itself listens.
    let taken = set("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
    let port = if taken { port.checked_add(1).unwrap_or(port - 1) } else { port };
    let secret = set(SECRET).unwrap_or_else(|| JOBS.iter().filter_map(|v| set(v)).collect());
    let addresses = vec![format!("{}:{port}", address.trim())];
    let (since, advice) = (Instant::now(), ADVICE);
    Ok(RendezvousConfig { addresses, secret, since, timeout, advice })
}

/// Meets the other ranks.
pub(super) fn meet(
    api: &Api,
    me: &Member,
    place: &RendezvousConfig,
) -> Result<(Met, ncclUniqueId, Arc<Monitor>)> {
    let (met, lines) = if me.rank == 0 {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: the pointer is to a local of the right size.
        api.check(START, unsafe { (api.unique_id)(&mut id) })?;
        let listener = match socket()? {
            Some(listener) => listener,
            None => bind(&place.addresses[0])?,
        };
        serve(me, place, bytemuck::bytes_of(&id.internal), listener)?
    } else {
        join(me, place)?
    };
    let internal = bytemuck::try_pod_read_unaligned(&met.gift);
    let internal = internal.map_err(|_| Error::internal("rank 0 gave no id"))?;
    let monitor = Monitor::new(me.rank, &met.members, lines)?;
    Ok((met, ncclUniqueId { internal }, monitor))
}

/// The socket that was opened for this rank. No other program comes between its choice and its use.
fn socket() -> Result<Option<TcpListener>> {
    let Some(number) = set(SOCKET) else { return Ok(None) };
    let number = number.parse::<i32>();
    let number = number.map_err(|_| Error::user(format!("{SOCKET} is no open file")))?;
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: asks about a number that may be none of an open file; the pointers are to locals.
    let code = unsafe {
        let value = (&raw mut kind).cast();
        libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, value, &raw mut length)
    };
    if code != 0 || kind == 0 {
        return Err(Error::user(format!("{SOCKET}={number} is no socket that listens")));
    }
    // SAFETY: a listening socket that was made for this process, which takes it once.
    Ok(Some(unsafe { TcpListener::from_raw_fd(number) }))
}

/// The name of this machine.
pub(super) fn this_machine() -> String {
    let name = machine_name();
    if name.is_empty() { "an unnamed machine".into() } else { name }
}
