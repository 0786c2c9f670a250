//! PyTorch checkpoints (`.bin`, `.pt`: a zip of one pickle and raw storages), read without
//! executing the pickle and without extracting anything: tensors are read from where they lie.

use super::TensorInfo;
use super::names::{clipped, not_here, quoted};
use super::pickle::{PickledTensor, read_state_dict};
use super::weight_file::{about, open_weights};
use crate::base::{Error, InFile, Result};
use std::collections::{BTreeMap, HashMap};
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Far above any real state dict's pickle (some hundred bytes per tensor).
const MAX_PICKLE: usize = 64 << 20;

/// Bytes of a storage that are held at a time while its checksum is computed.
const PIECE: usize = 1 << 20;

/// How a file of PyTorch before 1.6 starts: the pickled number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = &[0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// An open PyTorch checkpoint whose tensors have been checked to lie within the file.
#[derive(Debug)]
pub(super) struct TorchFile {
    file: InFile,
    storages: HashMap<String, Entry>,
    tensors: BTreeMap<String, Tensor>,
}

/// One file of the archive, stored without compression.
#[derive(Debug)]
struct Entry {
    range: Range<usize>,
    crc: u32,
    /// True if the bytes have been found to match `crc`.
    verified: AtomicBool,
}

#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    storage: String,
    /// In elements.
    offset: usize,
    /// In elements.
    stride: Vec<usize>,
}

impl TorchFile {
    /// Opens `path` and reads its pickle. Errors name the file and what in it is at fault.
    pub(super) fn open(path: &Path) -> Result<TorchFile> {
        let file = open_weights(path)?;
        let parsed = parse(&file).map_err(|e| file.unless_cut(about(path)(e)));
        let (storages, tensors) = parsed?;
        Ok(TorchFile { file, storages, tensors })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    /// The row-major bytes of a tensor, gathered when it is strided. The storage's checksum is
    /// verified on first use.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let found = self.tensors.get(name).and_then(|t| Some((t, self.storages.get(&t.storage)?)));
        let (tensor, entry) = found.ok_or_else(|| not_here(name, self.path()))?;
        entry
            .verify(&self.file)
            .map_err(|e| about(self.path())(e.context(format!("tensor {}", quoted(name)))))?;
        let span = tensor.span();
        let bytes = self.file.read_vec((entry.range.start + span.start) as u64, span.len())?;
        Ok(if tensor.is_contiguous() { bytes } else { tensor.gather(&bytes) })
    }
}

/// Reads archive and pickle; returns storages by key and tensors by name.
fn parse(file: &InFile) -> Result<(HashMap<String, Entry>, BTreeMap<String, Tensor>)> {
    let length = file.bytes().min(2 + LEGACY.len() as u64) as usize;
    let start = file.read_vec(0, length)?;
    if start.first() == Some(&0x80) && start.get(2..).is_some_and(|rest| rest == LEGACY) {
        return Err(Error::user(
            "is in PyTorch's format before 1.6, which is not read; load and save it once with a \
             newer PyTorch, or convert it to safetensors",
        ));
    }
    let mut entries = read_entries(file)?;
    let roots: Vec<&str> = entries.keys().filter_map(|n| n.strip_suffix("/data.pkl")).collect();
    let [root] = roots[..] else {
        return Err(Error::user("is no PyTorch checkpoint: its zip has not one data.pkl"));
    };
    let root = root.to_owned();
    let read = |name: &str| -> Result<Option<Vec<u8>>> {
        let Some(entry) = entries.get(&format!("{root}/{name}")) else { return Ok(None) };
        let length = entry.range.len();
        if length > MAX_PICKLE {
            return Err(Error::user(format!(
                "its {name} of {length} bytes describes more than tensors; save \
                 model.state_dict() alone"
            )));
        }
        entry.verify(file).map_err(|e| e.context(name))?;
        file.read_vec(entry.range.start as u64, length).map(Some)
    };
    if read("byteorder")?.is_some_and(|order| order != b"little") {
        return Err(Error::user("was saved on a big-endian machine; save it on another"));
    }
    let pickle = read("data.pkl")?.unwrap_or_default();
    let (mut storages, mut tensors) = (HashMap::new(), BTreeMap::new());
    for (name, pickled) in read_state_dict(&pickle)? {
        let key = pickled.storage.key;
        if let Some(entry) = entries.remove(&format!("{root}/data/{key}")) {
            storages.insert(key.to_owned(), entry);
        }
        let tensor = Tensor::check(&pickled, storages.get(key), file.bytes() as usize)
            .map_err(|e| e.context(format!("tensor {}", quoted(&name))))?;
        tensors.insert(name, tensor);
    }
    Ok((storages, tensors))
}

/// The archive's files by name, each checked to lie within the archive.
fn read_entries(file: &InFile) -> Result<HashMap<String, Entry>> {
    let unreadable = |e: zip::result::ZipError| {
        Error::user(format!(
            "is no PyTorch zip file, or is cut short ({}); download it again",
            clipped(&e.to_string())
        ))
    };
    let archive = InFile::open(file.path()).map(BufReader::new)?;
    let mut archive = zip::ZipArchive::new(archive).map_err(unreadable)?;
    if archive.has_duplicate_names() {
        return Err(Error::user("its zip holds two files of one name"));
    }
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(unreadable)?;
        let name = entry.name().map_err(unreadable)?.into_owned();
        if entry.encrypted() || entry.compression() != zip::CompressionMethod::Stored {
            return Err(Error::user(format!(
                "{} is compressed or encrypted, which torch.save never does; save it again with \
                 torch.save, or as safetensors",
                quoted(&name)
            )));
        }
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let Some(range) = range.filter(|range| range.end as u64 <= file.bytes()) else {
            return Err(Error::user(format!("{} lies beyond the file's end", quoted(&name))));
        };
        let (crc, verified) = (entry.crc32(), AtomicBool::new(false));
        entries.insert(name, Entry { range, crc, verified });
    }
    Ok(entries)
}

impl Entry {
    fn verify(&self, file: &InFile) -> Result<()> {
        if !self.verified.load(Ordering::Relaxed) {
            let mut crc = crc32fast::Hasher::new();
            for at in self.range.clone().step_by(PIECE) {
                let length = PIECE.min(self.range.end - at);
                crc.update(&file.read_vec(at as u64, length)?);
            }
            if crc.finalize() != self.crc {
                return Err(Error::user(
                    "the checksum does not match, the file is damaged; download or save it again",
                ));
            }
            self.verified.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Tensor {
    /// Checks that every element lies in the storage, and that a tensor which repeats elements
    /// (stride 0) is not made to claim more memory than the file could fill.
    fn check(
        pickled: &PickledTensor<'_>,
        entry: Option<&Entry>,
        file_len: usize,
    ) -> Result<Tensor> {
        let storage = pickled.storage;
        let key = quoted(storage.key);
        let Some(entry) = entry else {
            return Err(Error::user(format!("its storage {key} is missing; download it again")));
        };
        let info = TensorInfo { dtype: storage.dtype, shape: pickled.shape.clone() };
        let held = entry.range.len() / info.dtype.size();
        if storage.numel > held {
            return Err(Error::user(format!(
                "its storage {key} has {held} elements instead of {}; download it again",
                storage.numel
            )));
        }
        if info.checked_bytes().is_none_or(|bytes| bytes > file_len) {
            let shape = clipped(&format!("{:?}", info.shape));
            return Err(Error::user(format!("shape {shape} is larger than the file")));
        }
        let mut steps = info.shape.iter().zip(&pickled.stride);
        let last = steps.try_fold(pickled.offset, |last, (&size, &stride)| {
            last.checked_add(size.saturating_sub(1).checked_mul(stride)?)
        });
        let empty = info.shape.contains(&0);
        if !empty && last.is_none_or(|last| last >= storage.numel) {
            return Err(Error::user(format!("reaches outside its storage {key}")));
        }
        Ok(Tensor {
            info,
            storage: storage.key.to_owned(),
            offset: if empty { 0 } else { pickled.offset },
            stride: pickled.stride.clone(),
        })
    }

    /// The bytes of the storage from the first element to the last.
    fn span(&self) -> Range<usize> {
        let size = self.info.dtype.size();
        let first = self.offset * size;
        if self.info.shape.contains(&0) {
            return first..first;
        }
        let steps = self.info.shape.iter().zip(&self.stride);
        let last: usize = steps.map(|(&n, &stride)| (n - 1) * stride).sum();
        first..first + (last + 1) * size
    }

    /// The elements in row-major order, from the bytes of their span.
    fn gather(&self, span: &[u8]) -> Vec<u8> {
        let size = self.info.dtype.size();
        let count: usize = self.info.shape.iter().product();
        let mut out = Vec::with_capacity(count * size);
        let mut index = vec![0; self.info.shape.len()];
        let mut at: usize = 0;
        for _ in 0..count {
            out.extend_from_slice(&span[at * size..][..size]);
            // Count up in mixed radix, the last dimension fastest, keeping `at` in step.
            for (d, digit) in index.iter_mut().enumerate().rev() {
                *digit += 1;
                at = at.wrapping_add(self.stride[d]);
                if *digit < self.info.shape[d] {
                    break;
                }
                // Past the last index only; the stride of a dimension of one may be anything.
                at = at.wrapping_sub(self.stride[d].wrapping_mul(*digit));
                *digit = 0;
            }
        }
        out
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.info.shape.iter().zip(&self.stride).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}
