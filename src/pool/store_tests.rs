//! Tests of the store: cuts, blocks, gradients set, added, shared.

use super::super::whole::widened;
use super::*;
use crate::base::{Elem, Rng, bf16};
use crate::pool::Group;

fn spec(name: &str, shape: &[usize], cut: Cut) -> ParamSpec {
    ParamSpec { name: name.into(), segment: 0, shape: shape.to_vec(), cut, trained: true }
}

/// q, k and v rows of a fused projection.
fn heads(blocks: usize) -> Cut {
    Cut::Rows([0..8, 8..11, 11..14].map(|rows| Group::even(rows, blocks)).to_vec())
}

fn specs(blocks: usize) -> Vec<ParamSpec> {
    vec![
        spec("qkv", &[14, 5], heads(blocks)),
        spec("out", &[5, 7], Cut::Cols(Group::even(0..7, blocks))),
        spec("norm", &[5], Cut::Whole),
        spec("bias", &[14], heads(blocks)),
        spec("table", &[21, 3], Cut::Table),
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
    let flat = &store.flats()[p.flat];
    let row = |r: usize| {
        let mut b = [0u8; 20];
        flat.weights.read((flat.block + p.offset + r * 5) * 4, &mut b).unwrap();
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
    let grads = store.flats()[0].grads.as_ref().unwrap();
    Device::Cpu.write(grads.slice(0, 4), &7f32.to_ne_bytes()).unwrap();
    store.settle_grads().unwrap();
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
            Device::Cpu.write(to, bytemuck::cast_slice(&v)).unwrap();
        }
        _ => Device::Cpu.write(to, bytemuck::cast_slice(values)).unwrap(),
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
        wider.push(ParamSpec { segment: 1, ..spec("more", &[40, 3], Cut::Whole) });
        let mut large = new(wider);
        let alone = [&small, &large].map(|s| s.bytes().1);
        assert_eq!(alone[0], (128 + 64 + 64 + 64 + 64) * grads.size());
        small.share_grads(&mut large).unwrap();
        assert_eq!([&small, &large].map(|s| s.bytes().1), [alone[1], 0]);

        let values = [1.0, -2.5, 3.0, 0.0, 7.0];
        put(&small, &values);
        assert!(large.mark_grad(whole(5)).is_err(), "the other's are not applied yet");
        assert!(large.settle_grads().is_err());
        assert!(large.share_grads(&mut new(specs(1))).is_err());
        large.reset_grads();
        small.settle_grads().unwrap();
        assert_eq!(small.read_grad(ParamId(2)).unwrap(), values);
        assert_eq!(small.read_grad(ParamId(0)).unwrap(), [0.0; 70]);

        small.reset_grads();
        let all = large.flats()[0].grads.as_ref().unwrap().region();
        Device::Cpu.write(all, &vec![0x40; all.bytes]).unwrap();
        put(&small, &values);
        small.settle_grads().unwrap();
        let all = small.flats()[0].grads.as_ref().unwrap().region();
        let mut raw = vec![0; all.bytes];
        Device::Cpu.read(all, &mut raw).unwrap();
        let set = widened(raw, grads).into_iter().filter(|v| *v != 0.0).collect::<Vec<_>>();
        assert_eq!(set, [1.0, -2.5, 3.0, 7.0], "nothing of the other is left, in gaps neither");

        small.reset_grads();
        put(&large, &values);
        large.settle_grads().unwrap();
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
