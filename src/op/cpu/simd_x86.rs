//! The AVX-512 and AVX2 vectors behind [`super::simd`]. Empty on other processors.
#![cfg(target_arch = "x86_64")]

use super::lanes::{Kernel, LANES, Level, Simd, is_f32};
use crate::base::{Elem, bf16};
use std::arch::x86_64::*;

/// The best level of this processor, and of the system: AMX needs its leave.
pub(super) fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
        (true, true, true) if super::amx::available() => Level::Amx,
        (true, true, true) => Level::Avx512Bf16,
        (true, true, false) => Level::Avx512,
        (true, false, _) => Level::Avx2,
        _ => Level::Portable,
    }
}

pub(super) fn features() -> Vec<(&'static str, bool)> {
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx_bf16", super::amx::available()),
    ]
}

/// AVX-512 F, BW, VL: one register a vector. With `PAIRS` also AVX512_BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const PAIRS: bool>(());

/// AVX2 and FMA: two registers a vector, lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

// In all that follows a token of the type proves that the processor has the instructions: only the
// three functions below make one, and their callers vouch for the processor.

/// Runs `k` with AVX-512 and AVX512_BF16.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, AVX512_BF16 and AVX2, FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn run_avx512bf16<K: Kernel>(k: K) -> K::Out {
    k.run(Avx512::<true>(()))
}

/// Runs `k` with AVX-512.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL and AVX2, FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
pub(super) unsafe fn run_avx512<K: Kernel>(k: K) -> K::Out {
    k.run(Avx512::<false>(()))
}

/// Runs `k` with AVX2 and FMA.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<K: Kernel>(k: K) -> K::Out {
    k.run(Avx2(()))
}

/// The mask of the first `n < 16` lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    debug_assert!(n < LANES);
    (1u16 << n) - 1
}

impl<const PAIRS: bool> Avx512<PAIRS> {
    #[inline(always)]
    fn widen(self, x: __m256i) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
    }

    /// The rounding of `<bf16 as Elem>::from_f32`.
    #[inline(always)]
    fn narrow(self, v: __m512) -> __m256i {
        // SAFETY: the token.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let chosen = _mm512_mask_or_epi32(rounded, nan, bits, quiet);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen))
        }
    }
}

impl<const PAIRS: bool> Simd for Avx512<PAIRS> {
    type V = __m512;
    const WIDE: bool = true;
    const PAIRS: bool = PAIRS;

    #[inline(always)]
    fn transpose(self, mut v: [__m512; LANES]) -> [__m512; LANES] {
        // SAFETY: the token.
        unsafe {
            // Four by four lanes inside each quarter, then four by four quarters.
            for i in [0, 4, 8, 12] {
                let low = _mm512_unpacklo_ps(v[i], v[i + 1]);
                let high = _mm512_unpackhi_ps(v[i], v[i + 1]);
                let next_low = _mm512_unpacklo_ps(v[i + 2], v[i + 3]);
                let next_high = _mm512_unpackhi_ps(v[i + 2], v[i + 3]);
                v[i] = _mm512_shuffle_ps::<0x44>(low, next_low);
                v[i + 1] = _mm512_shuffle_ps::<0xee>(low, next_low);
                v[i + 2] = _mm512_shuffle_ps::<0x44>(high, next_high);
                v[i + 3] = _mm512_shuffle_ps::<0xee>(high, next_high);
            }
            for i in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x44>(v[i], v[i + 4]);
                let high = _mm512_shuffle_f32x4::<0xee>(v[i], v[i + 4]);
                let next_low = _mm512_shuffle_f32x4::<0x44>(v[i + 8], v[i + 12]);
                let next_high = _mm512_shuffle_f32x4::<0xee>(v[i + 8], v[i + 12]);
                v[i] = _mm512_shuffle_f32x4::<0x88>(low, next_low);
                v[i + 4] = _mm512_shuffle_f32x4::<0xdd>(low, next_low);
                v[i + 8] = _mm512_shuffle_f32x4::<0x88>(high, next_high);
                v[i + 12] = _mm512_shuffle_f32x4::<0xdd>(high, next_high);
            }
            v
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const bf16, n: usize) -> __m512 {
        // SAFETY: the token. By the contract of `load_pairs`, `n` elements are readable, and n <=
        // 32; lanes that the mask leaves out are not read.
        unsafe {
            let pairs = if n == 2 * LANES {
                _mm512_loadu_si512(p.cast())
            } else {
                _mm512_maskz_loadu_epi16((1u32 << n) - 1, p.cast())
            };
            _mm512_castsi512_ps(pairs)
        }
    }
    #[inline(always)]
    fn zip_pairs(self, a: &[bf16], b: &[bf16]) -> __m512 {
        // A widened element lies in the upper half of its lane.
        // SAFETY: the token.
        unsafe {
            let first = _mm512_srli_epi32::<16>(_mm512_castps_si512(self.take(a)));
            _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_castps_si512(self.take(b))))
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(PAIRS, "a processor without AVX512_BF16");
        // SAFETY: the token; the types are of the same bits.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            let b = std::mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(c, a, b)
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load<E: Elem>(self, p: *const E) -> __m512 {
        // SAFETY: the token. By the contract of `load`, 16 elements are readable at `p`: 64 bytes
        // of f32, or 32 of bf16.
        unsafe {
            if is_f32::<E>() {
                _mm512_loadu_ps(p.cast())
            } else {
                self.widen(_mm256_loadu_si256(p.cast()))
            }
        }
    }
    #[inline(always)]
    unsafe fn load_first<E: Elem>(self, p: *const E, n: usize) -> __m512 {
        // SAFETY: the token. By the contract of `load_first`, `n` elements are readable; lanes that
        // the mask leaves out are not read.
        unsafe {
            if is_f32::<E>() {
                _mm512_maskz_loadu_ps(first(n), p.cast())
            } else {
                self.widen(_mm256_maskz_loadu_epi16(first(n), p.cast()))
            }
        }
    }
    #[inline(always)]
    unsafe fn store<E: Elem>(self, p: *mut E, v: __m512) {
        // SAFETY: the token. By the contract of `store`, 16 elements are writable at `p`: 64 bytes
        // of f32, or 32 of bf16.
        unsafe {
            if is_f32::<E>() {
                _mm512_storeu_ps(p.cast(), v);
            } else {
                _mm256_storeu_si256(p.cast(), self.narrow(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first<E: Elem>(self, p: *mut E, n: usize, v: __m512) {
        // SAFETY: the token. By the contract of `store_first`, `n` elements are writable; lanes
        // that the mask leaves out are not written.
        unsafe {
            if is_f32::<E>() {
                _mm512_mask_storeu_ps(p.cast(), first(n), v);
            } else {
                _mm256_mask_storeu_epi16(p.cast(), first(n), self.narrow(v));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe {
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe {
            // 0xca: where the first operand has a one, take the second, else the third.
            let sign = _mm512_set1_epi32(i32::MIN);
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xca>(sign, b, a))
        }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: the token.
        unsafe {
            // Quarters of four lanes: a's first two plus its last two, then b's.
            let low = _mm512_shuffle_f32x4::<0x44>(a, b);
            let ab = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(a, b));
            let low = _mm512_shuffle_f32x4::<0x44>(c, d);
            let cd = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0xee>(c, d));
            // One quarter each.
            let even = _mm512_shuffle_f32x4::<0x88>(ab, cd);
            let x = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0x4e>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0xb1>(x));
            let index = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            let x = _mm512_castps512_ps128(_mm512_permutexvar_ps(index, x));
            _mm_storeu_ps(out.as_mut_ptr(), x);
            out
        }
    }
}

impl Avx2 {
    #[inline(always)]
    fn widen(self, x: __m128i) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
    }

    /// The rounding of `<bf16 as Elem>::from_f32`; each result in the low half of its lane.
    #[inline(always)]
    fn narrow(self, v: __m256) -> __m256i {
        // SAFETY: the token.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
        }
    }
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }
    #[inline(always)]
    unsafe fn load<E: Elem>(self, p: *const E) -> Self::V {
        // SAFETY: the token. By the contract of `load`, 16 elements are readable at `p`: two halves
        // of 8.
        unsafe {
            if is_f32::<E>() {
                let p = p.cast::<f32>();
                [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
            } else {
                let p = p.cast::<u16>();
                [
                    self.widen(_mm_loadu_si128(p.cast())),
                    self.widen(_mm_loadu_si128(p.add(8).cast())),
                ]
            }
        }
    }
    #[inline(always)]
    unsafe fn store<E: Elem>(self, p: *mut E, v: Self::V) {
        // SAFETY: the token. By the contract of `store`, 16 elements are writable at `p`: two
        // halves of 8 f32, or 32 bytes of bf16.
        unsafe {
            if is_f32::<E>() {
                let p = p.cast::<f32>();
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            } else {
                let packed = _mm256_packus_epi32(self.narrow(v[0]), self.narrow(v[1]));
                _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0xd8>(packed));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the token.
        unsafe { [_mm256_round_ps::<MODE>(a[0]), _mm256_round_ps::<MODE>(a[1])] }
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n[0]), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n[1]), bias);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            ]
        }
    }
    #[inline(always)]
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [
                _mm256_or_ps(_mm256_andnot_ps(sign, a[0]), _mm256_and_ps(sign, b[0])),
                _mm256_or_ps(_mm256_andnot_ps(sign, a[1]), _mm256_and_ps(sign, b[1])),
            ]
        }
    }
    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: the token.
        unsafe {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the token.
        unsafe {
            let a = _mm256_add_ps(v[0][0], v[0][1]);
            let b = _mm256_add_ps(v[1][0], v[1][1]);
            let c = _mm256_add_ps(v[2][0], v[2][1]);
            let d = _mm256_add_ps(v[3][0], v[3][1]);
            let low = _mm256_permute2f128_ps::<0x20>(a, b);
            let ab = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
            let low = _mm256_permute2f128_ps::<0x20>(c, d);
            let cd = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(c, d));
            let ab = _mm256_add_ps(ab, _mm256_permute_ps::<0x4e>(ab));
            let cd = _mm256_add_ps(cd, _mm256_permute_ps::<0x4e>(cd));
            let ab = _mm256_add_ps(ab, _mm256_permute_ps::<0xb1>(ab));
            let cd = _mm256_add_ps(cd, _mm256_permute_ps::<0xb1>(cd));
            // Lanes a c a c | b d b d.
            let x = _mm256_unpacklo_ps(ab, cd);
            let x = _mm_unpacklo_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), x);
            out
        }
    }
}
