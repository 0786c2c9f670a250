//! cuBLAS opened at run time, for its times beside ours.

use std::ffi::{c_int, c_void};

type Handle = *mut c_void;
type Gemm = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// A cuBLAS handle.
pub(crate) struct Cublas {
    handle: Handle,
    gemm: Gemm,
}

/// CUBLAS_OP_N and CUBLAS_OP_T, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT.
const N: c_int = 0;
const T: c_int = 1;
const BF16: c_int = 14;
const COMPUTE_F32: c_int = 68;
const DEFAULT: c_int = -1;

impl Cublas {
    /// cuBLAS on the current context, working in `stream`; `None` where it is not installed.
    pub(crate) fn open(stream: *mut c_void) -> Option<Cublas> {
        let names = [c"libcublas.so.13", c"libcublas.so.12", c"libcublas.so"];
        // SAFETY: libraries by fixed names; they stay open.
        let library = names
            .iter()
            .map(|name| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) })
            .find(|l| !l.is_null())?;
        // SAFETY: the symbols have the types that cublas_v2.h declares.
        unsafe {
            let create = libc::dlsym(library, c"cublasCreate_v2".as_ptr());
            let set_stream = libc::dlsym(library, c"cublasSetStream_v2".as_ptr());
            let gemm = libc::dlsym(library, c"cublasGemmEx".as_ptr());
            if create.is_null() || set_stream.is_null() || gemm.is_null() {
                return None;
            }
            let create: unsafe extern "C" fn(*mut Handle) -> c_int = std::mem::transmute(create);
            let set_stream: unsafe extern "C" fn(Handle, *mut c_void) -> c_int =
                std::mem::transmute(set_stream);
            let mut handle = std::ptr::null_mut();
            if create(&raw mut handle) != 0 || set_stream(handle, stream) != 0 {
                return None;
            }
            Some(Cublas { handle, gemm: std::mem::transmute::<*mut c_void, Gemm>(gemm) })
        }
    }

    /// y `[m, n]` = x `[m, k]` w^T, w `[n, k]`, all bf16 and row-major. Column-major, that is
    /// y^T = w x^T.
    ///
    /// # Safety
    /// The addresses are memory of the device as long as the sizes say, which stays until the
    /// device is done.
    pub(crate) unsafe fn linear(
        &self,
        m: usize,
        n: usize,
        k: usize,
        x: u64,
        w: u64,
        y: u64,
    ) -> bool {
        let (one, zero) = (1f32, 0f32);
        let (m, n, k) = (m as c_int, n as c_int, k as c_int);
        // SAFETY: the caller vouches for the addresses; the two factors are read before this
        // returns.
        let code = unsafe {
            (self.gemm)(
                self.handle,
                T,
                N,
                n,
                m,
                k,
                (&raw const one).cast(),
                w as *const c_void,
                BF16,
                k,
                x as *const c_void,
                BF16,
                k,
                (&raw const zero).cast(),
                y as *mut c_void,
                BF16,
                n,
                COMPUTE_F32,
                DEFAULT,
            )
        };
        code == 0
    }
}
