//! Element types as files store them, their exact widening to f32, and a tensor's description.
//! Wider than [`crate::base::DType`], which lists what can be computed with.

use crate::base::{DType, bf16};
use half::f16;
use safetensors::Dtype;

/// The element type of a tensor in a file. Bytes are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceDType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit IEEE float.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

use SourceDType::*;

/// Every dtype with its PyTorch storage class.
const STORAGES: [(SourceDType, &str); 10] = [
    (F32, "FloatStorage"),
    (F16, "HalfStorage"),
    (Bf16, "BFloat16Storage"),
    (F64, "DoubleStorage"),
    (I64, "LongStorage"),
    (I32, "IntStorage"),
    (I16, "ShortStorage"),
    (I8, "CharStorage"),
    (U8, "ByteStorage"),
    (Bool, "BoolStorage"),
];

impl SourceDType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        self.in_safetensors().bitsize() / 8
    }

    /// The same in safetensors.
    pub(super) fn in_safetensors(self) -> Dtype {
        match self {
            F32 => Dtype::F32,
            F16 => Dtype::F16,
            Bf16 => Dtype::BF16,
            F64 => Dtype::F64,
            I64 => Dtype::I64,
            I32 => Dtype::I32,
            I16 => Dtype::I16,
            I8 => Dtype::I8,
            U8 => Dtype::U8,
            Bool => Dtype::BOOL,
        }
    }

    /// The dtype of a safetensors header; `None` if it is not supported.
    pub(super) fn of_safetensors(dtype: Dtype) -> Option<SourceDType> {
        STORAGES.iter().map(|row| row.0).find(|own| own.in_safetensors() == dtype)
    }

    /// The dtype of a PyTorch storage class, as `"FloatStorage"`.
    pub(super) fn of_storage(class: &str) -> Option<SourceDType> {
        STORAGES.iter().find(|row| row.1 == class).map(|row| row.0)
    }

    /// True if elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, F32 | F16 | Bf16 | F64)
    }

    /// Numbers in the little-endian bytes of elements that are infinite or NaN: those with all bits
    /// of the exponent set. 0 for integers and booleans.
    pub fn count_not_finite(self, bytes: &[u8]) -> usize {
        fn count<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> usize {
            bytes.as_chunks::<N>().0.iter().filter(|b| is(**b)).count()
        }
        let half = |exponent: u16| move |b| u16::from_le_bytes(b) & exponent == exponent;
        match self {
            F32 => count(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            F16 => count(bytes, half(0x7c00)),
            Bf16 => count(bytes, half(0x7f80)),
            F64 => count(bytes, |b| !f64::from_le_bytes(b).is_finite()),
            I64 | I32 | I16 | I8 | U8 | Bool => 0,
        }
    }

    /// Elements of a float dtype as f32: exact, but for F64, which is rounded to nearest. `None`
    /// for integers and booleans.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self {
            F32 => convert(bytes, f32::from_le_bytes),
            F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Bf16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            _ => return None,
        })
    }
}

/// As safetensors calls it: `BF16`.
impl std::fmt::Display for SourceDType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.in_safetensors().fmt(f)
    }
}

/// Converts each `N` bytes to one number; a file's tensor need not be aligned.
fn convert<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
}

impl From<DType> for SourceDType {
    fn from(dtype: DType) -> SourceDType {
        match dtype {
            DType::F32 => F32,
            DType::Bf16 => Bf16,
            DType::I32 => I32,
            DType::U8 => U8,
        }
    }
}

/// Dtype and shape of one tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type in the file.
    pub dtype: SourceDType,
    /// The dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Size in bytes, or `None` if it does not fit a `usize`.
    pub fn checked_bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d))
    }
}
