//! Vectors of sixteen f32, and kernels written over them; `simd` tells of the levels.

use crate::base::{Elem, Error, Result, bf16};
use std::any::TypeId;

/// Lanes in a vector, at every level.
pub const LANES: usize = 16;

/// An instruction set, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Portable,
    /// x86-64 AVX2 and FMA.
    Avx2,
    /// x86-64 AVX-512 F, BW and VL.
    Avx512,
    /// The same, and AVX512_BF16: dot products of bf16 pairs.
    Avx512Bf16,
    /// The same, and AMX: products of bf16 tiles.
    Amx,
}

/// Every level by its name in `DUPLEX_CPU`, the weakest first.
const NAMES: [(&str, Level); 5] = [
    ("portable", Level::Portable),
    ("avx2", Level::Avx2),
    ("avx512", Level::Avx512),
    ("avx512bf16", Level::Avx512Bf16),
    ("amx", Level::Amx),
];

impl Level {
    /// Its name in `DUPLEX_CPU`.
    pub fn name(self) -> &'static str {
        NAMES.into_iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }

    /// Parses the value of the environment variable `DUPLEX_CPU`.
    pub fn parse(s: &str) -> Result<Level> {
        match NAMES.into_iter().find(|(name, _)| *name == s) {
            Some((_, level)) => Ok(level),
            None => {
                let names = NAMES.map(|(name, _)| name).join(", ");
                Err(Error::user(format!(
                    "DUPLEX_CPU={s:?} is not known; use one of {names}, or unset it"
                )))
            }
        }
    }
}

/// Code written once for every level. `run` and all it calls must be `#[inline(always)]`, and may
/// not hide work in closures: only inlined code is compiled with the level's instructions.
pub trait Kernel {
    /// True if dot products of bf16 pairs speed the kernel up; only then is it compiled for them.
    const PAIRS: bool = false;
    /// The type that the kernel returns.
    type Out;
    /// Runs at the level of `s`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// True if `E` is f32, false if it is bf16. Known at compile time.
#[inline(always)]
pub(super) fn is_f32<E: Elem>() -> bool {
    assert!(TypeId::of::<E>() == TypeId::of::<f32>() || size_of::<E>() == 2, "f32 or bf16");
    TypeId::of::<E>() == TypeId::of::<f32>()
}

/// Asks for the cache line at `p`, which may be any address, for level 1.
#[inline(always)]
pub(super) fn prefetch<E>(p: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it faults nowhere, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// [`prefetch`] for level 2.
#[inline(always)]
pub(super) fn prefetch_far<E>(p: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it faults nowhere, and every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Operations on vectors of sixteen f32.
pub trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// True if there are 32 registers of a whole vector each, which sets the size of tiles.
    const WIDE: bool;
    /// True if there is an instruction for [`dot_pairs`](Simd::dot_pairs).
    const PAIRS: bool = false;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Loads and widens 16 elements.
    ///
    /// # Safety
    /// `p` must be valid for reading 16 elements.
    unsafe fn load<E: Elem>(self, p: *const E) -> Self::V;
    /// Rounds and stores 16 elements.
    ///
    /// # Safety
    /// `p` must be valid for writing 16 elements.
    unsafe fn store<E: Elem>(self, p: *mut E, v: Self::V);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has an instruction for it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a < b ? a : b`; a NaN on either side gives `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`; a NaN on either side gives `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Rounds to the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for integers `n` in -126..=127; anything for other values.
    fn pow2(self, n: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? x : y` in each lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The sums over the lanes of four vectors, each by the one fixed tree: lanes `l` and `l + 8`,
    /// then `l` and `l + 4`, `l + 2`, `l + 1`.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];

    /// Lane `i` of vector `j` of the result is lane `j` of vector `i`. The bits are kept.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            *row = self.lanes(v);
        }
        let mut columns = v;
        for (j, column) in columns.iter_mut().enumerate() {
            let mut x = [0.0; LANES];
            for (x, row) in x.iter_mut().zip(&rows) {
                *x = row[j];
            }
            *column = self.take(&x);
        }
        columns
    }

    /// Loads `n <= 32` bf16 as sixteen pairs, the missing ones zero: a vector for
    /// [`dot_pairs`](Simd::dot_pairs) only.
    ///
    /// # Safety
    /// `p` must be valid for reading `n` elements.
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const bf16, n: usize) -> Self::V {
        let mut pairs = [[bf16::ZERO; 2]; LANES];
        // SAFETY: the caller has `n` elements readable, and n <= 32, for which there is room.
        unsafe { std::ptr::copy_nonoverlapping(p, pairs.as_mut_ptr().cast(), n) };
        let pairs: [f32; LANES] = bytemuck::cast(pairs);
        // SAFETY: there are 16.
        unsafe { self.load(pairs.as_ptr()) }
    }

    /// Pairs of the first sixteen elements of `a` and of `b`, zero past the end of each.
    #[inline(always)]
    fn zip_pairs(self, a: &[bf16], b: &[bf16]) -> Self::V {
        let mut pairs = [[bf16::ZERO; 2]; LANES];
        for (i, pair) in pairs.iter_mut().enumerate() {
            *pair = [a, b].map(|x| x.get(i).copied().unwrap_or_default());
        }
        let pairs: [f32; LANES] = bytemuck::cast(pairs);
        self.take(&pairs)
    }

    /// `c + a1 b1 + a0 b0` in each lane, for the pairs of bf16 (a0, a1) and (b0, b1) in a lane.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let halves = |v| {
            let bits = self.lanes(v).map(f32::to_bits);
            let low: [f32; LANES] = bits.map(|x| f32::from_bits(x << 16));
            let high: [f32; LANES] = bits.map(|x| f32::from_bits(x & 0xffff_0000));
            [self.take(&low), self.take(&high)]
        };
        let ([a0, a1], [b0, b1]) = (halves(a), halves(b));
        self.fma(a0, b0, self.fma(a1, b1, c))
    }

    /// Loads the first `n < 16` elements; the other lanes are zero.
    ///
    /// # Safety
    /// `p` must be valid for reading `n` elements.
    #[inline(always)]
    unsafe fn load_first<E: Elem>(self, p: *const E, n: usize) -> Self::V {
        let mut buffer = [E::zeroed(); LANES];
        // SAFETY: the caller has `n` elements readable, and n < 16; the buffer has 16, all set.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            self.load(buffer.as_ptr())
        }
    }

    /// Stores the first `n < 16` lanes.
    ///
    /// # Safety
    /// `p` must be valid for writing `n` elements.
    #[inline(always)]
    unsafe fn store_first<E: Elem>(self, p: *mut E, n: usize, v: Self::V) {
        let mut buffer = [E::zeroed(); LANES];
        // SAFETY: the buffer has the 16 elements that `store` writes; the caller has `n` of its own
        // writable, and n < 16.
        unsafe {
            self.store(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }

    /// Loads `n <= 16` elements; the other lanes are zero.
    ///
    /// # Safety
    /// `p` must be valid for reading `n` elements.
    #[inline(always)]
    unsafe fn load_some<E: Elem>(self, p: *const E, n: usize) -> Self::V {
        // SAFETY: the caller has `n` elements readable: 16 where `load` reads 16, else fewer, of
        // which `load_first` reads `n`.
        unsafe { if n == LANES { self.load(p) } else { self.load_first(p, n) } }
    }

    /// Loads the first 16 elements of `x`; lanes past its end are zero.
    #[inline(always)]
    fn take<E: Elem>(self, x: &[E]) -> Self::V {
        // SAFETY: no more is read than there is.
        unsafe { self.load_some(x.as_ptr(), x.len().min(LANES)) }
    }

    /// Stores to the first 16 elements of `x`; lanes past its end are dropped.
    #[inline(always)]
    fn put<E: Elem>(self, x: &mut [E], v: Self::V) {
        // SAFETY: the lengths are checked.
        unsafe {
            if x.len() >= LANES {
                self.store(x.as_mut_ptr(), v);
            } else {
                self.store_first(x.as_mut_ptr(), x.len(), v);
            }
        }
    }

    /// The sum over the lanes by the fixed tree.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        self.sum4([v; 4])[0]
    }

    /// The lanes, the first first.
    #[inline(always)]
    fn lanes(self, v: Self::V) -> [f32; LANES] {
        let mut x = [0.0; LANES];
        self.put(&mut x, v);
        x
    }
}

/// Plain Rust, for any processor.
#[derive(Clone, Copy)]
pub struct Portable(pub(super) ());

/// One lane at a time; the compiler makes vectors of these loops.
#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load<E: Elem>(self, p: *const E) -> Self::V {
        // SAFETY: by the contract of `Simd::load`, 16 elements are readable at `p`.
        let x = unsafe { p.cast::<[E; LANES]>().read_unaligned() };
        std::array::from_fn(|i| x[i].to_f32())
    }
    #[inline(always)]
    unsafe fn store<E: Elem>(self, p: *mut E, v: Self::V) {
        let x: [E; LANES] = std::array::from_fn(|i| E::from_f32(v[i]));
        // SAFETY: by the contract of `Simd::store`, 16 elements are writable at `p`.
        unsafe { p.cast::<[E; LANES]>().write_unaligned(x) };
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Where the baseline has no such instruction, `mul_add` would be a library call a lane.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits((n as i32).wrapping_add(127).wrapping_shl(23) as u32))
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        v.map(|x| {
            let y: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
            let z: [f32; 4] = std::array::from_fn(|i| y[i] + y[i + 4]);
            (z[0] + z[2]) + (z[1] + z[3])
        })
    }
}
