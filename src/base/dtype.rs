//! Element types.

use crate::base::{Error, Result};
use half::bf16;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// 32-bit signed integer: token ids, positions, offsets.
    I32,
    /// Bytes: codes of quantised optimizer state.
    U8,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// True if elements are floating-point numbers, not indices or codes.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16)
    }

    /// The name used in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }

    /// Parses a training dtype as written in flags and configs.
    pub fn parse(s: &str) -> Result<DType> {
        match s {
            "f32" | "fp32" | "float32" => Ok(DType::F32),
            "bf16" | "bfloat16" => Ok(DType::Bf16),
            _ => Err(Error::user(format!("dtype {s:?} is not supported; use f32 or bf16"))),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A float storage type; all arithmetic is done in f32.
pub trait Elem: Copy + Send + Sync + bytemuck::Pod + 'static {
    /// The matching runtime tag.
    const DTYPE: DType;
    /// Widens to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds from f32 to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Elem for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Elem for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // A NaN must stay one: the rounding addition could carry it into infinity or wrap.
        let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        bf16::from_bits((bits >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_like_the_half_crate() {
        let mut rng = crate::base::Rng::new(7, 0);
        for _ in 0..100_000 {
            let x = f32::from_bits(rng.next_u32());
            let (a, b) = (<bf16 as Elem>::from_f32(x), bf16::from_f32(x));
            assert!(a == b || (a.is_nan() && b.is_nan()), "{x} {a} {b}");
        }
    }
}
