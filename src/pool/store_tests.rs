//! Tests of the store: cuts, blocks, gradients set, added, shared.

use super::super::full_params::widened;
use super::*;
use crate::base::{Elem, Rng, bf16};
use crate::pool::Group;

fn spec(name: &str, shape: &[usize], sharding: ShardSpec) -> ParamSpec {
    ParamSpec { name: name.into(), segment: 0, shape: shape.to_vec(), sharding, trained: true }
}

/// q, k and v rows of a fused projection.
fn heads(blocks: usize) -> ShardSpec {
    ShardSpec::Rows([0..8, 8..11, 11..14].map(|rows| Group::even(rows, blocks)).to_vec())
}

fn specs(blocks: usize) -> Vec<ParamSpec> {
    vec![
        spec("qkv", &[14, 5], heads(blocks)),
        spec("out", &[5, 7], ShardSpec::Cols(Group::even(0..7, blocks))),
        spec("norm", &[5], ShardSpec::Replicated),
        spec("bias", &[14], heads(blocks)),
        spec("table", &[21, 3], ShardSpec::Table),
    ]
}

fn cut(dtype: DType, blocks: usize) -> Store {
    let partition = Partition { blocks, ..Partition::alone() };
    Store::with_grads(Device::Cpu, dtype, DType::F32, partition, specs(blocks)).unwrap()
}

#[test]
fn every_cut_reads_back_what_was_written() {
    let mut rng = Rng::new(5, 0);
    for blocks in 1..=4 {
        for dtype in [DType::F32, DType::Bf16] {
            let store = cut(dtype, blocks);
            for i in 0..store.params().len() {
                let n = store.params()[i].spec.shape.iter().product();
                let v: Vec<f32> =
                    (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal()).to_f32()).collect();
                store.write_f32(ParamId(i), &v).unwrap();
                assert_eq!(store.read_f32(ParamId(i)).unwrap(), v);
            }
        }
    }
}

#[test]
fn a_block_is_the_tensor_parallel_slice() {
    let store = cut(DType::F32, 2);
    let v: Vec<f32> = (0..70).map(|i| i as f32).collect();
    store.write_f32(ParamId(0), &v).unwrap();
    // Rank 1 holds q rows 4..8, k row 2 (8 + 2), v row 2 (11 + 2), and padding.
    let p = store.param(ParamId(0));
    assert_eq!(p.slice, [8, 5]);
    let bucket = &store.buckets()[p.bucket];
    let row = |r: usize| {
        let mut b = [0u8; 20];
        bucket.weights.read((bucket.block + p.offset + r * 5) * 4, &mut b).unwrap();
        bytemuck::allocation::pod_collect_to_vec::<u8, f32>(&b)
    };
    assert_eq!(row(0), &v[20..25]);
    assert_eq!(row(4), &v[50..55]);
    assert_eq!(row(5), [0.0; 5]);
    assert_eq!(row(6), &v[65..70]);
}

#[test]
fn gradients_are_set_first_then_added_and_settled() {
    let store = cut(DType::F32, 1);
    assert!(!store.mark_grad(whole(1)).unwrap());
    assert!(store.mark_grad(whole(1)).unwrap());
    let grads = store.buckets()[0].grads.as_ref().unwrap();
    grads.slice(0, 4).write(&7f32.to_ne_bytes()).unwrap();
    store.zero_unset_grads().unwrap();
    assert_eq!(store.read_grad(ParamId(0)).unwrap(), [0.0; 70]);
    store.reset_grads();
    assert!(!store.mark_grad(whole(1)).unwrap());
}

fn whole(id: usize) -> Portion {
    Portion { id: ParamId(id), block: None }
}

/// Sets the gradient of the norm.
fn put(store: &Store, values: &[f32]) {
    store.mark_grad(whole(2)).unwrap();
    let to = store.grads(0, &store.elements(whole(2))).unwrap();
    match store.grad_dtype() {
        DType::Bf16 => {
            let v: Vec<bf16> = values.iter().map(|v| Elem::from_f32(*v)).collect();
            to.write(bytemuck::cast_slice(&v)).unwrap();
        }
        _ => to.write(bytemuck::cast_slice(values)).unwrap(),
    }
}

#[test]
fn stores_trained_in_turn_share_one_buffer_of_gradients() {
    for (dtype, grads) in
        [(DType::F32, DType::F32), (DType::Bf16, DType::F32), (DType::Bf16, DType::Bf16)]
    {
        let new = |specs| {
            Store::with_grads(Device::Cpu, dtype, grads, Partition::alone(), specs).unwrap()
        };
        let mut small = new(specs(1));
        let mut wider = specs(1);
        wider.push(ParamSpec { segment: 1, ..spec("more", &[40, 3], ShardSpec::Replicated) });
        let mut large = new(wider);
        let alone = [&small, &large].map(|s| s.bytes().1);
        assert_eq!(alone[0], (128 + 64 + 64 + 64 + 64) * grads.size());
        small.share_grads(&mut large).unwrap();
        assert_eq!([&small, &large].map(|s| s.bytes().1), [alone[1], 0]);

        let values = [1.0, -2.5, 3.0, 0.0, 7.0];
        put(&small, &values);
        assert!(large.mark_grad(whole(5)).is_err(), "the other's are not applied yet");
        assert!(large.zero_unset_grads().is_err());
        assert!(large.share_grads(&mut new(specs(1))).is_err());
        large.reset_grads();
        small.zero_unset_grads().unwrap();
        assert_eq!(small.read_grad(ParamId(2)).unwrap(), values);
        assert_eq!(small.read_grad(ParamId(0)).unwrap(), [0.0; 70]);

        small.reset_grads();
        let all = large.buckets()[0].grads.as_ref().unwrap().region();
        all.write(&vec![0x40; all.bytes()]).unwrap();
        put(&small, &values);
        small.zero_unset_grads().unwrap();
        let all = small.buckets()[0].grads.as_ref().unwrap().region();
        let mut raw = vec![0; all.bytes()];
        all.read(&mut raw).unwrap();
        let set = widened(raw, grads).into_iter().filter(|v| *v != 0.0).collect::<Vec<_>>();
        assert_eq!(set, [1.0, -2.5, 3.0, 7.0], "nothing of the other is left, in gaps neither");

        small.reset_grads();
        put(&large, &values);
        large.zero_unset_grads().unwrap();
        assert_eq!(large.read_grad(ParamId(2)).unwrap(), values);
        assert_eq!(large.read_grad(ParamId(5)).unwrap(), [0.0; 120]);
        assert!(small.mark_grad(whole(2)).is_err());
    }
}

#[test]
fn only_bf16_weights_have_bf16_gradients() {
    let new =
        |dtype, grads| Store::with_grads(Device::Cpu, dtype, grads, Partition::alone(), specs(1));
    assert!(new(DType::F32, DType::Bf16).is_err());
    assert!(new(DType::Bf16, DType::I32).is_err());
    let mut wide = new(DType::Bf16, DType::F32).unwrap();
    assert!(wide.share_grads(&mut new(DType::Bf16, DType::Bf16).unwrap()).is_err());
}

/// Four blocks with two key heads of one row: each key row is in two blocks.
fn shared_heads() -> Vec<ParamSpec> {
    let q = Group::even(0..8, 4);
    let k = Group { each: 1, blocks: vec![8..9, 8..9, 9..10, 9..10].into() };
    vec![
        spec("qk", &[10, 3], ShardSpec::Rows(vec![q, k])),
        spec("norm", &[5], ShardSpec::Replicated),
    ]
}

#[test]
fn what_several_blocks_have_is_found_in_each_and_counts_once() {
    let partition = Partition { blocks: 4, ..Partition::alone() };
    let (device, f32s) = (Device::Cpu, DType::F32);
    let store = Store::with_grads(device, f32s, f32s, partition, shared_heads()).unwrap();
    let values: Vec<f32> = (0..30).map(|i| i as f32).collect();
    store.write_f32(ParamId(0), &values).unwrap();
    assert_eq!(store.read_f32(ParamId(0)).unwrap(), values);
    let elements =
        |id: usize, block: usize| store.elements(Portion { id: ParamId(id), block: Some(block) });
    // Behind two rows of q.
    let key = |block: usize| elements(0, block).start + 6..elements(0, block).end;
    let norms: Vec<Range<usize>> = (0..4).map(|b| elements(1, b)).collect();
    assert_eq!(store.replicas(0), [vec![key(0), key(1)], vec![key(2), key(3)], norms]);
    // What nobody adds up may not be taken for the gradient.
    assert!(store.zero_unset_grads().is_err());
    // Two copies of a key row, three of the norm.
    let counted: usize = store.first_replicas(0).iter().map(Range::len).sum();
    assert_eq!(counted, store.buckets()[0].len - 2 * 3 - 3 * 5);
}

#[test]
fn parts_of_ranks_make_up_the_store() {
    use crate::comm::run_ranks;
    use std::time::Duration;
    for (ranks, blocks, stage) in [
        (2, 1, Zero::Optimizer),
        (3, 1, Zero::Gradients),
        (4, 2, Zero::Weights),
        (4, 4, Zero::Weights),
    ] {
        let specs = || if blocks == 4 { shared_heads() } else { specs(blocks) };
        let all = run_ranks(ranks, Duration::from_secs(20), |comm| {
            let partition = Partition::new(comm, stage, blocks)?;
            let store =
                Store::with_grads(Device::Cpu, DType::Bf16, DType::F32, partition, specs())?;
            let mut rng = Rng::new(8, 0);
            for (i, p) in store.params().iter().enumerate() {
                let n = p.spec.shape.iter().product();
                let v: Vec<f32> =
                    (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal()).to_f32()).collect();
                store.write_f32(ParamId(i), &v)?;
                assert_eq!(store.read_f32(ParamId(i))?, v, "{ranks} {blocks} {stage}");
            }
            let counted: Vec<Vec<Range<usize>>> =
                (0..store.buckets().len()).map(|f| store.first_replicas(f)).collect();
            let buckets = store.buckets().iter().map(|f| (f.len, f.own.clone(), f.held.clone()));
            Ok((buckets.collect::<Vec<_>>(), counted))
        })
        .unwrap();
        for bucket in 0..all[0].0.len() {
            let mut end = 0;
            for (buckets, counted) in &all {
                let (len, own, held) = &buckets[bucket];
                assert_eq!((own.start, own.len()), (end, len / ranks));
                assert_eq!(held.len(), if stage == Zero::Weights { len / ranks } else { *len });
                end = own.end;
                let inside = |r: &Range<usize>| own.start <= r.start && r.end <= own.end;
                assert!(counted[bucket].iter().all(inside));
            }
        }
    }
}

/// Frozen copies of the specs.
#[cfg(feature = "emulator")]
fn frozen(blocks: usize) -> Vec<ParamSpec> {
    specs(blocks).into_iter().map(|spec| ParamSpec { trained: false, ..spec }).collect()
}

#[cfg(feature = "emulator")]
#[test]
fn weights_of_the_host_are_written_gathered_and_counted_there() {
    use crate::comm::run_ranks;
    use std::time::Duration;
    for (ranks, stage) in [(1, Zero::Nothing), (2, Zero::Nothing), (2, Zero::Weights)] {
        run_ranks(ranks, Duration::from_secs(20), |comm| {
            let partition = Partition::new(comm, stage, 1)?;
            let store =
                Store::on_host(Device::Emulated, DType::Bf16, partition.clone(), frozen(1))?;
            assert!(store.is_on_host() && store.gathers());
            let there =
                Store::with_grads(Device::Emulated, DType::Bf16, DType::F32, partition, frozen(1))?;
            assert_eq!((store.bytes(), store.host_bytes()), ((0, 0), there.bytes().0));
            assert_eq!(there.host_bytes(), 0);
            let mut rng = Rng::new(8, 0);
            for (i, p) in store.params().iter().enumerate() {
                let n = p.spec.shape.iter().product();
                let v: Vec<f32> =
                    (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal()).to_f32()).collect();
                store.write_f32(ParamId(i), &v)?;
                assert_eq!(store.read_f32(ParamId(i))?, v);
            }
            there.copy_from(&store)?;
            for (i, bucket) in store.buckets().iter().enumerate() {
                let all = Buffer::zeroed(Device::Emulated, bucket.len * 2)?;
                // SAFETY: both live until the gather has ended, which is waited for here.
                unsafe { store.gather_bucket(i, all.region())? }.wait()?;
                let mut got = vec![0; all.bytes()];
                all.read(0, &mut got)?;
                let held = bucket.held.start * 2..bucket.held.end * 2;
                let mut want = vec![1; held.len()];
                there.buckets()[i].weights.read(0, &mut want)?;
                assert_eq!(got[held], want);
                // Parts of all ranks, which have the same.
                let all = store.partition().comm.concat(&got)?;
                assert!(all.chunks(got.len()).all(|of| of == got));
            }
            Ok(())
        })
        .unwrap();
    }
}

#[cfg(feature = "emulator")]
#[test]
fn weights_of_the_host_are_neither_trained_nor_generate() {
    let new = |device, specs| Store::on_host(device, DType::F32, Partition::alone(), specs);
    let e = new(Device::Emulated, specs(1)).unwrap_err();
    assert!(e.to_string().contains("qkv is trained"), "{e}");
    let mut store = new(Device::Emulated, frozen(1)).unwrap();
    assert!(store.may_generate().is_err() && store.enter_tp().is_err());
    // On the CPU there is nothing to move.
    let mut store = new(Device::Cpu, frozen(1)).unwrap();
    assert!(!store.is_on_host() && !store.gathers() && store.bytes().0 > 0);
    store.enter_tp().unwrap();
}
