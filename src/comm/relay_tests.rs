//! A relay between the ranks can cut their connections, and nothing else.

use super::monitor::Monitor;
use super::rendezvous::{Met, rendezvous, serve};
use super::testing::{Change, Way, connect, listener, member, place, relay, shake};
use crate::base::{Kind, Result};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// Rank 0, and rank 1 whose connections go through a relay, after their meeting.
fn over(change: Arc<Change>) -> (Arc<Monitor>, Result<(Met, Arc<Monitor>)>) {
    let (socket, address) = listener();
    let between = relay(&address, change);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            let (met, lines) = serve(&member(0, 2), &place(&address, 20_000), &[], socket).unwrap();
            Monitor::new(0, &met.members, lines).unwrap()
        });
        let rank = rendezvous(&member(1, 2), &place(&between, 3000), &[]);
        (host.join().unwrap(), rank)
    })
}

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

/// Changes the part with this number this way.
fn at(
    way: Way,
    number: usize,
    change: impl Fn(&[Vec<u8>]) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Arc<Change> {
    Arc::new(move |to, parts| {
        let last = parts.last().unwrap();
        if to == way && parts.len() == number + 1 { change(parts) } else { Some(last.clone()) }
    })
}

fn flipped(mut part: Vec<u8>, bit: usize) -> Vec<u8> {
    part[bit / 8] ^= 1 << (bit % 8);
    part
}

/// A word of the protocol before: in clear, behind its length.
fn forged(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

#[test]
fn whoever_changes_what_ranks_send_only_ends_their_connection() {
    let failed = r#"{"Ended":[{"rank":0,"how":{"Failed":"forged"},"started":[]}]}"#;
    let done = r#"{"Ended":[{"rank":1,"how":"Done","started":[]}]}"#;
    // Parts 0 and 1 are of the meeting; then rank 1 tells twice a second how far it is.
    let all: Vec<(&str, Arc<Change>)> = vec![
        ("flip", at(Way::ToHost, 2, |parts| Some(flipped(parts[2].clone(), 16 + 5)))),
        (
            "flip the tag",
            at(Way::ToHost, 2, |parts| {
                let bits = 8 * parts[2].len();
                Some(flipped(parts[2].clone(), bits - 1))
            }),
        ),
        (
            "shorten",
            at(Way::ToHost, 2, |parts| {
                let n = parts[2].len() - 3;
                Some([&(n as u16).to_be_bytes(), &parts[2][2..2 + n]].concat())
            }),
        ),
        ("nothing", at(Way::ToHost, 2, |_| Some(vec![0, 0]))),
        ("replay", at(Way::ToHost, 3, |parts| Some([&parts[3][..], &parts[3]].concat()))),
        ("replay what was before", at(Way::ToHost, 3, |parts| Some(parts[2].clone()))),
        ("leave out", at(Way::ToHost, 2, |_| Some(vec![]))),
        ("the hello again", at(Way::ToHost, 2, |parts| Some(parts[1].clone()))),
        ("inject", at(Way::ToHost, 2, move |_| Some(forged(done)))),
        (
            "reorder",
            Arc::new(|way, parts| match (way, parts) {
                (Way::ToHost, [_, _, _]) => Some(vec![]),
                (Way::ToHost, [.., a, b]) if parts.len() == 4 => Some([&b[..], a].concat()),
                (_, parts) => parts.last().cloned(),
            }),
        ),
        (
            "inject to rank 1",
            at(Way::ToGuest, 1, move |parts| Some([&parts[1][..], &forged(failed)].concat())),
        ),
        (
            "the answer again",
            at(Way::ToGuest, 1, |parts| Some([&parts[1][..], &parts[1]].concat())),
        ),
    ];
    std::thread::scope(|scope| {
        for (name, change) in all {
            scope.spawn(move || {
                let (host, rank) = over(change);
                let rank = rank.unwrap().1;
                let (at_host, at_rank) = (told(&host), told(&rank));
                let (noticed, missed) = match name {
                    "inject to rank 1" | "the answer again" => (&at_rank, &at_host),
                    _ => (&at_host, &at_rank),
                };
                let broke = "its connection broke (bytes came that are not the other side's)";
                assert!(noticed.contains(broke), "{name}: {noticed}");
                assert!(missed.contains(" is gone: its "), "{name}: {missed}");
                assert!(!host.all_done(Duration::ZERO) && !rank.all_done(Duration::ZERO));
            });
        }
    });
}

#[test]
fn a_connection_that_is_cut_anywhere_is_a_lost_one() {
    let half = |parts: &[Vec<u8>]| Some(parts[2][..parts[2].len() / 2].to_vec());
    let cut = |_: &[Vec<u8>]| None;
    let all = [at(Way::ToHost, 2, cut), at(Way::ToHost, 3, cut), {
        let first = at(Way::ToHost, 2, half);
        let then = at(Way::ToHost, 3, cut);
        Arc::new(move |way, parts: &[Vec<u8>]| match parts.len() {
            3 => first(way, parts),
            _ => then(way, parts),
        }) as Arc<Change>
    }];
    std::thread::scope(|scope| {
        for change in all {
            scope.spawn(|| {
                let (host, rank) = over(change);
                let line = told(&host);
                assert!(line.contains("rank 1 on host-1 is gone: its process ended"), "{line}");
                let line = told(&rank.unwrap().1);
                assert!(line.contains("rank 0 on host-0 is gone: its process ended"), "{line}");
            });
        }
    });
}

/// Once each: the rank calls again.
#[test]
fn ranks_meet_though_a_first_try_was_disturbed() {
    for (way, number) in [(Way::ToHost, 0), (Way::ToGuest, 0), (Way::ToHost, 1)] {
        for cut in [true, false] {
            let tries = AtomicUsize::new(0);
            let change = at(way, number, move |parts| {
                let last = parts.last().unwrap().clone();
                match (tries.fetch_add(1, Ordering::SeqCst), cut) {
                    (0, true) => None,
                    (0, false) => Some(flipped(last, 8 * 20)),
                    _ => Some(last),
                }
            });
            let clock = Instant::now();
            let (_host, rank) = over(change);
            rank.unwrap();
            assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
        }
    }
}

/// Rank 0 cannot know that its answer did not come. Both end in time.
#[test]
fn an_answer_that_is_lost_ends_both() {
    let one = |flip: bool| {
        let clock = Instant::now();
        let change =
            at(Way::ToGuest, 1, move |parts| flip.then(|| flipped(parts[1].clone(), 8 * 20)));
        let (host, rank) = over(change);
        let e = rank.unwrap_err().to_string();
        assert!(e.contains("rank 1 "), "{e}");
        assert!(clock.elapsed() < Duration::from_secs(4), "{:?}", clock.elapsed());
        assert!(told(&host).contains("rank 1 on host-1 is gone: its "));
    };
    std::thread::scope(|scope| [false, true].map(|flip| scope.spawn(move || one(flip))).map(drop));
}

/// The bytes on the wire tell nothing of the run, and are of no use to one who says them again.
#[test]
fn a_recorded_meeting_tells_nothing_and_lets_nobody_in() {
    let record: Arc<Mutex<Vec<(Way, Vec<u8>)>>> = Arc::default();
    let recorder = record.clone();
    let (_host, rank) = over(Arc::new(move |way, parts: &[Vec<u8>]| {
        let last = parts.last().unwrap().clone();
        recorder.lock().unwrap().push((way, last.clone()));
        Some(last)
    }));
    drop(rank.unwrap());
    let parts = record.lock().unwrap().clone();
    for (_, part) in &parts {
        for word in [&b"version"[..], b"host-", b"rank"] {
            assert!(!part.windows(word.len()).any(|w| w == word));
        }
    }
    let (socket, address) = listener();
    std::thread::scope(|scope| {
        let meeting = place(&address, 1000);
        let host = scope.spawn(move || serve(&member(0, 2), &meeting, &[], socket).unwrap_err());
        let mut stream = connect(&address);
        for (_, part) in parts.iter().filter(|(way, _)| *way == Way::ToHost) {
            let _ = stream.write_all(part);
        }
        let e = host.join().unwrap().to_string();
        assert!(e.starts_with("of 2 ranks, 1 did not come to"), "{e}");
        assert!(!e.contains("ended before"), "{e}");
    });
}

/// It has proved to be of the run, but says what no rank says.
#[test]
fn nonsense_from_one_who_knows_the_secret_is_no_word() {
    let (socket, address) = listener();
    std::thread::scope(|scope| {
        let meeting = place(&address, 1000);
        let host = scope.spawn(move || serve(&member(0, 2), &meeting, &[], socket).unwrap_err());
        let soon = || Instant::now() + Duration::from_secs(5);
        for nonsense in ["null", "{}", "[[[[", "{\"process\":1}"] {
            let line = shake(connect(&address));
            line.send(&nonsense, soon()).unwrap();
        }
        let line = shake(connect(&address));
        // Rank 0 hangs up before it has all.
        assert!(line.send(&"x".repeat(64 << 20), soon()).is_err());
        let e = host.join().unwrap().to_string();
        assert!(e.starts_with("of 2 ranks, 1 did not come to"), "{e}");
    });
}
