//! How the ranks that MPI's launcher has started come to the monitor: rank 0 listens on a port of
//! the system's choice, and tells the others over MPI where that is, and a secret that only this
//! run knows.

use super::super::launch::launched;
use super::super::member::Member;
use super::super::monitor::Monitor;
use super::super::rendezvous::{RendezvousConfig, join, serve};
use super::super::wire::random;
use super::requests::{Lane, Requests};
use crate::base::{Error, Result};
use crate::comm::host as host_memory;
use ::mpi::environment::{Universe, processor_name};
use ::mpi::{Threading, ffi};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses of a machine that are tried at most.
const MOST_ADDRESSES: usize = 32;
/// The way out where ranks do not meet.
const ADVICE: &str = "let the machines of a run connect to each other";
/// Room for an invitation.
const ROOM: usize = 4096;

/// MPI, started, and the ranks, met.
pub(super) struct Started {
    /// Ends MPI when it is dropped, which waits for the other ranks.
    pub(super) universe: ManuallyDrop<Universe>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) size: usize,
}

/// Where rank 0 listens.
#[derive(Serialize, Deserialize)]
struct Invitation {
    addresses: Vec<IpAddr>,
    port: u16,
    secret: [u8; 32],
}

/// Starts MPI and meets the others.
pub(super) fn start(timeout: Duration, alike: &BTreeMap<String, String>) -> Result<Started> {
    let (since, launch) = (Instant::now(), launched(|name| std::env::var(name).ok())?);
    let Some((universe, threads)) = ::mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(Error::internal("MPI was started twice"));
    };
    // Where the ranks do not meet it is never dropped.
    let universe = ManuallyDrop::new(universe);
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI has been started.
    let lane = unsafe {
        let comm = ffi::RSMPI_COMM_WORLD;
        ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN);
        ffi::MPI_Comm_rank(comm, &mut rank);
        ffi::MPI_Comm_size(comm, &mut size);
        Lane { comm, largest: ROOM }
    };
    let (rank, size) = (rank as usize, size as usize);
    if launch.launcher.is_some() && (launch.rank, launch.size) != (rank, size) {
        return Err(Error::user(format!(
            "{} says that this is rank {} of {}, MPI that it is rank {rank} of {size}: start the \
             ranks with the mpirun of the MPI this program was built with, or with srun \
             --mpi=pmix",
            launch.launcher.unwrap_or_default(),
            launch.rank,
            launch.size
        )));
    }
    if threads < Threading::Serialized {
        return Err(Error::resource("this MPI was built without support for threads"));
    }
    let mut alike = alike.clone();
    alike.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    let machine = processor_name().unwrap_or_else(|_| "an unnamed machine".into());
    let me = Member { rank, size, host: machine, alike };
    let (met, lines) = if rank == 0 {
        let listener = listen()?;
        let port = listener.local_addr().map_err(|e| no_network(&e))?.port();
        let invitation = Invitation { addresses: addresses()?, port, secret: random()? };
        tell(&lane, Some(&invitation), since, timeout)?;
        serve(&me, &invitation.place(since, timeout), &[], listener)?
    } else {
        let invitation = tell(&lane, None, since, timeout)?;
        join(&me, &invitation.place(since, timeout))?
    };
    let monitor = Monitor::new(rank, &met.members, lines)?;
    Ok(Started { universe, monitor, size })
}

impl Invitation {
    fn place(&self, since: Instant, timeout: Duration) -> RendezvousConfig {
        let at = |address: &IpAddr| SocketAddr::new(*address, self.port).to_string();
        let addresses = self.addresses.iter().map(at).collect();
        let secret = self.secret.iter().map(|b| format!("{b:02x}")).collect();
        RendezvousConfig { addresses, secret, since, timeout, advice: ADVICE }
    }
}

fn no_network(e: &std::io::Error) -> Error {
    Error::resource(format!("the ranks cannot meet: {e}"))
}

/// On a machine without IPv6 only the second works.
fn listen() -> Result<TcpListener> {
    TcpListener::bind(("::", 0))
        .or_else(|_| TcpListener::bind(("0.0.0.0", 0)))
        .map_err(|e| no_network(&e))
}

/// Rank 0's invitation, given to all within `timeout` from `since`.
fn tell(
    lane: &Lane,
    invitation: Option<&Invitation>,
    since: Instant,
    timeout: Duration,
) -> Result<Invitation> {
    let mut text = match invitation {
        Some(invitation) => serde_json::to_vec(invitation),
        None => Ok(vec![]),
    }
    .map_err(|e| Error::internal(e.to_string()))?;
    if text.len() > ROOM {
        return Err(Error::internal("an invitation that is too long"));
    }
    text.resize(ROOM, b' ');
    let data = host_memory(&mut text);
    let (mut requests, end) = (Requests::default(), since + timeout);
    // SAFETY: no other thread uses MPI yet; the text lives until the end, or for ever where there
    // is none.
    unsafe {
        requests.broadcast(lane, data, 0)?;
        while !requests.over()? {
            if Instant::now() >= end {
                std::mem::forget(text);
                return Err(Error::stopped(format!(
                    "not all ranks have started MPI within {} s",
                    timeout.as_secs_f64()
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    serde_json::from_slice(&text).map_err(|e| Error::internal(format!("rank 0's invitation: {e}")))
}

/// This machine's addresses. Those that only it can reach come last: on another machine they are
/// somebody else's.
fn addresses() -> Result<Vec<IpAddr>> {
    let mut all = vec![];
    // SAFETY: the list is read while it lives, each address as what its family says.
    unsafe {
        let mut list = std::ptr::null_mut();
        if libc::getifaddrs(&mut list) != 0 {
            return Err(no_network(&std::io::Error::last_os_error()));
        }
        let mut next = list;
        while let Some(entry) = next.as_ref() {
            next = entry.ifa_next;
            let up = entry.ifa_flags & libc::IFF_UP as u32 != 0;
            let family = entry.ifa_addr.as_ref().map(|a| i32::from(a.sa_family));
            match family.filter(|_| up) {
                Some(libc::AF_INET) => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    all.push(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()));
                }
                Some(libc::AF_INET6) => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    all.push(IpAddr::from(address.sin6_addr.s6_addr));
                }
                _ => {}
            }
        }
        libc::freeifaddrs(list);
    }
    // Those of one link need its name too, which is another on the other side.
    all.retain(|a| !matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    all.sort_by_key(|a| (a.is_loopback(), a.is_ipv6()));
    all.truncate(MOST_ADDRESSES);
    Ok(all)
}
