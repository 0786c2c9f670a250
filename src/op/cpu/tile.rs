//! The two products of attention on small tiles that sit in the caches: `dots` (scores) and `mix`
//! (weighted sums of rows). Each output element is reduced in one order whatever the tile around
//! it, so results do not depend on how rows are grouped. Not a general matrix product.

use crate::base::Elem;
use crate::op::cpu::simd::{LANES, Simd};

/// Rows of `d` elements, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    data: &'a [E],
    stride: usize,
    n: usize,
    d: usize,
}

impl<'a, E> Rows<'a, E> {
    /// The first `n` rows of `d` elements in `data`.
    pub(super) fn new(data: &'a [E], stride: usize, n: usize, d: usize) -> Rows<'a, E> {
        assert!(n == 0 || (n - 1) * stride + d <= data.len(), "{n} rows of {d} by {stride}");
        Rows { data, stride, n, d }
    }

    /// Address of element `k` of row `i`.
    ///
    /// # Safety
    /// `i < n` and `k <= d`.
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const E {
        // SAFETY: `new` checked that all rows are inside.
        unsafe { self.data.as_ptr().add(i * self.stride + k) }
    }
}

/// `out[i * ld + j] = a_i . b_j`: lanes over the row, then the fixed tree over the lanes.
#[inline(always)]
pub(super) fn dots<S: Simd, E: Elem>(
    s: S,
    a: Rows<'_, f32>,
    b: Rows<'_, E>,
    out: &mut [f32],
    ld: usize,
) {
    assert!(a.d == b.d && b.n <= ld && out.len() >= a.n * ld);
    let mut j = 0;
    while j < b.n {
        let four = b.n - j >= 4;
        let mut i = 0;
        while i < a.n {
            // SAFETY: the rows i.. and j.. of the tile exist, as the conditions say.
            i += unsafe {
                match (four, S::WIDE && a.n - i >= 4) {
                    (true, true) => dots_tile::<S, E, 4, 4>(s, a, b, i, j, out, ld),
                    (true, false) => dots_tile::<S, E, 1, 4>(s, a, b, i, j, out, ld),
                    (false, _) => dots_tile::<S, E, 1, 1>(s, a, b, i, j, out, ld),
                }
            };
        }
        j += if four { 4 } else { 1 };
    }
}

/// The products of rows `i..i + M` and `j..j + N`; returns `M`.
///
/// # Safety
/// The rows must exist.
#[inline(always)]
unsafe fn dots_tile<S: Simd, E: Elem, const M: usize, const N: usize>(
    s: S,
    a: Rows<'_, f32>,
    b: Rows<'_, E>,
    i: usize,
    j: usize,
    out: &mut [f32],
    ld: usize,
) -> usize {
    let mut acc = [[s.splat(0.0); N]; M];
    let whole = a.d / LANES * LANES;
    let mut k = 0;
    while k < a.d {
        let mut bv = [s.splat(0.0); N];
        for (n, bv) in bv.iter_mut().enumerate() {
            // SAFETY: the row exists and has d - k elements left.
            *bv = unsafe { load(s, b.at(j + n, k), k < whole, a.d - k) };
        }
        for (m, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the row exists and has d - k elements left.
            let av = unsafe { load(s, a.at(i + m, k), k < whole, a.d - k) };
            for (acc, bv) in acc.iter_mut().zip(bv) {
                *acc = s.fma(av, bv, *acc);
            }
        }
        k += LANES;
    }
    for (m, acc) in acc.iter().enumerate() {
        let sums = s.sum4(std::array::from_fn(|n| acc[n.min(N - 1)]));
        out[(i + m) * ld + j..][..N].copy_from_slice(&sums[..N]);
    }
    M
}

/// Sixteen elements, or the `left` first.
///
/// # Safety
/// They must be readable at `p`.
#[inline(always)]
unsafe fn load<S: Simd, E: Elem>(s: S, p: *const E, whole: bool, left: usize) -> S::V {
    // SAFETY: the caller has 16 elements readable at `p` if `whole`, else `left`, which are fewer.
    unsafe { if whole { s.load(p) } else { s.load_first(p, left) } }
}

/// Coefficients: element `(i, j)` is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

/// `c_i += sum over j of a(i, j) b_j`, in order of `j`, for `m` rows of `c`, each `b.d` long.
#[inline(always)]
pub(super) fn mix<S: Simd, E: Elem>(
    s: S,
    c: &mut [f32],
    m: usize,
    a: Coefficients<'_>,
    b: Rows<'_, E>,
) {
    if m == 0 || b.n == 0 {
        return;
    }
    assert!(c.len() >= m * b.d && a.data.len() > (m - 1) * a.row + (b.n - 1) * a.column);
    let mut k = 0;
    while k < b.d {
        let vectors = (b.d - k) / LANES;
        let wide = if S::WIDE { 4 } else { 2 };
        let mut i = 0;
        while i < m {
            let four = m - i >= 4;
            // SAFETY: rows i.. of c and columns k.. exist, as the conditions say.
            i += unsafe {
                match (S::WIDE, vectors >= wide, four) {
                    (true, true, true) => mix_tile::<S, E, 4, 4>(s, c, i, k, a, b),
                    (true, true, false) => mix_tile::<S, E, 1, 4>(s, c, i, k, a, b),
                    (false, true, _) => mix_tile::<S, E, 1, 2>(s, c, i, k, a, b),
                    (_, false, true) => mix_tile::<S, E, 4, 1>(s, c, i, k, a, b),
                    (_, false, false) => mix_tile::<S, E, 1, 1>(s, c, i, k, a, b),
                }
            };
        }
        k += LANES * if vectors >= wide { wide } else { 1 };
    }
}

/// Rows `i..i + M`, columns `k..k + 16 N` (for `N` 1, as many of them as there are); returns `M`.
///
/// # Safety
/// The rows and, for `N > 1`, the columns must exist.
#[inline(always)]
unsafe fn mix_tile<S: Simd, E: Elem, const M: usize, const N: usize>(
    s: S,
    c: &mut [f32],
    i: usize,
    k: usize,
    a: Coefficients<'_>,
    b: Rows<'_, E>,
) -> usize {
    let left = b.d - k;
    let whole = N > 1 || left >= LANES;
    let c = c[i * b.d + k..].as_mut_ptr();
    let mut acc = [[s.splat(0.0); N]; M];
    for (m, acc) in acc.iter_mut().enumerate() {
        for (n, acc) in acc.iter_mut().enumerate() {
            // SAFETY: row i + m of c exists, with these columns.
            *acc = unsafe { load(s, c.add(m * b.d + n * LANES), whole, left) };
        }
    }
    for j in 0..b.n {
        let mut bv = [s.splat(0.0); N];
        for (n, bv) in bv.iter_mut().enumerate() {
            // SAFETY: row j of b exists, with these columns.
            *bv = unsafe { load(s, b.at(j, k + n * LANES), whole, left) };
        }
        for (m, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `mix` checked the last coefficient.
            let av = s.splat(unsafe { *a.data.get_unchecked((i + m) * a.row + j * a.column) });
            for (acc, bv) in acc.iter_mut().zip(bv) {
                *acc = s.fma(av, bv, *acc);
            }
        }
    }
    for (m, acc) in acc.iter().enumerate() {
        for (n, acc) in acc.iter().enumerate() {
            // SAFETY: row i + m of c exists, with these columns.
            unsafe {
                let p = c.add(m * b.d + n * LANES);
                if whole { s.store(p, *acc) } else { s.store_first(p, left, *acc) }
            }
        }
    }
    M
}
