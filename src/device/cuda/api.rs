//! The part of the CUDA driver API that is used, as one table of functions. It is filled from
//! `libcuda.so.1`, opened at run time, or from the emulator (`cuda/emu/driver.cpp`), which exports
//! the same functions: everything above this table is the same code on both. Types and numbers are
//! those of `cudarc`, which are made from cuda.h.

use crate::base::functions;
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphExec, CUmemPool_attribute, CUmemoryPool, CUmodule,
    CUresult, CUstream, CUstreamCaptureMode,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

/// A CUresult as a number: a driver may give one that no enumeration of ours has.
pub(super) type Code = u32;

/// Success.
pub(super) const SUCCESS: Code = CUresult::CUDA_SUCCESS as Code;
pub(super) const NOT_READY: Code = CUresult::CUDA_ERROR_NOT_READY as Code;
pub(super) const OUT_OF_MEMORY: Code = CUresult::CUDA_ERROR_OUT_OF_MEMORY as Code;
/// Codes after which a process cannot use the device any more.
pub(super) const LOST: [Code; 12] = [
    CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE as Code,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE as Code,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as Code,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT as Code,
    CUresult::CUDA_ERROR_ASSERT as Code,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR as Code,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION as Code,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS as Code,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE as Code,
    CUresult::CUDA_ERROR_INVALID_PC as Code,
    CUresult::CUDA_ERROR_LAUNCH_FAILED as Code,
    CUresult::CUDA_ERROR_UNKNOWN as Code,
];

functions! {
    emulated "emu_";
    Code = CUresult;
    init = cuInit (flags: c_uint);
    driver_version = cuDriverGetVersion (version: *mut c_int);
    device_count = cuDeviceGetCount (count: *mut c_int);
    device_get = cuDeviceGet (device: *mut CUdevice, ordinal: c_int);
    device_name = cuDeviceGetName (name: *mut c_char, len: c_int, device: CUdevice);
    device_attribute = cuDeviceGetAttribute (
        value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice
    );
    device_memory = cuDeviceTotalMem_v2 (bytes: *mut usize, device: CUdevice);
    context_retain = cuDevicePrimaryCtxRetain (context: *mut CUcontext, device: CUdevice);
    context_set = cuCtxSetCurrent (context: CUcontext);
    stream_create = cuStreamCreate (stream: *mut CUstream, flags: c_uint);
    stream_synchronize = cuStreamSynchronize (stream: CUstream);
    stream_wait = cuStreamWaitEvent (stream: CUstream, event: CUevent, flags: c_uint);
    event_create = cuEventCreate (event: *mut CUevent, flags: c_uint);
    event_destroy = cuEventDestroy_v2 (event: CUevent);
    event_record = cuEventRecord (event: CUevent, stream: CUstream);
    event_query = cuEventQuery (event: CUevent);
    event_synchronize = cuEventSynchronize (event: CUevent);
    event_elapsed = cuEventElapsedTime (ms: *mut f32, start: CUevent, end: CUevent);
    pool_default = cuDeviceGetDefaultMemPool (pool: *mut CUmemoryPool, device: CUdevice);
    pool_set = cuMemPoolSetAttribute (
        pool: CUmemoryPool, attribute: CUmemPool_attribute, value: *mut c_void
    );
    memory_alloc = cuMemAllocAsync (address: *mut CUdeviceptr, bytes: usize, stream: CUstream);
    memory_free = cuMemFreeAsync (address: CUdeviceptr, stream: CUstream);
    host_register = cuMemHostRegister_v2 (host: *mut c_void, bytes: usize, flags: c_uint);
    host_unregister = cuMemHostUnregister (host: *mut c_void);
    copy_in = cuMemcpyHtoDAsync_v2 (
        to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream
    );
    copy_out = cuMemcpyDtoHAsync_v2 (
        to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream
    );
    copy = cuMemcpyDtoDAsync_v2 (
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream
    );
    fill = cuMemsetD8Async (to: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    module_load = cuModuleLoadData (module: *mut CUmodule, image: *const c_void);
    module_function = cuModuleGetFunction (
        function: *mut CUfunction, module: CUmodule, name: *const c_char
    );
    function_set = cuFuncSetAttribute (
        function: CUfunction, attribute: CUfunction_attribute, value: c_int
    );
    launch = cuLaunchKernel (
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, shared: c_uint, stream: CUstream,
        params: *mut *mut c_void, extra: *mut *mut c_void
    );
    capture_begin = cuStreamBeginCapture_v2 (stream: CUstream, mode: CUstreamCaptureMode);
    capture_end = cuStreamEndCapture (stream: CUstream, graph: *mut CUgraph);
    graph_instantiate = cuGraphInstantiateWithFlags (
        exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong
    );
    graph_launch = cuGraphLaunch (exec: CUgraphExec, stream: CUstream);
    graph_exec_destroy = cuGraphExecDestroy (exec: CUgraphExec);
    graph_destroy = cuGraphDestroy (graph: CUgraph);
    error_name = cuGetErrorName (code: Code, text: *mut *const c_char);
    error_text = cuGetErrorString (code: Code, text: *mut *const c_char);
}

impl Api {
    /// Opens libcuda. An error says in a few words what is missing.
    pub(super) fn open() -> Result<Api, String> {
        // SAFETY: opening a library by its fixed name; it stays open for the life of the process.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err("no NVIDIA driver: libcuda.so.1 was not found".into());
        }
        // SAFETY: the library is open and the name ends in a nul.
        let symbol = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
        Api::find(&symbol)
            .map_err(|name| format!("the NVIDIA driver is too old: libcuda has no {name}"))
    }

    /// The driver's name and description of an error code.
    pub(super) fn describe(&self, code: Code) -> String {
        let text = |f: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: the driver sets the pointer to a static string, or leaves it null.
            unsafe {
                f(code, &raw mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = text(self.error_name).unwrap_or_else(|| format!("error {code}"));
        match text(self.error_text) {
            Some(detail) => format!("{name} ({detail})"),
            None => name,
        }
    }
}

/// The emulator's message for the last error on this thread.
#[cfg(feature = "emulator")]
pub(super) fn emulator_error() -> String {
    unsafe extern "C" {
        fn emu_last_error() -> *const c_char;
    }
    // SAFETY: the emulator returns a string of this thread that stays until its next error.
    unsafe {
        let text = emu_last_error();
        if text.is_null() {
            String::new()
        } else {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}
