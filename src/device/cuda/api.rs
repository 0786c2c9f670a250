//! The part of the CUDA driver API that is used, as one table of functions. It is filled from
//! `libcuda.so.1`, opened at run time, or from the emulator (`cuda/emu/driver.cpp`), which exports
//! the same functions: everything above this table is the same code on both.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// An opaque handle of the driver: context, stream, event, module, function, graph.
pub(super) type Handle = *mut c_void;

/// Success.
pub(super) const SUCCESS: c_int = 0;
/// CUDA_ERROR_NOT_READY.
pub(super) const NOT_READY: c_int = 600;
/// CUDA_ERROR_OUT_OF_MEMORY.
pub(super) const OUT_OF_MEMORY: c_int = 2;
/// Codes after which a process cannot use the device any more: it is not available (46), memory
/// errors that cannot be corrected (214), illegal address (700), launch timed out (702), assert
/// (710), hardware stack error, illegal instruction, misaligned address, invalid address space,
/// invalid program counter (714 to 718), launch failed (719), unknown (999).
pub(super) const LOST: [c_int; 12] = [46, 214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999];

/// Each line: field, symbol in libcuda, arguments.
macro_rules! driver_api {
    ($($field:ident = $symbol:literal ($($arg:ident: $ty:ty),*);)*) => {
        /// The driver's functions; all return a CUresult.
        pub(super) struct Api {
            $(pub(super) $field: unsafe extern "C" fn($($arg: $ty),*) -> c_int,)*
        }

        impl Api {
            /// Finds all functions by name; an error names the first that is missing.
            fn find(symbol: &dyn Fn(&CStr) -> *mut c_void) -> Result<Api, &'static str> {
                $(
                    let name = concat!($symbol, "\0").as_bytes();
                    let $field = symbol(CStr::from_bytes_with_nul(name).expect("one nul"));
                    if $field.is_null() {
                        return Err($symbol);
                    }
                )*
                // SAFETY: each symbol has the type that cuda.h declares for its name.
                Ok(unsafe { Api { $($field: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> c_int>($field),)* } })
            }

            /// The emulator's functions.
            #[cfg(feature = "emulator")]
            pub(super) fn emulated() -> Api {
                unsafe extern "C" {
                    $(#[link_name = concat!("emu_", $symbol)] fn $field($($arg: $ty),*) -> c_int;)*
                }
                Api { $($field,)* }
            }
        }
    };
}

driver_api! {
    init = "cuInit" (flags: c_uint);
    driver_version = "cuDriverGetVersion" (version: *mut c_int);
    device_count = "cuDeviceGetCount" (count: *mut c_int);
    device_get = "cuDeviceGet" (device: *mut c_int, ordinal: c_int);
    device_name = "cuDeviceGetName" (name: *mut c_char, len: c_int, device: c_int);
    device_attribute = "cuDeviceGetAttribute" (value: *mut c_int, attribute: c_int, device: c_int);
    device_memory = "cuDeviceTotalMem_v2" (bytes: *mut usize, device: c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (context: *mut Handle, device: c_int);
    context_set = "cuCtxSetCurrent" (context: Handle);
    stream_create = "cuStreamCreate" (stream: *mut Handle, flags: c_uint);
    stream_synchronize = "cuStreamSynchronize" (stream: Handle);
    stream_wait = "cuStreamWaitEvent" (stream: Handle, event: Handle, flags: c_uint);
    event_create = "cuEventCreate" (event: *mut Handle, flags: c_uint);
    event_destroy = "cuEventDestroy_v2" (event: Handle);
    event_record = "cuEventRecord" (event: Handle, stream: Handle);
    event_query = "cuEventQuery" (event: Handle);
    event_synchronize = "cuEventSynchronize" (event: Handle);
    event_elapsed = "cuEventElapsedTime" (ms: *mut f32, start: Handle, end: Handle);
    pool_default = "cuDeviceGetDefaultMemPool" (pool: *mut Handle, device: c_int);
    pool_set = "cuMemPoolSetAttribute" (pool: Handle, attribute: c_int, value: *mut c_void);
    memory_alloc = "cuMemAllocAsync" (address: *mut u64, bytes: usize, stream: Handle);
    memory_free = "cuMemFreeAsync" (address: u64, stream: Handle);
    host_register = "cuMemHostRegister_v2" (host: *mut c_void, bytes: usize, flags: c_uint);
    host_unregister = "cuMemHostUnregister" (host: *mut c_void);
    copy_in = "cuMemcpyHtoDAsync_v2" (to: u64, from: *const c_void, bytes: usize, stream: Handle);
    copy_out = "cuMemcpyDtoHAsync_v2" (to: *mut c_void, from: u64, bytes: usize, stream: Handle);
    copy = "cuMemcpyDtoDAsync_v2" (to: u64, from: u64, bytes: usize, stream: Handle);
    fill = "cuMemsetD8Async" (to: u64, value: u8, bytes: usize, stream: Handle);
    module_load = "cuModuleLoadData" (module: *mut Handle, image: *const c_void);
    module_function = "cuModuleGetFunction" (function: *mut Handle, module: Handle, name: *const c_char);
    function_set = "cuFuncSetAttribute" (function: Handle, attribute: c_int, value: c_int);
    launch = "cuLaunchKernel" (function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void);
    capture_begin = "cuStreamBeginCapture_v2" (stream: Handle, mode: c_int);
    capture_end = "cuStreamEndCapture" (stream: Handle, graph: *mut Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags" (exec: *mut Handle, graph: Handle, flags: u64);
    graph_launch = "cuGraphLaunch" (exec: Handle, stream: Handle);
    graph_exec_destroy = "cuGraphExecDestroy" (exec: Handle);
    graph_destroy = "cuGraphDestroy" (graph: Handle);
    error_name = "cuGetErrorName" (code: c_int, text: *mut *const c_char);
    error_text = "cuGetErrorString" (code: c_int, text: *mut *const c_char);
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
    pub(super) fn describe(&self, code: c_int) -> String {
        let text = |f: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
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
