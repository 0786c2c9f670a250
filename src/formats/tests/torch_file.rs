//! Writes PyTorch checkpoints for the tests, opcode for opcode as `torch.save` does (protocol 2),
//! and the same content in the opcodes of protocol 4.

use super::super::SourceDType;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;

/// A tensor to be saved, with the storage it looks into.
#[derive(Clone, Debug)]
pub(super) struct PyTensor {
    pub(super) name: String,
    pub(super) dtype: SourceDType,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) offset: usize,
    pub(super) key: String,
    pub(super) storage: Vec<u8>,
    pub(super) parameter: bool,
}

impl PyTensor {
    /// A contiguous tensor with a storage of its own.
    pub(super) fn new(name: &str, dtype: SourceDType, shape: &[usize], storage: Vec<u8>) -> Self {
        let mut stride = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            stride[d - 1] = stride[d] * shape[d];
        }
        let (name, shape, offset) = (name.to_owned(), shape.to_vec(), 0);
        let key = format!("{name}.storage").replace('/', "_");
        PyTensor { name, dtype, shape, stride, offset, key, storage, parameter: false }
    }
}

/// Emits opcodes, remembering what was put into the memo.
#[derive(Default)]
pub(super) struct Pickler {
    pub(super) out: Vec<u8>,
    protocol: u8,
    memo: HashMap<String, u32>,
    count: u32,
}

impl Pickler {
    pub(super) fn new(protocol: u8) -> Pickler {
        let mut p = Pickler { protocol, ..Pickler::default() };
        p.op(&[0x80, protocol]);
        if protocol >= 4 {
            // A frame; its length is of no use to a reader that has the whole pickle.
            p.op(&[0x95, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        p
    }

    pub(super) fn op(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn put(&mut self) -> u32 {
        let i = self.count;
        self.count += 1;
        match u8::try_from(i) {
            _ if self.protocol >= 4 => self.op(&[0x94]),
            Ok(i) => self.op(&[b'q', i]),
            Err(_) => {
                self.op(b"r");
                self.op(&i.to_le_bytes());
            }
        }
        i
    }

    fn get(&mut self, i: u32) {
        match u8::try_from(i) {
            Ok(i) => self.op(&[b'h', i]),
            Err(_) => {
                self.op(b"j");
                self.op(&i.to_le_bytes());
            }
        }
    }

    /// Emits `what` once and a memo reference from then on.
    fn memoized(&mut self, what: &str, emit: impl FnOnce(&mut Pickler)) {
        if let Some(&i) = self.memo.get(what) {
            return self.get(i);
        }
        emit(self);
        let i = self.put();
        self.memo.insert(what.to_owned(), i);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.memoized(&format!("text {text}"), |p| {
            if p.protocol >= 4 && text.len() < 256 {
                p.op(&[0x8c, text.len() as u8]);
            } else {
                p.op(b"X");
                p.op(&(text.len() as u32).to_le_bytes());
            }
            p.op(text.as_bytes());
        });
    }

    pub(super) fn global(&mut self, module: &str, name: &str) {
        self.memoized(&format!("global {module}.{name}"), |p| {
            if p.protocol >= 4 {
                p.text(module);
                p.text(name);
                p.op(&[0x93]);
            } else {
                p.op(format!("c{module}\n{name}\n").as_bytes());
            }
        });
    }

    pub(super) fn int(&mut self, x: usize) {
        match x {
            0..=0xff => self.op(&[b'K', x as u8]),
            0x100..=0xffff => {
                self.op(b"M");
                self.op(&(x as u16).to_le_bytes());
            }
            0x1_0000..=0x7fff_ffff => {
                self.op(b"J");
                self.op(&(x as u32).to_le_bytes());
            }
            _ => {
                self.op(&[0x8a, 8]);
                self.op(&(x as i64).to_le_bytes());
            }
        }
    }

    fn ints(&mut self, xs: &[usize]) {
        if xs.is_empty() {
            return self.op(b")");
        }
        if xs.len() > 3 {
            self.op(b"(");
        }
        for &x in xs {
            self.int(x);
        }
        match xs.len() {
            n @ 1..=3 => self.op(&[0x84 + n as u8]),
            _ => self.op(b"t"),
        }
        self.put();
    }

    pub(super) fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.op(b")R");
        self.put();
    }

    pub(super) fn tensor(&mut self, t: &PyTensor) {
        if t.parameter {
            self.global("torch._utils", "_rebuild_parameter");
            self.op(b"(");
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(b"((");
        self.text("storage");
        self.global("torch", storage_class(t.dtype));
        self.text(&t.key);
        self.text("cpu");
        self.int(t.storage.len() / t.dtype.size());
        self.op(b"t");
        self.put();
        self.op(b"Q");
        self.int(t.offset);
        self.ints(&t.shape);
        self.ints(&t.stride);
        self.op(&[0x89]);
        self.ordered_dict();
        self.op(b"t");
        self.put();
        self.op(b"R");
        self.put();
        if t.parameter {
            self.op(&[0x88]);
            self.ordered_dict();
            self.op(b"t");
            self.put();
            self.op(b"R");
            self.put();
        }
    }

    /// A state dict as a module gives it: an OrderedDict with `_metadata` as an attribute.
    pub(super) fn state_dict(&mut self, tensors: &[PyTensor]) {
        self.ordered_dict();
        self.op(b"(");
        for t in tensors {
            self.text(&t.name);
            self.tensor(t);
        }
        self.op(b"u}");
        self.put();
        self.text("_metadata");
        self.ordered_dict();
        self.op(b"(");
        for module in ["", "lm_head"] {
            self.text(module);
            self.op(b"}");
            self.put();
            self.text("version");
            self.int(1);
            self.op(b"s");
        }
        self.op(b"usb.");
    }
}

fn storage_class(dtype: SourceDType) -> &'static str {
    use SourceDType::*;
    match dtype {
        F32 => "FloatStorage",
        F16 => "HalfStorage",
        Bf16 => "BFloat16Storage",
        F64 => "DoubleStorage",
        I64 => "LongStorage",
        I32 => "IntStorage",
        I16 => "ShortStorage",
        I8 => "CharStorage",
        U8 => "ByteStorage",
        Bool => "BoolStorage",
    }
}

/// The pickle of a state dict.
pub(super) fn pickle(tensors: &[PyTensor], protocol: u8) -> Vec<u8> {
    let mut p = Pickler::new(protocol);
    p.state_dict(tensors);
    p.out
}

/// A zip of `files`, nothing compressed.
pub(super) fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data) in files {
        let stored =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(*name, stored).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A checkpoint with this pickle and the storages of `tensors`.
pub(super) fn archive(pickle: &[u8], tensors: &[PyTensor]) -> Vec<u8> {
    let storages: BTreeMap<String, &[u8]> =
        tensors.iter().map(|t| (format!("archive/data/{}", t.key), &t.storage[..])).collect();
    let mut files: Vec<(&str, &[u8])> =
        vec![("archive/data.pkl", pickle), ("archive/byteorder", b"little")];
    files.extend(storages.iter().map(|(name, data)| (name.as_str(), *data)));
    files.push(("archive/version", b"3\n"));
    zip_of(&files)
}

/// Writes a checkpoint file.
pub(super) fn write_torch(path: &Path, tensors: &[PyTensor]) {
    std::fs::write(path, archive(&pickle(tensors, 2), tensors)).unwrap();
}
