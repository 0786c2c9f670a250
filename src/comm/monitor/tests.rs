use super::super::rendezvous::{Met, join, serve};
use super::super::testing::{listener, member, pair, place};
use super::*;
use std::io::Write;
use std::net::{Shutdown, TcpStream};

const SOON: Duration = Duration::from_secs(20);

/// The ranks of a run that have just met.
fn met(size: usize) -> Vec<Arc<Monitor>> {
    let (listener, address) = listener();
    let place = &place(&address, 20_000);
    std::thread::scope(|scope| {
        let first = scope.spawn(move || serve(&member(0, size), place, &[], listener));
        let others = (1..size).map(|r| scope.spawn(move || join(&member(r, size), place)));
        let others: Vec<_> = others.collect();
        let all = std::iter::once(first).chain(others).enumerate();
        let new = |(r, t): (usize, std::thread::ScopedJoinHandle<'_, Result<(_, Lines)>>)| {
            let (met, lines): (Met, Lines) = t.join().unwrap().unwrap();
            Monitor::new(r, &met.members, lines).unwrap()
        };
        all.map(new).collect()
    })
}

/// Waits for the error that ends a rank, and returns its message.
fn told(monitor: &Monitor) -> String {
    let clock = Instant::now();
    loop {
        if let Some(e) = monitor.gone() {
            assert_eq!(e.kind(), Kind::Stopped);
            return e.to_string();
        }
        assert!(clock.elapsed() < SOON, "nothing was told");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_end_of_a_process_is_known_to_all_at_once() {
    for (size, dead) in [(2, 1), (2, 0), (4, 2), (4, 0)] {
        let ranks = met(size);
        assert!(ranks.iter().all(|r| r.gone().is_none()));
        let clock = Instant::now();
        ranks[dead].cut();
        for (r, monitor) in ranks.iter().enumerate().filter(|(r, _)| *r != dead) {
            let line = told(monitor);
            let name = format!("rank {dead} on host-{dead} is gone: its process ended without");
            assert!(line.starts_with(&name), "rank {r}: {line}");
            assert!(!monitor.all_done(SOON));
        }
        assert!(clock.elapsed() < SOON / 10);
    }
}

#[test]
fn a_rank_that_fails_tells_why_and_what_it_misses_itself_is_passed_on() {
    let ranks = met(3);
    ranks[1].leave(Some(&Error::user("row 7 is bad")));
    // Of two last words the first counts.
    ranks[1].leave(None);
    for r in [0, 2] {
        assert_eq!(told(&ranks[r]), "rank 1 on host-1 has failed (row 7 is bad)");
    }
    let ranks = met(3);
    let line = "all-gather number 7: rank 1 on host-1 has not come within 3 s";
    ranks[0].leave(Some(&Error::stopped(line)));
    assert_eq!([told(&ranks[1]), told(&ranks[2])], [line, line]);
    // A reason without end does not end the connection.
    let ranks = met(2);
    ranks[1].leave(Some(&Error::internal("ä".repeat(3 << 20))));
    assert!(told(&ranks[0]).contains("has failed (äää"));
}

#[test]
fn ranks_that_are_done_are_missed_only_where_they_are_needed() {
    let ranks = met(3);
    let all = [0, 1, 2];
    for r in all {
        ranks[r].started(9).store(4, Ordering::Relaxed);
    }
    ranks[1].leave(None);
    let clock = Instant::now();
    while ranks[2].ended_before(&all, 9, 4).is_none() {
        assert!(clock.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let e = ranks[2].ended_before(&all, 9, 4).unwrap();
    assert_eq!(e.to_string(), "rank 1 on host-1 has ended");
    assert!(ranks[2].ended_before(&all, 9, 3).is_none());
    assert!(ranks[2].ended_before(&[0, 2], 9, 4).is_none());
    assert!(!ranks[2].all_done(Duration::from_millis(50)));
    ranks[0].leave(None);
    ranks[2].leave(None);
    assert!(ranks.iter().all(|r| r.all_done(SOON) && r.gone().is_none()));
}

#[test]
fn a_rank_that_does_not_come_or_has_become_silent_is_named() {
    let ranks = met(4);
    let (group, timeout) = (77, Duration::from_secs(4));
    for (r, calls) in [5, 5, 4, 5].into_iter().enumerate() {
        ranks[r].started(group).store(calls, Ordering::Relaxed);
    }
    std::thread::sleep(2 * BEAT);
    for r in [0, 1, 3] {
        let line = ranks[r].late(&[0, 1, 2, 3], group, 4, timeout);
        assert_eq!(line, "rank 2 on host-2 has not come within 4 s");
        let line = ranks[r].late(&[0, 1, 2, 3], group, 5, timeout);
        assert!(line.contains("host-") && line.ends_with("have not come within 4 s"), "{line}");
        let line = ranks[r].late(&[0, 1, 3], group, 4, timeout);
        assert_eq!(line, "no end within 4 s, though all ranks have come");
    }
    // As if it were stopped: its connection remains.
    lock(&ranks[3].beat).take();
    std::thread::sleep(timeout / 2 + 2 * BEAT);
    for r in [0, 1] {
        let line = ranks[r].late(&[0, 1, 3], group, 4, timeout);
        assert_eq!(line, "no end within 4 s: rank 3 on host-3 has become silent");
    }
    let held = ranks[0].shared.lock();
    let line = ranks[1].late(&[1, 3], group, 4, timeout);
    assert_eq!(line, "no end within 4 s, and rank 0 on host-0 does not answer");
    drop(held);
    assert!(ranks[1].gone().is_none());
}

/// Rank 0 ends before it answers: the one that asks learns of the end, and waits no longer.
#[test]
fn a_rank_that_asks_does_not_wait_for_one_that_has_ended() {
    let ranks = met(2);
    let held = ranks[0].shared.lock();
    let clock = Instant::now();
    std::thread::scope(|threads| {
        let asks = threads.spawn(|| ranks[1].late(&[0, 1], 7, 0, Duration::from_secs(4)));
        std::thread::sleep(Duration::from_millis(100));
        for (_, line) in &held.lines {
            line.shut();
        }
        asks.join().unwrap();
    });
    assert!(clock.elapsed() < ANSWER, "{:?}", clock.elapsed());
    assert!(told(&ranks[1]).starts_with("rank 0 on host-0 is gone: its process ended"));
}

#[test]
fn a_stranger_finds_nobody_and_nonsense_is_no_word() {
    // After the meeting nobody listens.
    let (listener, address) = listener();
    let place = place(&address, 20_000);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| join(&member(1, 2), &place).unwrap());
        let (_, _lines) = serve(&member(0, 2), &place, &[], listener).unwrap();
        other.join().unwrap();
        assert!(TcpStream::connect(&address).is_err());
    });
    let monitor = || {
        let (guest, host) = pair();
        let members = [member(0, 2), member(1, 2)];
        (guest, Monitor::new(0, &members, vec![(1, Arc::new(host))]).unwrap())
    };
    let lost = |monitor: &Monitor| {
        assert!(told(monitor).starts_with("rank 1 on host-1 is gone: its "));
        assert_eq!(lock(&monitor.shared.state).ended.len(), 1);
    };
    // Bytes that nobody has sealed: a length without end, and none.
    for junk in [&[u8::MAX; 80_000][..], &[0; 10]] {
        let (guest, monitor) = monitor();
        let _ = guest.stream().write_all(junk);
        lost(&monitor);
    }
    // Words of the end of another and of nobody, and what is no word.
    let soon = || Instant::now() + SOON;
    let end = |rank| ExitNotice { rank, how: End::Done, started: vec![] };
    let (guest, other) = monitor();
    guest.send(&Word::Ended(vec![end(0), end(9)]), soon()).unwrap();
    guest.stream().shutdown(Shutdown::Write).unwrap();
    lost(&other);
    let (guest, other) = monitor();
    guest.send(&BTreeMap::from([("Started", 7)]), soon()).unwrap();
    lost(&other);
    let (guest, other) = monitor();
    let _ = guest.send(&"x".repeat(LARGEST), soon());
    lost(&other);
}

/// One that takes nothing is given up where its connection holds no more, and that is told.
#[test]
fn a_connection_that_takes_no_more_is_told_as_broken() {
    let (guest, host) = pair();
    let members = [member(0, 2), member(1, 2)];
    let monitor = Monitor::new(0, &members, vec![(1, Arc::new(host))]).unwrap();
    let line = lock(&monitor.shared.state).lines[0].1.clone();
    let clock = Instant::now();
    while line.send(&"x".repeat(1 << 20), Instant::now() + Duration::from_millis(200)).is_ok() {}
    let e = told(&monitor);
    assert!(e.contains("its connection broke (it took no more bytes)"), "{e}");
    assert!(clock.elapsed() < SOON / 4);
    drop(guest);
}
