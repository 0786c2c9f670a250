use super::*;
use crate::base::{Elem, Kind, Rng, bf16};
use std::sync::atomic::{AtomicUsize, Ordering};

const SOON: Duration = Duration::from_secs(20);

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

fn bits<E: Elem>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// The sum in the order of the ranks, rounded once.
fn sums<E: Elem>(seed: u64, ranks: usize, n: usize) -> Vec<E> {
    let all: Vec<Vec<E>> = (0..ranks).map(|r| random(seed, r, n)).collect();
    let sum = |i: usize| {
        let mut sum = all[0][i].to_f32();
        all[1..].iter().for_each(|x| sum += x[i].to_f32());
        E::from_f32(sum)
    };
    (0..n).map(sum).collect()
}

/// Every call with `n` values of a rank, in place or not.
fn every_call<E: Elem>(ranks: usize, n: usize, seed: u64, in_place: bool) {
    let poison = E::from_f32(f32::NAN);
    run_ranks(ranks, SOON, |comm| {
        let (r, all) = (comm.rank(), n * ranks);
        let mut data = random::<E>(seed, r, n);
        call!(comm.all_reduce(region(&mut data), E::DTYPE, Reduce::Sum))?.wait()?;
        assert_eq!(bits(&data), bits(&sums::<E>(seed, ranks, n)));

        let (mut own, mut to) = (random::<E>(seed, r, n), vec![poison; all]);
        if in_place {
            to[r * n..][..n].copy_from_slice(&own);
        }
        let (from, whole) = (region(&mut own), region(&mut to));
        let from = if in_place { whole.slice(r * from.bytes(), from.bytes()) } else { from };
        call!(comm.all_gather(from, whole))?.wait()?;
        let expected: Vec<E> = (0..ranks).flat_map(|r| random(seed, r, n)).collect();
        assert_eq!(bits(&to), bits(&expected));

        let (mut from, mut own) = (random::<E>(seed + 1, r, all), vec![poison; n]);
        let (whole, to) = (region(&mut from), region(&mut own));
        let to = if in_place { whole.slice(r * to.bytes(), to.bytes()) } else { to };
        call!(comm.reduce_scatter(whole, to, E::DTYPE, Reduce::Sum))?.wait()?;
        let got = if in_place { &from[r * n..][..n] } else { &own };
        assert_eq!(bits(got), bits(&sums::<E>(seed + 1, ranks, all)[r * n..][..n]));

        let root = seed as usize % ranks;
        let mut data = if r == root { random::<E>(seed, root, n) } else { vec![poison; n] };
        call!(comm.broadcast(region(&mut data), root))?.wait()?;
        assert_eq!(bits(&data), bits(&random::<E>(seed, root, n)));

        let mut data = random::<E>(seed, r, n);
        call!(comm.all_reduce(region(&mut data), E::DTYPE, Reduce::Max))?.wait()?;
        let all: Vec<Vec<E>> = (0..ranks).map(|r| random(seed, r, n)).collect();
        let largest = |i: usize| all.iter().map(|x| x[i].to_f32()).fold(f32::MIN, f32::max);
        assert!(data.iter().enumerate().all(|(i, x)| x.to_f32() == largest(i)));
        comm.barrier()
    })
    .unwrap();
}

#[test]
fn every_call_gives_the_same_bits_on_every_rank() {
    for ranks in 1..=5 {
        for n in [0, 1, 7, 64, 5000] {
            every_call::<f32>(ranks, n, 11 + n as u64, n % 2 == 0);
            every_call::<bf16>(ranks, n, 12 + n as u64, n % 2 == 1);
        }
    }
}

#[test]
fn the_largest_of_values_with_a_nan_is_nan() {
    run_ranks(3, SOON, |comm| {
        let mut data = [if comm.rank() == 1 { f32::NAN } else { 5.0 }, comm.rank() as f32];
        call!(comm.all_reduce(region(&mut data), DType::F32, Reduce::Max))?.wait()?;
        assert!(data[0].is_nan() && data[1] == 2.0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn calls_under_way_may_be_waited_for_in_any_order_or_dropped() {
    run_ranks(3, SOON, |comm| {
        let mut data: Vec<Vec<f32>> =
            (0..4).map(|i| vec![(i * 10 + comm.rank()) as f32; 300]).collect();
        let mut handles = vec![];
        for x in &mut data {
            handles.push(call!(comm.all_reduce(region(x), DType::F32, Reduce::Sum))?);
        }
        // Others than the other ranks'.
        handles.rotate_left(comm.rank());
        drop(handles.pop());
        handles.into_iter().try_for_each(Handle::wait)?;
        for (i, x) in data.iter().enumerate() {
            assert_eq!(x[..], vec![(i * 30 + 3) as f32; 300]);
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn groups_are_those_of_one_color_in_their_order() {
    run_ranks(6, SOON, |comm| {
        let r = comm.rank();
        let half = comm.split(r % 2)?;
        assert_eq!((half.rank(), half.size()), (r / 2, 3));
        let mut own = [r as f32];
        call!(half.all_reduce(region(&mut own), DType::F32, Reduce::Sum))?.wait()?;
        assert_eq!(own, [if r % 2 == 0 { 6.0 } else { 9.0 }]);
        let lone = half.split(half.rank())?;
        let mut to = [0f32];
        call!(lone.all_gather(region(&mut own), region(&mut to)))?.wait()?;
        assert_eq!((lone.size(), to), (1, own));
        // One group is done before the other begins.
        if r % 2 == 0 {
            half.barrier()?;
        }
        comm.barrier()?;
        assert_eq!(comm.counted(CallKind::Barrier).calls, if r % 2 == 0 { 2 } else { 1 });
        Ok(())
    })
    .unwrap();
}

#[test]
fn letters_arrive_in_order() {
    run_ranks(3, SOON, |comm| {
        let (to, from) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
        let mut sent = [[comm.rank() as f32; 5], [comm.rank() as f32 + 0.5; 5]];
        let mut got = [[f32::NAN; 5]; 2];
        let [a, b] = &mut sent;
        let [c, d] = &mut got;
        let messages = [call!(comm.send(region(a), to))?, call!(comm.send(region(b), to))?];
        let answers =
            [call!(comm.receive(region(c), from))?, call!(comm.receive(region(d), from))?];
        answers.into_iter().rev().chain(messages).try_for_each(Handle::wait)?;
        assert_eq!(got, [[from as f32; 5], [from as f32 + 0.5; 5]]);
        assert_eq!(comm.sent(), 40);
        Ok(())
    })
    .unwrap();
}

#[test]
fn values_of_different_number_come_end_to_end() {
    for ranks in 1..=4 {
        run_ranks(ranks, SOON, |comm| {
            let own: Vec<i32> =
                (0..comm.rank() * 3 % 5).map(|i| (comm.rank() * 10 + i) as i32).collect();
            let all: Vec<i32> =
                (0..ranks).flat_map(|r| (0..r * 3 % 5).map(move |i| (r * 10 + i) as i32)).collect();
            assert_eq!(comm.concat(&own)?, all);
            assert!(comm.concat::<f32>(&[])?.is_empty());
            let mut sums = [1.0, comm.rank() as f32];
            comm.sum(&mut sums)?;
            assert_eq!(sums, [ranks as f32, (ranks * (ranks - 1) / 2) as f32]);
            Ok(())
        })
        .unwrap();
    }
    let mut alone = [3.0];
    Comm::alone().sum(&mut alone).unwrap();
    assert_eq!(alone, [3.0]);
}

#[test]
fn a_ring_of_letters_may_be_waited_for_in_any_order() {
    run_ranks(4, SOON, |comm| {
        let (to, from) = ((comm.rank() + 1) % 4, (comm.rank() + 3) % 4);
        let (mut sent, mut got, mut sum) = ([comm.rank() as f32; 9], [f32::NAN; 9], [1f32; 9]);
        let got_it = call!(comm.receive(region(&mut got), from))?;
        let sent_it = call!(comm.send(region(&mut sent), to))?;
        let summed = call!(comm.all_reduce(region(&mut sum), DType::F32, Reduce::Sum))?;
        // Nobody waits for what it receives before others have what they sent.
        let handles = [summed, sent_it];
        match comm.rank() {
            0 => handles.into_iter().rev().try_for_each(Handle::wait)?,
            _ => handles.into_iter().try_for_each(Handle::wait)?,
        }
        got_it.wait()?;
        assert_eq!((got, sum), ([from as f32; 9], [4.0; 9]));
        Ok(())
    })
    .unwrap();
    let e = run_ranks(2, SOON, |comm| {
        let mut data = [0f32; 8];
        let all = region(&mut data);
        match comm.rank() {
            0 => call!(comm.send(all, 1))?.wait(),
            _ => call!(comm.receive(all.slice(0, 4), 0))?.wait(),
        }
    });
    assert!(e.unwrap_err().to_string().contains("rank 0 sent 32 bytes, rank 1 takes 4"));
}

#[test]
fn bytes_and_calls_are_counted() {
    let sent = run_ranks(4, SOON, |comm| {
        let (mut one, mut all) = ([1f32; 10], [1f32; 40]);
        call!(comm.all_gather(region(&mut one), region(&mut all)))?.wait()?;
        call!(comm.reduce_scatter(region(&mut all), region(&mut one), DType::F32, Reduce::Sum))?
            .wait()?;
        call!(comm.all_reduce(region(&mut all), DType::F32, Reduce::Sum))?.wait()?;
        call!(comm.broadcast(region(&mut one), 2))?.wait()?;
        let count = |kind| comm.counted(kind).sent;
        assert_eq!((count(CallKind::AllGather), count(CallKind::ReduceScatter)), (120, 120));
        assert_eq!((count(CallKind::AllReduce), comm.counted(CallKind::Barrier).calls), (240, 0));
        Ok(comm.sent())
    });
    assert_eq!(sent.unwrap(), [480, 480, 600, 480]);
}

#[test]
fn a_rank_that_fails_ends_the_others_with_its_reason() {
    let ended = AtomicUsize::new(0);
    let run = |comm: Comm| {
        let mut data = [0f32; 100];
        let mut step = || -> Result<()> {
            let part = comm.split(0)?;
            call!(part.all_reduce(region(&mut data), DType::F32, Reduce::Sum))?.wait()?;
            if comm.rank() == 1 {
                return Err(Error::user("row 7 is bad"));
            }
            part.barrier()
        };
        let done = step();
        if let (Err(e), true) = (&done, comm.rank() != 1) {
            assert_eq!(e.kind(), Kind::Stopped);
            assert!(e.to_string().contains("rank 1 has"), "{e}");
            ended.fetch_add(1, Ordering::SeqCst);
        }
        done
    };
    let clock = Instant::now();
    let e = run_ranks(4, SOON, run).unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (Kind::User, "rank 1: row 7 is bad"));
    assert_eq!(ended.load(Ordering::SeqCst), 3);
    assert!(clock.elapsed() < SOON / 2);
}

#[test]
fn a_rank_that_panics_ends_the_others_at_any_moment() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut rng = Rng::new(seed.as_nanos() as u64, 0);
    for _ in 0..20 {
        let (ranks, last) = (2 + rng.below(3) as usize, rng.below(40));
        let dead = rng.below(ranks as u32) as usize;
        let run = |comm: Comm| {
            let mut data = vec![comm.rank() as f32; 3000];
            let mut all = vec![0f32; 3000 * ranks];
            for i in 0..50 {
                let sum = call!(comm.all_reduce(region(&mut data), DType::F32, Reduce::Max))?;
                assert!(comm.rank() != dead || i != last, "a panic of this test");
                sum.wait()?;
                call!(comm.all_gather(region(&mut data), region(&mut all)))?.wait()?;
            }
            Ok(())
        };
        let e = run_ranks(ranks, SOON, run).unwrap_err();
        assert!(e.to_string().starts_with(&format!("rank {dead}: panicked")), "{e}");
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_time_out() {
    let timeout = Duration::from_millis(150);
    let run = |comm: Comm| {
        if comm.rank() == 2 {
            std::thread::sleep(4 * timeout);
        }
        let mut data = [0f32; 8];
        let done = call!(comm.all_reduce(region(&mut data), DType::F32, Reduce::Sum))?.wait();
        assert!(comm.rank() == 2 || data == [0.0; 8]);
        done
    };
    let e = run_ranks(3, timeout, run).unwrap_err();
    assert_eq!(e.kind(), Kind::Stopped);
    let line = e.to_string();
    assert!(line.contains("all-reduce number 0: rank 2 has not come within 0.15 s"), "{line}");
}

#[test]
fn ranks_that_call_different_things_are_told() {
    let run = |comm: Comm| {
        let mut data = vec![0f32; if comm.rank() == 0 { 4 } else { 8 }];
        call!(comm.broadcast(region(&mut data), 0))?.wait()
    };
    let e = run_ranks(2, SOON, run).unwrap_err();
    assert_eq!(e.kind(), Kind::Internal);
    assert!(e.to_string().contains("do not agree on call 0"), "{e}");
    let e = run_ranks(2, SOON, |comm: Comm| {
        let mut data = [0f32; 3];
        let all = region(&mut data);
        call!(comm.all_gather(all.slice(0, 4), all)).map(drop)
    });
    assert!(e.unwrap_err().to_string().contains("2 blocks of 4 bytes in 12 bytes"));
}
