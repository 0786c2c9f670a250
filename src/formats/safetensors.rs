//! The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes
//! without holes. The entries of a header are those of the crate `safetensors`. Reads with every
//! claim of the header checked, so that an error names the tensor. Reads and writes tensor by
//! tensor, so that a model is never held twice.

use super::names::{clipped, not_here, quoted};
use super::weight_file::{about, open_weights};
use super::{OutDir, SourceDType, Sum, TensorInfo};
use crate::base::{Error, InFile, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo as Entry};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// The format's own bound on the header.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file whose header has been checked.
pub(super) struct SafetensorsFile {
    file: InFile,
    /// All bytes before those of the first tensor.
    header: Vec<u8>,
    tensors: BTreeMap<String, Slot>,
}

struct Slot {
    info: TensorInfo,
    /// Place in the data part of the file.
    range: Range<usize>,
}

impl SafetensorsFile {
    /// Opens `path` and checks its header. Errors name the file and, where one is at fault, the
    /// tensor.
    pub(super) fn open(path: &Path) -> Result<SafetensorsFile> {
        let file = open_weights(path)?;
        let header = file.read_vec(0, data_start(&file).map_err(about(path))?)?;
        let data = file.bytes() - header.len() as u64;
        let tensors = parse(&header[8..], data).map_err(about(path))?;
        Ok(SafetensorsFile { file, header, tensors })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// All bytes before those of the first tensor.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|slot| &slot.info)
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let slot = self.tensors.get(name).ok_or_else(|| not_here(name, self.path()))?;
        self.file.read_vec((self.header.len() + slot.range.start) as u64, slot.range.len())
    }
}

/// Where the tensors' bytes start, by the length that `file` begins with.
fn data_start(file: &InFile) -> Result<usize> {
    let Some(rest) = file.bytes().checked_sub(8) else {
        return Err(Error::user(format!(
            "is not a safetensors file: {} bytes are less than its header; download it again",
            file.bytes()
        )));
    };
    let mut length = [0; 8];
    file.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > rest {
        return Err(Error::user(format!(
            "is not a safetensors file, or is cut short: the header claims {length} bytes, the \
             file has {rest}; download it again"
        )));
    }
    Ok(8 + length as usize)
}

/// The tensors of a JSON header that `data_len` bytes of data follow.
fn parse(header: &[u8], data_len: u64) -> Result<BTreeMap<String, Slot>> {
    let header: Header = serde_json::from_slice(header)
        .map_err(|e| Error::user(format!("bad safetensors header: {}", clipped(&e.to_string()))))?;
    check(header.0, data_len as usize)
}

/// The crate's entry with nothing else in it: the crate passes over keys that it does not know.
#[derive(Deserialize)]
struct OnlyEntry(#[serde(with = "Strict")] Entry);

#[derive(Deserialize)]
#[serde(remote = "Entry", deny_unknown_fields)]
struct Strict {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header, with repeated names refused: the crate's own map would keep the last one silently.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Header, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                // Free text; its nesting is skipped without recursion.
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let OnlyEntry(entry) = map
                .next_value()
                .map_err(|e| A::Error::custom(format!("tensor {}: {e}", quoted(&name))))?;
            if tensors.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor {} appears twice", quoted(&name))));
            }
            tensors.insert(name, entry);
        }
        Ok(Header(tensors))
    }
}

/// Checks sizes and places: known dtype, size equal to shape, no overlap, no hole, nothing outside
/// the `data_len` bytes of data.
fn check(header: BTreeMap<String, Entry>, data_len: usize) -> Result<BTreeMap<String, Slot>> {
    let mut slots = BTreeMap::new();
    for (name, entry) in header {
        let fail = |what: String| Err(Error::user(format!("tensor {} {what}", quoted(&name))));
        let Some(dtype) = SourceDType::of_safetensors(entry.dtype) else {
            return fail(format!(
                "has dtype {}, which is not supported; convert it to F32, F16 or BF16",
                entry.dtype
            ));
        };
        let info = TensorInfo { dtype, shape: entry.shape };
        let (begin, end) = entry.data_offsets;
        let Some(size) = end.checked_sub(begin) else {
            return fail(format!("has a negative size: data_offsets [{begin}, {end}]"));
        };
        if info.checked_bytes() != Some(size) {
            let shape = clipped(&format!("{:?}", info.shape));
            return fail(format!("holds {size} bytes, which is not {shape} of {dtype}"));
        }
        slots.insert(name, Slot { info, range: begin..end });
    }
    let mut order: Vec<(&String, &Slot)> = slots.iter().collect();
    order.sort_by_key(|(_, slot)| (slot.range.start, slot.range.end));
    let (mut at, mut before) = (0, None);
    for (name, slot) in order {
        let (tensor, Range { start, end }) = (quoted(name), &slot.range);
        if *end > data_len {
            return Err(Error::user(format!(
                "the file is cut short: tensor {tensor} ends at data byte {end} of {data_len}; \
                 download it again"
            )));
        }
        if *start != at {
            let what = if *start < at { "overlaps" } else { "leaves a hole after" };
            let before = before.map_or("the header".to_owned(), |n: &String| quoted(n));
            return Err(Error::user(format!("tensor {tensor} {what} {before}")));
        }
        (at, before) = (*end, Some(name));
    }
    if at != data_len {
        return Err(Error::user(format!(
            "{} bytes after the last tensor belong to none; download it again",
            data_len - at
        )));
    }
    Ok(slots)
}

/// A tensor to be written; its bytes are asked for when their turn comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveTensor {
    /// Name in the file; unique.
    pub name: String,
    /// Element type and shape.
    pub info: TensorInfo,
    /// True if infinite and NaN values are written too: the model came with some.
    pub any_value: bool,
}

impl SaveTensor {
    /// A tensor of finite values called `name` of `dtype` and `shape` (outermost dimension first).
    pub fn new(name: impl Into<String>, dtype: impl Into<SourceDType>, shape: &[usize]) -> Self {
        let info = TensorInfo { dtype: dtype.into(), shape: shape.to_vec() };
        SaveTensor { name: name.into(), info, any_value: false }
    }

    /// Refuses bytes with values that are not finite: a file that is whole by its checksums would
    /// be of no use, and take the place of one that is.
    fn check_values(&self, bytes: &[u8]) -> Result<()> {
        let bad = if self.any_value { 0 } else { self.info.dtype.count_not_finite(bytes) };
        if bad == 0 {
            return Ok(());
        }
        let all = bytes.len() / self.info.dtype.size();
        Err(Error::diverged(format!(
            "not saved, because {bad} of {all} values of {} are not finite; resume from an earlier \
             checkpoint with a lower learning rate",
            quoted(&self.name)
        )))
    }

    /// Size in bytes.
    pub(super) fn bytes(&self) -> Result<usize> {
        self.info.checked_bytes().ok_or_else(|| {
            Error::internal(format!("tensor {} has an absurd shape", quoted(&self.name)))
        })
    }
}

/// Writes a safetensors file called `name` into `dir`, whole or not at all.
///
/// `bytes` is called once per tensor, in the order of the file (wide elements first, so that all
/// are aligned), and returns its row-major little-endian bytes; only one tensor's bytes are held at
/// a time. `metadata` goes to the header's `__metadata__`; transformers wants `("format", "pt")`.
/// It is one pair at most, since the crate writes several in no fixed order. Returns the checksum
/// of all bytes before the first tensor.
///
/// # Errors
/// A repeated name or a wrong byte count is an internal error. Values that are not finite are an
/// error of [`Kind::Diverged`](crate::base::Kind), unless the tensor may have any.
pub fn write_safetensors<'a>(
    dir: &OutDir,
    name: &str,
    tensors: &[SaveTensor],
    metadata: Option<(&str, &str)>,
    bytes: &mut dyn FnMut(&SaveTensor) -> Result<Cow<'a, [u8]>>,
) -> Result<Sum> {
    let order: Vec<&SaveTensor> = safetensors_order(tensors).map(|i| &tensors[i]).collect();
    let header = header(&order, metadata)?;
    let header = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    dir.write(name, |out| {
        out.put(&header)?;
        for tensor in &order {
            let data = bytes(tensor)?;
            if data.len() != tensor.bytes()? {
                return Err(Error::internal(format!(
                    "tensor {} came with {} bytes for {:?}",
                    quoted(&tensor.name),
                    data.len(),
                    tensor.info
                )));
            }
            tensor.check_values(&data)?;
            out.put(&data)?;
        }
        Ok(())
    })?;
    Ok(Sum::of(&header))
}

/// The order in which tensors are written: those of larger elements first, so that all are aligned.
pub(super) fn safetensors_order(tensors: &[SaveTensor]) -> impl Iterator<Item = usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].info.dtype.size()));
    order.into_iter()
}

/// The JSON header, padded with spaces so that the data starts at a multiple of eight bytes.
fn header(tensors: &[&SaveTensor], metadata: Option<(&str, &str)>) -> Result<Vec<u8>> {
    let (mut at, mut seen) = (0, HashSet::from(["__metadata__"]));
    let mut entries = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let SaveTensor { name, info, .. } = tensor;
        if !seen.insert(name) {
            return Err(Error::internal(format!("tensor {} would be saved twice", quoted(name))));
        }
        let end = at + tensor.bytes()?;
        let (dtype, shape) = (info.dtype.in_safetensors(), info.shape.clone());
        entries.push((name.clone(), Entry { dtype, shape, data_offsets: (at, end) }));
        at = end;
    }
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("a safetensors header: {e}"));
    let metadata = metadata.map(|(k, v)| [(k.to_owned(), v.to_owned())].into_iter().collect());
    let header = Metadata::new(metadata, entries).map_err(|e| failed(&e))?;
    let mut text = serde_json::to_vec(&header).map_err(|e| failed(&e))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}
