//! Tile registers: eight of 16 rows of 64 bytes, and the product of two tiles of bf16 added to one
//! of f32. [`Amx`] is the processor's, one instruction an operation; [`Model`] computes the same in
//! plain Rust, so that all that is built on tiles is tested on any machine.
#![cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code))]

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Bytes in a row of a tile: 16 f32, or 32 bf16.
pub(super) const ROW_BYTES: usize = 64;

/// Eight tile registers, by number.
pub(super) trait Tiles {
    /// Loads tile `T` from rows `stride` bytes apart.
    ///
    /// # Safety
    /// 16 rows of 64 bytes must be readable.
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize);

    /// Stores tile `T` to rows `stride` bytes apart.
    ///
    /// # Safety
    /// 16 rows of 64 bytes must be writable.
    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize);

    /// `C[i, j] += sum over t of A[i, 2t] B[t, 2j] + A[i, 2t + 1] B[t, 2j + 1]`: C of f32, A and B
    /// of bf16, B with consecutive terms side by side.
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// Tiles in memory. The sums of even and of odd terms run apart and join at the end, as in the
/// processor's.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Model([[[u32; ROWS]; ROWS]; 8]);

#[cfg(test)]
impl Model {
    /// Tiles of zeros.
    pub(super) fn new() -> Model {
        Model([[[0; ROWS]; ROWS]; 8])
    }
}

#[cfg(test)]
impl Tiles for Model {
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
        for (i, row) in self.0[T].iter_mut().enumerate() {
            // SAFETY: by the contract of `Tiles::load`, 16 rows of 64 bytes are readable, `stride`
            // apart.
            *row = unsafe { p.add(i * stride).cast::<[u32; ROWS]>().read_unaligned() };
        }
    }

    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
        for (i, row) in self.0[T].iter().enumerate() {
            // SAFETY: by the contract of `Tiles::store`, 16 rows of 64 bytes are writable, `stride`
            // apart.
            unsafe { p.add(i * stride).cast::<[u32; ROWS]>().write_unaligned(*row) };
        }
    }

    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let low = |x: u32| f32::from_bits(x << 16);
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        let (a, b) = (self.0[A], self.0[B]);
        for (row, a) in self.0[C].iter_mut().zip(a) {
            for (j, c) in row.iter_mut().enumerate() {
                let (mut even, mut odd) = (0f32, 0f32);
                for (a, b) in a.into_iter().zip(b) {
                    even = low(a).mul_add(low(b[j]), even);
                    odd = high(a).mul_add(high(b[j]), odd);
                }
                *c = (f32::from_bits(*c) + (even + odd)).to_bits();
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use linux::{Amx, available};

/// Without Linux nobody is asked for leave to use the tiles.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
pub(super) fn available() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use super::{ROW_BYTES, ROWS, Tiles};
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// True if the processor has tiles of bf16 and the system lets this process use them.
    pub(crate) fn available() -> bool {
        // Leaf 7, EDX: AMX-BF16 and AMX-TILE. Leaf 1, ECX: the system uses XSAVE.
        const AMX: u32 = 1 << 22 | 1 << 24;
        const OSXSAVE: u32 = 1 << 27;
        if __cpuid_count(0, 0).eax < 7
            || __cpuid_count(7, 0).edx & AMX != AMX
            || __cpuid_count(1, 0).ecx & OSXSAVE == 0
        {
            return false;
        }
        // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), for the whole process. It fails
        // where the kernel does not keep tiles.
        const REQUEST: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: asks for a permission and touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
    }

    /// The operand of `ldtilecfg`: palette 1, and the shape of each tile.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// The tile registers of this thread, all of full size while this value lives.
    #[derive(Debug)]
    pub(crate) struct Amx {
        /// Tiles belong to a thread: not `Send`.
        thread: std::marker::PhantomData<*mut ()>,
    }

    impl Amx {
        /// Takes this thread's tile registers.
        ///
        /// # Safety
        /// They must be [`available`], and this must be the thread's only value.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Amx {
            let mut config = Config {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [0; 16],
                rows: [0; 16],
            };
            config.row_bytes[..8].fill(ROW_BYTES as u16);
            config.rows[..8].fill(ROWS as u8);
            // SAFETY: reads the 64 bytes of `config`.
            unsafe {
                asm!(
                    "ldtilecfg [{}]",
                    in(reg) &config,
                    options(nostack, readonly, preserves_flags),
                );
            }
            Amx { thread: std::marker::PhantomData }
        }
    }

    impl Drop for Amx {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: frees the tile registers, which only values of this type use.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }

    // In all that follows the value proves that the registers are there and configured. No code
    // but this uses them, so they keep their contents from one operation to the next; not being
    // `pure`, operations are neither moved past each other nor dropped.
    impl Tiles for Amx {
        #[inline(always)]
        unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
            // SAFETY: reads 16 rows of 64 bytes, `stride` apart, which the contract of
            // `Tiles::load` has readable, into a register that the value proves to be there.
            unsafe {
                asm!(
                    "tileloadd tmm{t}, [{p} + {stride}*1]",
                    t = const T,
                    p = in(reg) p,
                    stride = in(reg) stride,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }

        #[inline(always)]
        unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
            // SAFETY: writes 16 rows of 64 bytes, `stride` apart, which the contract of
            // `Tiles::store` has writable, from a register that the value proves to be there.
            unsafe {
                asm!(
                    "tilestored [{p} + {stride}*1], tmm{t}",
                    t = const T,
                    p = in(reg) p,
                    stride = in(reg) stride,
                    options(nostack, preserves_flags),
                );
            }
        }

        #[inline(always)]
        fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
            // SAFETY: touches tile registers alone.
            unsafe {
                asm!(
                    "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                    c = const C,
                    a = const A,
                    b = const B,
                    options(nostack, nomem, preserves_flags),
                );
            }
        }
    }
}
