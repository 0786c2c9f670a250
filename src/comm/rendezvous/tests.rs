use super::super::testing::{SECRET, connect, free, listener, member, place, shake};
use super::messages::Hello;
use super::*;
use crate::base::Kind;
use crate::comm::noise::{GREETING, Key, answer, call};
use crate::comm::wire::Line;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn somewhere(millis: u64) -> RendezvousConfig {
    place(&free(), millis)
}

/// Has all members meet, with what each says.
fn meet_all(members: &[Member], place: &RendezvousConfig) -> Vec<Result<Met>> {
    std::thread::scope(|scope| {
        let one = |m| scope.spawn(move || meet(m, place, b"for all").map(|(met, _)| met));
        let all: Vec<_> = members.iter().map(one).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn lines(met: &[Result<Met>]) -> Vec<String> {
    let line = |m: &Result<Met>| m.as_ref().unwrap_err().to_string();
    met.iter().map(line).collect()
}

/// Calls as rank `rank` of `size` and tells so, without waiting for an answer.
fn guest(address: &str, process: u8, rank: usize, size: usize) -> Line {
    let line = shake(connect(address));
    let hello = Hello { process: [process; 32], member: member(rank, size) };
    line.send(&hello, Instant::now() + Duration::from_secs(5)).unwrap();
    line
}

#[test]
fn all_ranks_meet_and_get_what_the_first_gives() {
    for size in [1, 2, 5] {
        let members: Vec<Member> = (0..size).map(|r| member(r, size)).collect();
        for met in meet_all(&members, &somewhere(20_000)) {
            let all = Met { members: members.clone(), gift: b"for all".to_vec() };
            assert_eq!(met.unwrap(), all);
        }
    }
}

#[test]
fn a_large_configuration_is_met_with_too() {
    let mut members = [member(0, 2), member(1, 2)];
    for member in &mut members {
        member.alike.insert("rows".into(), "r".repeat(300_000));
    }
    let met = meet_all(&members, &somewhere(20_000));
    assert!(met.into_iter().all(|met| met.unwrap().members == members));
}

/// Some send junk, some a length without end, some half a greeting, some the right one and then
/// nothing or junk, some nothing at all.
#[test]
fn strangers_are_not_let_in_and_keep_nobody_waiting() {
    let place = somewhere(20_000);
    let (address, members) = (&place.addresses[0], [member(0, 2), member(1, 2)]);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| meet(&members[0], &place, &[]));
        let (_, called) = call(&Key::of(SECRET)).unwrap();
        let (_, other) = call(&Key::of("another")).unwrap();
        let endless = [u8::MAX; 1 << 16];
        let right_and_junk = [&called[..], &endless].concat();
        let all = [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &endless,
            &called[..GREETING / 2],
            &called,
            &right_and_junk,
            &other,
            &[],
        ];
        let mut callers = vec![];
        for junk in all.iter().cycle().take(70) {
            let mut stream = connect(address);
            let _ = stream.write_all(junk);
            callers.push(stream);
        }
        let other = RendezvousConfig { secret: "another".into(), ..place.clone() };
        let e = meet(&members[1], &other, &[]).unwrap_err();
        assert!(e.to_string().contains("does not know the secret of rank 1"), "{e}");
        meet(&members[1], &place, &[]).unwrap();
        host.join().unwrap().unwrap();
    });
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// So many files may be open in this process, or as many as the system allows.
fn allow_files(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let allowed = wanted.min(now.maximum.unwrap_or(wanted));
    if now.current.is_some_and(|current| current < allowed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), ..now }).unwrap();
    }
    allowed
}

#[test]
fn two_thousand_strangers_who_came_first_lock_no_rank_out() {
    let strangers = allow_files(4096).saturating_sub(1000).min(2000);
    let place = somewhere(30_000);
    let (address, size) = (&place.addresses[0], 4);
    let members: Vec<Member> = (0..size).map(|r| member(r, size)).collect();
    let met = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| meet(&members[0], &place, &[]).unwrap());
        let silent: Vec<TcpStream> = (0..strangers).map(|_| connect(address)).collect();
        // And while the ranks come others do too.
        scope.spawn(|| {
            let mut more = std::collections::VecDeque::new();
            while !met.load(Ordering::SeqCst) {
                more.extend(TcpStream::connect(address));
                if more.len() > 300 {
                    more.pop_front();
                }
            }
        });
        let clock = Instant::now();
        let all: Vec<_> =
            members[1..].iter().map(|m| scope.spawn(|| meet(m, &place, &[]).unwrap())).collect();
        all.into_iter().for_each(|rank| drop(rank.join().unwrap()));
        drop(host.join().unwrap());
        met.store(true, Ordering::SeqCst);
        println!("with {} strangers: {:?}", silent.len(), clock.elapsed());
        assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    });
}

/// Until when the other side of `stream` keeps it open.
fn closed_after(mut stream: TcpStream, clock: Instant) -> Duration {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    clock.elapsed()
}

#[test]
fn who_is_slow_is_dropped_and_the_host_gives_up_at_its_time() {
    let (listener, address) = listener();
    let place = place(&address, 5600);
    let clock = Instant::now();
    std::thread::scope(|scope| {
        let host = scope.spawn(|| serve(&member(0, 2), &place, &[], listener).unwrap_err());
        let (_, called) = call(&Key::of(SECRET)).unwrap();
        // One says nothing, one greets and says no more, one speaks a byte at a time.
        let silent = connect(&address);
        let mut half = connect(&address);
        half.write_all(&called).unwrap();
        let mut slow = connect(&address);
        let drips = slow.try_clone().unwrap();
        let drip = scope.spawn(move || {
            for byte in called {
                if slow.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        for stream in [silent, half, drips] {
            let after = closed_after(stream, clock);
            let soon = Duration::from_millis(4900)..Duration::from_millis(5500);
            assert!(soon.contains(&after), "{after:?}");
        }
        let e = host.join().unwrap();
        let over = clock.elapsed();
        let told = format!("of 2 ranks, 1 did not come to {address} within 5.6 s; look again");
        assert_eq!(e.to_string(), told);
        let exact = Duration::from_millis(5600)..Duration::from_millis(6000);
        assert!(exact.contains(&over), "{over:?}");
        drip.join().unwrap();
    });
}

/// Has `rank` wait for who listens at an address, for a second; returns its line.
fn waits(addresses: &[&str]) -> String {
    let clock = Instant::now();
    let addresses = addresses.iter().map(|a| a.to_string()).collect();
    let place = RendezvousConfig { addresses, ..place("", 1000) };
    let e = join(&member(1, 2), &place).unwrap_err();
    let took = clock.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_millis(2100), "{took:?}");
    assert_eq!(e.kind(), Kind::User);
    e.to_string()
}

#[test]
fn a_rank_gives_up_at_its_time_whoever_listens() {
    // Nobody.
    let line = waits(&[&free()]);
    assert!(line.starts_with("rank 1 cannot reach rank 0 at 127.0.0.1:"), "{line}");
    assert!(line.contains(" within 1 s: "), "{line}");
    // A name that no one has.
    let line = waits(&["no-such-machine.invalid:80"]);
    assert!(line.starts_with("rank 1 cannot reach rank 0 at no-such"), "{line}");
    // One who accepts and says nothing.
    let (silent, address) = listener();
    let line = waits(&[&address]);
    assert!(line.contains("has not proved to be rank 0"), "{line}");
    drop(silent);
    // One who speaks a byte at a time, and never says all.
    let (slow, address) = listener();
    std::thread::spawn(move || {
        let mut stream = slow.accept().unwrap().0;
        while stream.write_all(&[7]).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let line = waits(&[&address]);
    assert!(line.contains("has not proved to be rank 0"), "{line}");
    // One who hangs up at once, each time.
    let (curt, address) = listener();
    std::thread::spawn(move || curt.incoming().for_each(drop));
    let line = waits(&[&address]);
    assert!(line.contains("has not proved to be rank 0"), "{line}");
    // Rank 0 itself, which then is stopped.
    let (host, address) = listener();
    std::thread::spawn(move || {
        let _line = super::super::testing::shaken(host.accept().unwrap().0);
        std::thread::sleep(Duration::from_secs(5));
    });
    let line = waits(&[&address]);
    assert!(line.contains("rank 1 has reached rank 0, but not all ranks came"), "{line}");
}

#[test]
fn a_rank_that_was_dropped_calls_again_until_it_is_let_in() {
    let (listener, address) = listener();
    let place = place(&address, 20_000);
    std::thread::scope(|scope| {
        let rank = scope.spawn(|| meet(&member(1, 2), &place, &[]).map(drop));
        drop(listener.accept().unwrap());
        // A refusal that is none of the run's: once is an accident.
        let mut stream = listener.accept().unwrap().0;
        let mut called = [0; GREETING];
        stream.read_exact(&mut called).unwrap();
        stream.write_all(&[7; GREETING]).unwrap();
        drop(stream);
        // After its greeting.
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut called).unwrap();
        drop(stream);
        // After the handshake.
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut called).unwrap();
        stream.write_all(&answer(&Key::of(SECRET), &called).unwrap().unwrap().1).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        drop(stream);
        serve(&member(0, 2), &place, &[], listener).unwrap();
        rank.join().unwrap().unwrap();
    });
}

/// Rank 0's other addresses may be somebody else's where a rank is.
#[test]
fn another_secret_at_one_of_several_addresses_is_no_end() {
    let (stranger, wrong) = listener();
    std::thread::spawn(move || {
        for stream in stranger.incoming() {
            let _ = stream.unwrap().write_all(&[7; GREETING]);
        }
    });
    let (host, right) = listener();
    let place = RendezvousConfig { addresses: vec![wrong.clone(), right], ..place("", 20_000) };
    std::thread::scope(|scope| {
        let rank = scope.spawn(|| meet(&member(1, 2), &place, &[]).map(drop));
        serve(&member(0, 2), &place, &[], host).unwrap();
        rank.join().unwrap().unwrap();
    });
    // At the only one it is, and told at once.
    let place = RendezvousConfig { addresses: vec![wrong], ..place };
    let clock = Instant::now();
    let e = join(&member(1, 2), &place).unwrap_err().to_string();
    assert!(e.contains("does not know the secret of rank 1: it has another one, or is"), "{e}");
    assert!(clock.elapsed() < Duration::from_secs(5));
}

#[test]
fn nothing_of_a_run_is_sent_to_one_who_has_not_proved_to_be_of_it() {
    let (listener, address) = listener();
    let place = place(&address, 1500);
    std::thread::scope(|scope| {
        let rank = scope.spawn(|| join(&member(1, 2), &place).map(drop));
        let mut sent = vec![];
        let mut stream = listener.accept().unwrap().0;
        // It may know what another rank 0 once answered.
        let (_, called) = call(&Key::of(SECRET)).unwrap();
        let old = answer(&Key::of(SECRET), &called).unwrap().unwrap().1;
        stream.write_all(&old).unwrap();
        stream.read_to_end(&mut sent).unwrap();
        assert_eq!(sent.len(), GREETING);
        drop(listener);
        assert!(rank.join().unwrap().is_err());
    });
}

#[test]
fn a_rank_that_is_missing_or_there_twice_is_named() {
    for e in lines(&meet_all(&[member(0, 4), member(2, 4)], &somewhere(300))) {
        assert!(e.starts_with("of 4 ranks, 1, 3 did not come to 127.0.0.1:"), "{e}");
        assert!(e.contains("within 0.3 s"), "{e}");
    }
    let met = meet_all(&[member(0, 3), member(1, 3), member(1, 3)], &somewhere(20_000));
    for e in lines(&met) {
        assert!(e.starts_with("rank 1 came twice, from host-1 and from host-1"), "{e}");
    }
}

/// A rank whose connection broke is not there twice if it comes again, nor is one started anew.
#[test]
fn a_rank_may_come_again_and_one_that_left_is_named() {
    let (listener, address) = listener();
    let meeting = place(&address, 20_000);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| serve(&member(0, 4), &meeting, &[], listener).unwrap());
        let first = guest(&address, 1, 1, 4);
        // The host need not have noticed that the first is of no use.
        let _second = guest(&address, 1, 1, 4);
        first.shut();
        drop(guest(&address, 2, 2, 4));
        std::thread::sleep(Duration::from_millis(50));
        let rank = |r| join(&member(r, 4), &meeting).map(drop);
        let other = scope.spawn(move || rank(3));
        rank(2).unwrap();
        other.join().unwrap().unwrap();
        let (met, lines) = host.join().unwrap();
        assert_eq!((met.members.len(), lines.len()), (4, 3));
    });
    let (listener, address) = super::super::testing::listener();
    let meeting = place(&address, 500);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| serve(&member(0, 3), &meeting, &[], listener).unwrap_err());
        drop(guest(&address, 1, 1, 3));
        let e = host.join().unwrap().to_string();
        assert!(e.starts_with("of 3 ranks, 2 did not come to"), "{e}");
        assert!(e.contains("; the connection of rank 1 ended before; look again"), "{e}");
    });
}

#[test]
fn ranks_of_different_runs_are_told_what_differs() {
    let met = meet_all(&[member(0, 2), member(1, 3)], &somewhere(20_000));
    for e in lines(&met) {
        assert_eq!(e, "rank 1 on host-1 was started as one of 3, rank 0 on host-0 as one of 2");
    }
    let mut other = member(1, 2);
    other.alike.insert("dtype".into(), "f32".into());
    for e in lines(&meet_all(&[member(0, 2), other], &somewhere(20_000))) {
        assert!(e.contains("rank 1 on host-1 has f32 for dtype, rank 0 on host-0 has nothing"));
    }
}

#[test]
fn a_port_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let address = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    let e = meet(&member(0, 2), &place(&address, 1000), &[]).unwrap_err().to_string();
    assert!(e.contains("is taken by another program; choose another (MASTER_PORT)"), "{e}");
    assert!(meet(&member(0, 2), &place("nowhere", 1000), &[]).is_err());
}
