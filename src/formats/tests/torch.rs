//! PyTorch checkpoints: what torch.save writes is read right, and nothing else is obeyed.

use super::super::{Checkpoint, SourceDType, SourceDType::*};
use super::torch_file::{Pickler, PyTensor, archive, pickle, write_torch, zip_of};
use super::{fresh_rng, random_bytes, refused};
use crate::base::Rng;
use std::fs;
use std::slice::from_ref;

/// Opens these bytes as `pytorch_model.bin`.
fn open(file: &[u8]) -> crate::base::Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, file).unwrap();
    Checkpoint::open(dir.path())
}

fn one() -> PyTensor {
    PyTensor::new("wte.weight", F32, &[2, 3], (0..24).collect())
}

/// A tensor of random shape, strides and offset in a storage somewhat larger than needed.
fn random_view(rng: &mut Rng, name: &str, dtype: SourceDType) -> PyTensor {
    let rank = rng.below(5) as usize;
    let shape: Vec<usize> = (0..rank).map(|_| rng.below(5) as usize).collect();
    let mut t = PyTensor::new(name, dtype, &shape, Vec::new());
    // Permuting the strides together with the shape is a transpose; scaling them, a slice.
    let mut order: Vec<usize> = (0..rank).collect();
    rng.shuffle(&mut order);
    let scale = 1 + rng.below(3) as usize;
    t.shape = order.iter().map(|&d| shape[d]).collect();
    t.stride = order.iter().map(|&d| t.stride[d] * scale).collect();
    t.offset = rng.below(7) as usize;
    let last: usize = t.shape.iter().zip(&t.stride).map(|(n, s)| n.saturating_sub(1) * s).sum();
    let numel = t.offset + last + 1 + rng.below(3) as usize;
    t.storage = random_bytes(rng, numel * dtype.size());
    t.parameter = rng.below(2) == 0;
    t
}

/// The elements one by one, by the definition of strides.
fn elements(t: &PyTensor) -> Vec<u8> {
    let count: usize = t.shape.iter().product();
    let mut out = Vec::new();
    for i in 0..count {
        let (mut rest, mut at) = (i, t.offset);
        for (size, stride) in t.shape.iter().zip(&t.stride).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        out.extend_from_slice(&t.storage[at * t.dtype.size()..][..t.dtype.size()]);
    }
    out
}

#[test]
fn random_state_dicts_of_every_dtype_and_stride() {
    let mut rng = fresh_rng();
    let dtypes = [F32, F16, Bf16, F64, I64, I32, I16, I8, U8, Bool];
    for protocol in [2, 3, 4] {
        // Enough tensors for memo indices beyond one byte.
        let tensors: Vec<PyTensor> =
            (0..80).map(|i| random_view(&mut rng, &format!("h.{i}.w"), dtypes[i % 10])).collect();
        let open = open(&archive(&pickle(&tensors, protocol), &tensors)).unwrap();
        assert_eq!(open.names().count(), tensors.len());
        for t in &tensors {
            let info = open.info(&t.name).unwrap();
            assert_eq!((info.dtype, &info.shape), (t.dtype, &t.shape));
            assert_eq!(open.read_raw(&t.name).unwrap(), elements(t), "{t:?}");
        }
        refused(open.read_raw("nope"), &["nope", "pytorch_model.bin"]);
    }
}

#[test]
fn tied_weights_share_a_storage() {
    let a = one();
    let mut b = PyTensor { name: "lm_head.weight".to_owned(), ..one() };
    (b.shape, b.stride) = (vec![3, 2], vec![1, 3]);
    let open = open(&archive(&pickle(&[a.clone(), b.clone()], 2), &[a, b])).unwrap();
    let (a, b) = (open.read_f32("wte.weight").unwrap(), open.read_f32("lm_head.weight").unwrap());
    assert_eq!(b, [a[0], a[3], a[1], a[4], a[2], a[5]]);
}

#[test]
fn entries_that_are_no_tensors_are_passed_over() {
    let mut p = Pickler::new(2);
    p.op(b"}q\x63(");
    p.text("epoch");
    p.int(1 << 40);
    p.text("seed");
    p.op(&[0x8a, 16]);
    p.op(&[0xff; 16]);
    p.text("negative");
    p.op(b"J\xff\xff\xff\xff");
    p.text("lr");
    p.op(b"G\x3f\xf0\0\0\0\0\0\0");
    p.text("notes");
    p.op(b"]q\x64(K\x01Ne");
    p.text("w");
    p.tensor(&one());
    p.text("done");
    p.op(&[0x88, b'u', b'.']);
    let open = open(&archive(&p.out, &[one()])).unwrap();
    assert_eq!(open.names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn code_is_never_run_and_its_global_named() {
    let dir = tempfile::tempdir().unwrap();
    let witness = dir.path().join("ran");
    let command = format!("touch {}", witness.display());
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch", "ComplexFloatStorage"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy.core.multiarray", "scalar"),
        ("FloatStorage", "torch"),
    ] {
        for protocol in [2, 4] {
            let mut p = Pickler::new(protocol);
            p.global(module, name);
            p.text(&command);
            p.op(b"\x85R.");
            let named = format!("{module}.{name}");
            let parts = ["pytorch_model.bin", &named, "would run code", "safetensors"];
            refused(open(&archive(&p.out, &[])), &parts);
        }
    }
    let mut inst = Pickler::new(2);
    inst.op(b"(");
    inst.text(&command);
    inst.op(b"ios\nsystem\n.");
    refused(open(&archive(&inst.out, &[])), &["os.system"]);
    assert!(!witness.exists());
}

#[test]
fn opcodes_beyond_tensors_are_refused() {
    let state_dict = pickle(&[one()], 2);
    let body = &state_dict[2..state_dict.len() - 1];
    // OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, BINBYTES, DUP, POP, EMPTY_SET, nonsense
    for op in [b'o', 0x81, 0x92, 0x82, b'P', b'B', b'2', b'0', 0x8f, 0xff] {
        let file = [&[0x80, 2], body, &[op, 1, 1, 1, 1, b'.']].concat();
        refused(open(&archive(&file, &[one()])), &[&format!("0x{op:02x}"), "safetensors"]);
    }
    for (file, part) in [
        (&b"\x80\x02K\x05R."[..], "stack is empty"),
        (b"\x80\x02K\x05K\x05R.", "no global"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "unexpected arguments"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "unexpected arguments"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01NN\x87R.", "unexpected arguments"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01))NNtR.", "storage, offset"),
        (b"\x80\x02K\x01Q.", "persistent id"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "BUILD"),
        (b"\x80\x02h\x07.", "memo"),
        (b"\x80\x02u.", "mark"),
        (b"\x80\x02}(K\x01u.", "no dict"),
        (b"\x80\x02(}t(.", "stack is empty"),
        (b"\x80\x09N.", "protocol 9"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "cut short"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "cut short"),
        (b"\x80\x02X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x02cos", "cut short"),
        (b"\x80\x02N.", "no dict of tensors"),
        (b"\x80\x02}.", "no tensors"),
        (b"\x80\x02}X\x05\0\0\0model}s.", "\"model\""),
        (b"", "cut short"),
    ] {
        refused(open(&archive(file, &[])), &["pytorch_model.bin", part]);
    }
}

/// A pickle of nested references, exponential if it were expanded.
#[test]
fn shared_and_cyclic_values_stay_small() {
    let mut p = Pickler::new(2);
    p.op(b"}q\xf0(");
    p.text("w");
    p.tensor(&one());
    p.text("laughs");
    p.op(b")q\xf1");
    for _ in 0..10_000 {
        p.op(b"h\xf1\x86q\xf1");
    }
    p.text("itself");
    p.op(b"h\xf0u.");
    let open = open(&archive(&p.out, &[one()])).unwrap();
    assert_eq!(open.names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let huge = usize::MAX / 2;
    let cases: [(&[usize], &[usize], usize); 8] = [
        (&[2, 3], &[3, 1], 1),
        (&[2, 3], &[4, 1], 0),
        (&[7], &[1], 0),
        (&[], &[], 6),
        (&[2], &[huge], 0),
        (&[2, 2], &[huge, huge], 3),
        (&[1], &[1], huge),
        (&[6, 1, 1], &[2, huge, huge], 0),
    ];
    for (shape, stride, offset) in cases {
        let (shape, stride) = (shape.to_vec(), stride.to_vec());
        let t = PyTensor { shape, stride, offset, ..one() };
        refused(open(&archive(&pickle(&[t], 2), &[one()])), &["wte.weight", "outside its storage"]);
    }
    // Repeating one element more often than the file has bytes.
    let t = PyTensor { shape: vec![1 << 20, 1 << 20], stride: vec![0, 0], ..one() };
    refused(open(&archive(&pickle(&[t], 2), &[one()])), &["wte.weight", "larger than the file"]);
    let t = PyTensor { shape: vec![1; 65], stride: vec![1; 65], ..one() };
    refused(open(&archive(&pickle(&[t], 2), &[one()])), &["shape"]);
    // Legal, though odd: an expanded row, and huge strides where they do not matter.
    let t = PyTensor { shape: vec![3, 1, 2], stride: vec![0, huge, 1], ..one() };
    let read = open(&archive(&pickle(from_ref(&t), 2), &[one()])).unwrap();
    assert_eq!(read.read_raw("wte.weight").unwrap(), elements(&t));
}

#[test]
fn damaged_archives_are_refused() {
    let t = PyTensor::new("wte.weight", U8, &[40], vec![0x5a; 40]);
    let good = archive(&pickle(from_ref(&t), 2), from_ref(&t));
    // A flipped byte in the tensor's data is found when the tensor is read.
    let mut flipped = good.clone();
    let at = flipped.windows(40).position(|w| w == [0x5a; 40]).unwrap();
    flipped[at + 20] ^= 1;
    let read = open(&flipped).unwrap();
    refused(read.read_raw("wte.weight"), &["pytorch_model.bin", "wte.weight", "checksum"]);
    // One in the pickle, at once.
    let mut flipped = good.clone();
    let at = flipped.windows(10).position(|w| w == b"wte.weight").unwrap();
    flipped[at] ^= 1;
    refused(open(&flipped), &["pytorch_model.bin", "data.pkl", "checksum"]);
    for keep in 1..good.len() {
        refused(open(&good[..keep]), &["pytorch_model.bin"]);
    }
    // A storage that is missing, and one that is short.
    refused(open(&archive(&pickle(from_ref(&t), 2), &[])), &["wte.weight", "missing"]);
    let short = PyTensor { storage: vec![0; 39], ..t.clone() };
    refused(open(&archive(&pickle(&[t], 2), &[short])), &["wte.weight", "39 elements"]);
}

#[test]
fn archives_that_are_no_checkpoint_are_refused() {
    let p = pickle(&[one()], 2);
    refused(open(&zip_of(&[("a/b", b"")])), &["no PyTorch checkpoint"]);
    refused(open(&zip_of(&[("a/data.pkl", &p), ("b/data.pkl", &p)])), &["not one data.pkl"]);
    refused(open(b"<html>not found</html>"), &["no PyTorch zip file"]);
    let big = zip_of(&[("a/data.pkl", &p), ("a/byteorder", b"big")]);
    refused(open(&big), &["big-endian"]);
    // A name that leads elsewhere names nothing: entries are never files here.
    let t = PyTensor { key: "../../etc/passwd".to_owned(), ..one() };
    refused(open(&archive(&pickle(&[t], 2), &[one()])), &["etc/passwd", "missing"]);
    // Compressed, as a zip tool would make it: method 8 in both headers.
    let mut packed = archive(&p, &[one()]);
    let central = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    (packed[8], packed[central + 10]) = (8, 8);
    refused(open(&packed), &["pytorch_model.bin", "data.pkl", "compressed"]);
    // A claimed size of nearly 4 GiB.
    let mut bomb = archive(&p, &[one()]);
    bomb[central + 20..central + 28].fill(0xfe);
    refused(open(&bomb), &["pytorch_model.bin"]);
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    refused(open(legacy), &["before 1.6", "safetensors"]);
}

#[test]
fn pt_files_open_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_model.pt");
    write_torch(&path, &[one()]);
    let info = Checkpoint::open_file(&path).unwrap().info("wte.weight").cloned();
    assert_eq!(info.unwrap().shape, [2, 3]);
}
