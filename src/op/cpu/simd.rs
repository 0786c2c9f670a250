//! Sixteen-lane f32 vectors at three levels (AVX-512, AVX2 with FMA, portable), chosen at run time.
//! A kernel is written once over [`Simd`] and compiled for every level. Two levels more differ in
//! products of bf16 matrices alone. This is not a general vector library: it holds what the CPU
//! kernels use.
//!
//! A value of a type implementing [`Simd`] proves that the processor has the level's instructions;
//! only [`dispatch`] makes one.

pub use super::lanes::{Kernel, LANES, Level, Portable, Simd};
pub(super) use super::lanes::{is_f32, prefetch, prefetch_far};
use std::sync::OnceLock;

impl Level {
    /// The best level of this processor.
    pub fn detected() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            static FOUND: OnceLock<Level> = OnceLock::new();
            *FOUND.get_or_init(super::simd_x86::detect)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Level::Portable
    }
}

/// The instruction sets that levels are made of, by their usual names, and whether this process may
/// use them. None where there is only [`Level::Portable`].
pub fn features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        super::simd_x86::features()
    }
    #[cfg(not(target_arch = "x86_64"))]
    vec![]
}

/// The level in use: the processor's best, masked downward by `DUPLEX_CPU` (see [`Level::parse`]
/// for checking it). The variable is read once.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let asked = std::env::var("DUPLEX_CPU").ok().and_then(|s| Level::parse(&s).ok());
        asked.map_or(Level::detected(), |l| l.min(Level::detected()))
    })
}

/// Runs `kernel` at `level`, or at the best level below it that this processor has.
pub fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    match level.min(Level::detected()) {
        found @ (Level::Avx512 | Level::Avx512Bf16 | Level::Amx) => {
            if K::PAIRS && found > Level::Avx512 {
                // SAFETY: the processor was just found to have these instructions.
                return unsafe { super::simd_x86::run_avx512bf16(kernel) };
            }
            // SAFETY: the processor was just found to have the instructions of this level.
            return unsafe { super::simd_x86::run_avx512(kernel) };
        }
        // SAFETY: the processor was just found to have the instructions of this level.
        Level::Avx2 => return unsafe { super::simd_x86::run_avx2(kernel) },
        Level::Portable => {}
    }
    let _ = level;
    kernel.run(Portable(()))
}
