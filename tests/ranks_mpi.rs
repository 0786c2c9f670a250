//! Ranks that MPI connects, under the machine's own `mpirun`: every call against the same in one
//! process, bit for bit; and ranks that are killed or stopped at any moment, whom the others name.
//! The test starts itself as the ranks.

#![cfg(feature = "mpi")]

use duplex::base::{DType, Elem, Error, Result, Rng, bf16};
use duplex::comm::{CallKind, Comm, Handle, Reduce, mpi, run_ranks};
use duplex::device::Region;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const RANKS: usize = 4;
const SOON: Duration = Duration::from_secs(60);
/// Environment variables: the ranks' task, and the directory where they record how they ended.
const WHAT: &str = "DUPLEX_TEST_RANKS";
const WHERE: &str = "DUPLEX_TEST_RANKS_DIR";

/// A call of these tests.
macro_rules! call {
    ($call:expr) => {
        // SAFETY: the tests touch a call's memory once they have waited for it, or dropped it, and
        // have it longer.
        unsafe { $call }
    };
}

fn region<E: bytemuck::Pod>(x: &mut [E]) -> Region<'_> {
    Region::of_host(bytemuck::cast_slice_mut(x))
}

fn random<E: Elem>(seed: u64, rank: usize, n: usize) -> Vec<E> {
    let mut rng = Rng::new(seed, rank as u64);
    (0..n).map(|_| E::from_f32(rng.normal())).collect()
}

/// Some seed that is another every time.
fn fresh() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_nanos() as u64
}

/// Checksums of what a rank has after each call, and what it counted.
#[derive(Default, Debug, PartialEq)]
struct Seen(Vec<blake3::Hash>, Vec<(u64, u64)>);

impl Seen {
    fn note<E: Elem>(&mut self, x: &[E]) {
        let bits: Vec<u8> = x.iter().flat_map(|x| x.to_f32().to_bits().to_le_bytes()).collect();
        self.0.push(blake3::hash(&bits));
    }
}

/// Every call on `n` values of a rank, in place or not.
fn calls<E: Elem>(comm: &Comm, seed: u64, n: usize, seen: &mut Seen) -> Result<()> {
    let (r, size) = (comm.rank(), comm.size());
    let nothing = E::from_f32(f32::NAN);
    for by in [Reduce::Sum, Reduce::Max] {
        let mut data = random::<E>(seed, r, n);
        call!(comm.all_reduce(region(&mut data), E::DTYPE, by))?.wait()?;
        seen.note(&data);
        let (mut from, mut own) = (random::<E>(seed + 1, r, n * size), vec![nothing; n]);
        call!(comm.reduce_scatter(region(&mut from), region(&mut own), E::DTYPE, by))?.wait()?;
        seen.note(&own);
        let (whole, block) = (region(&mut from), size_of_val(&own[..]));
        let block = whole.slice(r * block, block);
        call!(comm.reduce_scatter(whole, block, E::DTYPE, by))?.wait()?;
        seen.note(&from);
    }
    let (mut own, mut to) = (random::<E>(seed, r, n), vec![nothing; n * size]);
    call!(comm.all_gather(region(&mut own), region(&mut to)))?.wait()?;
    seen.note(&to);
    let mut to = vec![nothing; n * size];
    to[r * n..][..n].copy_from_slice(&own);
    let (whole, block) = (region(&mut to), size_of_val(&own[..]));
    let block = whole.slice(r * block, block);
    call!(comm.all_gather(block, whole))?.wait()?;
    seen.note(&to);
    let mut data = random::<E>(seed, r, n);
    call!(comm.broadcast(region(&mut data), seed as usize % size))?.wait()?;
    seen.note(&data);
    comm.barrier()
}

/// Calls that are under way at the same time, waited for by each rank in another order; messages
/// among them, and a call of another group. Of ranks as threads (not `mixed`) those of one group
/// cannot be waited for before another's.
fn overlapping(comm: &Comm, seed: u64, mixed: bool, seen: &mut Seen) -> Result<()> {
    let (r, size) = (comm.rank(), comm.size());
    let n = 30_001;
    let mut sums: Vec<Vec<f32>> = (0..3).map(|i| random(seed + i, r, n)).collect();
    let mut own: Vec<bf16> = random(seed, r, n);
    let mut all = vec![bf16::from_f32(0.0); n * size];
    let mut given: Vec<Vec<f32>> = [n, 3, 0].iter().map(|n| random(seed, r, *n)).collect();
    let mut taken: Vec<Vec<f32>> = given.iter().map(|x| vec![0.0; x.len()]).collect();
    let mut rest: Vec<f32> = random(seed + 9, r, 1000);
    // Behind all memory: where a call fails, those that are open are dropped first.
    let mut handles: Vec<Handle> = vec![];
    for x in &mut taken {
        handles.push(call!(comm.receive(region(x), (r + size - 1) % size))?);
    }
    for x in &mut sums {
        handles.push(call!(comm.all_reduce(region(x), DType::F32, Reduce::Sum))?);
    }
    handles.push(call!(comm.all_gather(region(&mut own), region(&mut all)))?);
    for x in &mut given {
        handles.push(call!(comm.send(region(x), (r + 1) % size))?);
    }
    // A call of another group while all these are open.
    let pair = comm.split(r % 2)?;
    let of_pair = call!(pair.all_reduce(region(&mut rest), DType::F32, Reduce::Sum))?;
    if mixed {
        handles.push(of_pair)
    } else {
        of_pair.wait()?
    }
    let mut rng = Rng::new(fresh(), r as u64);
    while !handles.is_empty() {
        let next = handles.remove(rng.below(handles.len() as u32) as usize);
        // Dropped, a handle is waited for too.
        if rng.below(4) == 0 { drop(next) } else { next.wait()? }
    }
    sums.iter().chain(&taken).for_each(|x| seen.note(x));
    seen.note(&rest);
    seen.note(&all);
    calls::<f32>(&pair, seed + 20, 77, seen)?;
    // One group is done before the other begins, and there are groups of one.
    calls::<bf16>(&comm.split(usize::from(r == 1) << 40)?, seed + 30, 33, seen)?;
    comm.barrier()
}

fn every_call(comm: &Comm, seed: u64, mixed: bool) -> Result<Seen> {
    let mut seen = Seen::default();
    for (i, n) in [0, 1, 7, 4096, 100_003].into_iter().enumerate() {
        calls::<f32>(comm, seed + i as u64, n, &mut seen)?;
        calls::<bf16>(comm, seed + i as u64, n, &mut seen)?;
    }
    // Several pieces of each rank's share.
    calls::<f32>(comm, seed + 40, 1_000_003, &mut seen)?;
    for i in 0..5 {
        overlapping(comm, seed + 50 + i, mixed, &mut seen)?;
    }
    let counts = CallKind::ALL.map(|kind| (comm.counted(kind).calls, comm.counted(kind).sent));
    seen.1.extend(counts);
    Ok(seen)
}

/// Calls without end.
fn go_on(comm: &Comm) -> Result<()> {
    let mut rng = Rng::new(7, 7);
    let mut all = vec![1f32; 40_000 * comm.size()];
    let (mut own, mut given) = (vec![1f32; 40_000], vec![3f32; 40_000]);
    loop {
        let n = 1 + rng.below(40_000) as usize;
        let part = if rng.below(200) == 0 { comm.split(comm.rank() % 2)? } else { comm.clone() };
        let to = &mut all[..n * part.size()];
        let (mut data, mut message) = (vec![1f32; n], vec![2f32; n]);
        let gather = call!(part.all_gather(region(&mut own[..n]), region(to)))?;
        let sum = call!(part.all_reduce(region(&mut data), DType::F32, Reduce::Max))?;
        let other = (comm.rank() + 1) % comm.size();
        if rng.below(2) == 0 {
            let sent = call!(comm.send(region(&mut given[..n]), other))?;
            call!(comm.receive(region(&mut message), (comm.rank() + RANKS - 1) % RANKS))?.wait()?;
            sent.wait()?;
        }
        if rng.below(2) == 0 {
            gather.wait().and(sum.wait())?
        } else {
            sum.wait().and(gather.wait())?
        }
        comm.barrier()?;
    }
}

/// One rank's part. Not a test: the tests start it.
#[test]
#[ignore = "started by the tests under mpirun"]
fn rank() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let number = |i: usize| words[i].parse::<u64>().unwrap();
    let done = match words[0] {
        "calls" => {
            let (seed, largest) = (number(1), number(2) as usize);
            mpi::start_in_pieces(SOON, &BTreeMap::new(), largest).and_then(|comm| {
                assert_eq!(comm.size(), RANKS);
                let seen = every_call(&comm, seed, true)?;
                let expected = run_ranks(RANKS, SOON, |comm| every_call(&comm, seed, false))?;
                assert!(seen.0.len() > 100 && seen == expected[comm.rank()]);
                Ok(())
            })
        }
        "differ" => {
            let rank = std::env::var("OMPI_COMM_WORLD_RANK").unwrap();
            let value = if rank == "2" { "f32" } else { "bf16" };
            mpi::start(SOON, &BTreeMap::from([("dtype".into(), value.into())])).map(drop)
        }
        // SIGNAL, rank, after how many microseconds, time-out in ms.
        "end" => mpi::start(Duration::from_millis(number(4)), &BTreeMap::new()).and_then(|comm| {
            let signal = number(1) as i32;
            comm.barrier()?;
            if comm.rank() as u64 == number(2) {
                let after = Duration::from_micros(number(3));
                std::fs::write(dir().join("pid"), std::process::id().to_string()).unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    // SAFETY: a signal for this process.
                    unsafe { libc::kill(libc::getpid(), signal) };
                });
            }
            go_on(&comm)
        }),
        "fail" => mpi::start(SOON, &BTreeMap::new()).and_then(|comm| {
            comm.barrier()?;
            if comm.rank() == 1 {
                let e = Error::user("row 7 is bad");
                comm.leave(Some(&e));
                return Err(e);
            }
            go_on(&comm)
        }),
        // A rank that ends well while others need it.
        "part" => mpi::start(SOON, &BTreeMap::new()).and_then(|comm| {
            comm.barrier()?;
            if comm.rank() == 3 { Ok(()) } else { comm.barrier() }
        }),
        other => panic!("{other}?"),
    };
    let name = std::env::var("OMPI_COMM_WORLD_RANK").unwrap();
    let (code, line) = match &done {
        Ok(()) => (0, String::new()),
        Err(e) => (e.exit_code().into(), e.to_string()),
    };
    std::fs::write(dir().join(format!("line-{name}")), line).unwrap();
    std::process::exit(code);
}

fn dir() -> std::path::PathBuf {
    std::env::var(WHERE).unwrap().into()
}

/// How the ranks ended: each one's code and line, by rank, and mpirun's own.
struct Ended {
    codes: Vec<Option<i32>>,
    lines: Vec<String>,
    mpirun: Output,
    took: Duration,
}

/// Starts the ranks under mpirun. A shell around each keeps what mpirun does at the end of the
/// first from the others, so that they have to end by themselves; without it (`bare`) they are as
/// users start them.
fn under_mpirun(what: &str, bare: bool, dir: &Path) -> Ended {
    // One run at a time: mpirun kills, one second after the first has ended, ranks that have not
    // come to tell why they end, which takes longer where two runs share two cores.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Training finishes its work at SIGTERM, and its second means at once.
    let shell = match bare {
        true => "trap '' TERM; exec \"$@\"",
        false => {
            "trap '' TERM; \"$@\"; c=$?; echo $c \
             >\"$DUPLEX_TEST_RANKS_DIR/code-$OMPI_COMM_WORLD_RANK\"; sleep 1; exit $c"
        }
    };
    let clock = Instant::now();
    let ranks = RANKS.to_string();
    let mpirun = Command::new("mpirun")
        .args(["--allow-run-as-root", "--oversubscribe", "-np", &ranks, "sh", "-c", shell, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "rank", "--ignored", "--nocapture"])
        .env(WHAT, what)
        .env(WHERE, dir)
        .output()
        .expect("no mpirun: `tools/setup mpi` installs it");
    let took = clock.elapsed();
    let read = |name: &str, r| std::fs::read_to_string(dir.join(format!("{name}-{r}")));
    let code = |r| read("code", r).ok().and_then(|code| code.trim().parse().ok());
    let codes = (0..RANKS).map(code).collect();
    let lines = (0..RANKS).map(|r| read("line", r).unwrap_or_default()).collect();
    Ended { codes, lines, mpirun, took }
}

impl Ended {
    fn all(&self) -> String {
        let (out, err) = (&self.mpirun.stdout, &self.mpirun.stderr);
        let [out, err] = [out, err].map(|text| String::from_utf8_lossy(text));
        format!("{:?}\n{:?}\n{:?}\n{out}\n{err}", self.codes, self.lines, self.mpirun.status)
    }
}

#[test]
fn every_call_gives_the_bits_of_ranks_in_one_process() {
    for largest in [1000, 1 << 30] {
        let dir = tempfile::tempdir().unwrap();
        let ended = under_mpirun(&format!("calls {} {largest}", fresh() >> 8), true, dir.path());
        assert!(ended.mpirun.status.success(), "{}", ended.all());
        let said = String::from_utf8_lossy(&ended.mpirun.stderr);
        assert!(!said.to_lowercase().contains("mpi"), "{said}");
    }
}

/// Checks that all ranks but `dead` have told why they end, with all of `parts`. Where mpirun may
/// end ranks before they come to it (`bare`), one has, and none has told anything else.
#[track_caller]
fn all_tell(ended: &Ended, dead: usize, bare: bool, parts: &[&str]) {
    let others: Vec<usize> = (0..RANKS).filter(|r| *r != dead).collect();
    let told = |r: &&usize| !bare || !ended.lines[**r].is_empty();
    let told: Vec<usize> = others.iter().filter(told).copied().collect();
    assert!(!told.is_empty(), "{}", ended.all());
    for r in told {
        let line = &ended.lines[r];
        assert!(parts.iter().all(|part| line.contains(part)), "rank {r}: {line}\n{}", ended.all());
        assert!(bare || ended.codes[r] == Some(75), "rank {r}\n{}", ended.all());
    }
}

#[test]
fn a_rank_that_is_killed_at_any_moment_is_named_by_all_others() {
    let mut rng = Rng::new(fresh(), 0);
    for round in 0..6 {
        let (dead, after) = (rng.below(RANKS as u32) as usize, rng.below(400_000));
        let dir = tempfile::tempdir().unwrap();
        let what = format!("end {} {dead} {after} 20000", libc::SIGKILL);
        let bare = round >= 4;
        let ended = under_mpirun(&what, bare, dir.path());
        let named = format!("rank {dead} on ");
        all_tell(&ended, dead, bare, &[&named, "is gone: its process ended without a word"]);
        // mpirun's own code is that of the rank whose end it sees first: mostly 128 and the signal.
        let code = ended.mpirun.status.code();
        assert!(code == Some(137) || code == Some(75), "{}", ended.all());
        assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
    }
}

#[test]
fn a_rank_that_is_stopped_is_named_after_the_time_out() {
    for (dead, after, bare) in [(2, 300_000, false), (0, 100_000, false), (2, 200_000, true)] {
        let dir = tempfile::tempdir().unwrap();
        let what = format!("end {} {dead} {after} 4000", libc::SIGSTOP);
        let ended = under_mpirun(&what, bare, dir.path());
        let pid: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().parse().unwrap();
        // SAFETY: mpirun has killed it; if not, it is ours, and would remain.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        all_tell(&ended, dead, bare, &[&format!("rank {dead} on "), "4 s"]);
        assert_eq!(ended.mpirun.status.code(), Some(75), "{}", ended.all());
        assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    }
}

#[test]
fn a_rank_that_fails_or_ends_early_is_told_with_its_reason() {
    for bare in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let ended = under_mpirun("fail", bare, dir.path());
        assert_eq!(ended.lines[1], "row 7 is bad", "{}", ended.all());
        if !bare {
            all_tell(&ended, 1, bare, &["rank 1 on ", "has failed (row 7 is bad)"]);
        }
        assert_eq!(ended.mpirun.status.code(), Some(2), "{}", ended.all());
    }

    let dir = tempfile::tempdir().unwrap();
    let ended = under_mpirun("part", false, dir.path());
    for r in 0..3 {
        assert!(ended.lines[r].contains("rank 3 on "), "{}", ended.all());
        assert!(ended.lines[r].ends_with(" has ended"), "{}", ended.all());
        assert_eq!(ended.codes[r], Some(75));
    }
}

#[test]
fn ranks_of_different_runs_do_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let ended = under_mpirun("differ", false, dir.path());
    for r in 0..RANKS {
        let line = &ended.lines[r];
        assert!(line.starts_with("rank 2 on ") && line.contains("has f32 for dtype"), "{line}");
        assert_eq!(ended.codes[r], Some(2), "{}", ended.all());
    }
}
