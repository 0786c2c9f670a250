//! The part of NCCL that is used, as one table of functions, filled from the library, which is
//! opened at run time.

use crate::base::DType;
use crate::base::{Error, Result};
use crate::comm::Reduce;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// File names of the library, the first that is found counts.
pub const FILES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];
/// The environment variable that names another file.
pub const VARIABLE: &str = "DUPLEX_NCCL";

/// The call whose errors are those of a machine that is not set up for NCCL.
pub(super) const START: &str = "start";

/// A communicator; a CUDA stream.
pub(super) type Handle = *mut c_void;

/// Results.
const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// Types and reductions.
pub(super) const BYTES: c_int = 1;
const F32: c_int = 7;
const BF16: c_int = 9;
const SUM: c_int = 0;
const MAX: c_int = 2;
/// For `split`: this rank is in none of the new groups.
pub(super) const NO_COLOR: c_int = -1;

/// The id that the ranks of a communicator have in common.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// ncclConfig_t as version 2.14 has it; later fields keep their defaults.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

impl Config {
    /// Calls that come back before they are done, so that no rank is stuck inside one for a rank
    /// that is gone.
    pub(super) fn nonblocking() -> Config {
        Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0 }
    }
}

/// Each line: field, symbol, arguments.
macro_rules! nccl_api {
    ($($field:ident = $symbol:literal ($($arg:ident: $ty:ty),*);)*) => {
        /// NCCL's functions; all return an ncclResult_t.
        pub(super) struct Api {
            $(pub(super) $field: unsafe extern "C" fn($($arg: $ty),*) -> c_int,)*
            error_text: unsafe extern "C" fn(c_int) -> *const c_char,
        }

        impl Api {
            /// Finds all functions by name; an error is the first that is missing.
            fn find(symbol: &dyn Fn(&CStr) -> *mut c_void) -> std::result::Result<Api, &'static str> {
                let find = |name: &'static str| {
                    let symbol = symbol(CStr::from_bytes_with_nul(name.as_bytes()).expect("one nul"));
                    if symbol.is_null() { Err(name.trim_end_matches('\0')) } else { Ok(symbol) }
                };
                // SAFETY: each symbol has the type that nccl.h declares for its name.
                Ok(unsafe { Api {
                    $($field: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> c_int>(
                        find(concat!($symbol, "\0"))?
                    ),)*
                    error_text: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> *const c_char>(
                        find("ncclGetErrorString\0")?
                    ),
                } })
            }
        }
    };
}

nccl_api! {
    unique_id = "ncclGetUniqueId" (id: *mut UniqueId);
    init = "ncclCommInitRankConfig" (comm: *mut Handle, ranks: c_int, id: UniqueId, rank: c_int, config: *mut Config);
    split = "ncclCommSplit" (comm: Handle, color: c_int, key: c_int, new: *mut Handle, config: *mut Config);
    all_reduce = "ncclAllReduce" (from: *const c_void, to: *mut c_void, count: usize, dtype: c_int, by: c_int, comm: Handle, stream: Handle);
    all_gather = "ncclAllGather" (from: *const c_void, to: *mut c_void, count: usize, dtype: c_int, comm: Handle, stream: Handle);
    reduce_scatter = "ncclReduceScatter" (from: *const c_void, to: *mut c_void, count: usize, dtype: c_int, by: c_int, comm: Handle, stream: Handle);
    broadcast = "ncclBroadcast" (from: *const c_void, to: *mut c_void, count: usize, dtype: c_int, root: c_int, comm: Handle, stream: Handle);
    send = "ncclSend" (from: *const c_void, count: usize, dtype: c_int, peer: c_int, comm: Handle, stream: Handle);
    receive = "ncclRecv" (to: *mut c_void, count: usize, dtype: c_int, peer: c_int, comm: Handle, stream: Handle);
    group_start = "ncclGroupStart" ();
    group_end = "ncclGroupEnd" ();
    async_error = "ncclCommGetAsyncError" (comm: Handle, state: *mut c_int);
    abort = "ncclCommAbort" (comm: Handle);
    destroy = "ncclCommDestroy" (comm: Handle);
}

/// The library, opened once.
pub(super) fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    let api = API.get_or_init(|| open(given()));
    api.as_ref().map_err(|e| Error::resource(e.clone()))
}

/// The file that the user names.
pub fn given() -> Option<CString> {
    let file = std::env::var_os(VARIABLE).filter(|file| !file.is_empty())?;
    CString::new(file.into_encoded_bytes()).ok()
}

/// Opens the file that is `given`, or the library by its names.
fn open(given: Option<CString>) -> std::result::Result<Api, String> {
    let files: Vec<&CStr> = match &given {
        Some(file) => vec![file],
        None => FILES.to_vec(),
    };
    let names = || files.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>().join(", ");
    for file in &files {
        // SAFETY: opening a library, whose initialisers any program using it would run; it stays
        // open.
        let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            continue;
        }
        // SAFETY: the library is open and the name ends in a nul.
        let symbol = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
        return Api::find(&symbol).map_err(|name| {
            format!("{} has no {name}: NCCL 2.18 or later is needed", file.to_string_lossy())
        });
    }
    let way_out = match given {
        Some(_) => format!("that is what {VARIABLE} names"),
        None => format!("install it, or name its file in {VARIABLE}"),
    };
    Err(format!("several ranks on cards need NCCL, which was not found as {}; {way_out}", names()))
}

/// NCCL's number of a type.
pub(super) fn dtype(dtype: DType) -> Result<c_int> {
    match dtype {
        DType::F32 => Ok(F32),
        DType::Bf16 => Ok(BF16),
        other => Err(Error::internal(format!("a reduction of {other}"))),
    }
}

/// NCCL's number of a reduction.
pub(super) fn by(by: Reduce) -> c_int {
    match by {
        Reduce::Sum => SUM,
        Reduce::Max => MAX,
    }
}

impl Api {
    /// An error unless `code` says that a call was made, or is being made.
    pub(super) fn check(&self, what: &str, code: c_int) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: the library gives static strings.
        let text = unsafe { (self.error_text)(code).as_ref() };
        // SAFETY: the library's strings are static and end in a nul.
        let text = text.map(|t| unsafe { CStr::from_ptr(t) }.to_string_lossy().into_owned());
        let text = text.unwrap_or_else(|| format!("error {code}"));
        let line = format!("{what}: NCCL reports {text:?}; NCCL_DEBUG=WARN tells more");
        Err(match what {
            START => Error::resource(line),
            _ => {
                Error::stopped(format!("{line}; the same command goes on from the last checkpoint"))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_told_with_what_was_looked_for() {
        let line = |file: &CStr| open(Some(file.into())).err().unwrap();
        let missing = line(c"/nowhere/libnccl.so.2");
        assert!(missing.contains("not found as /nowhere/libnccl.so.2"), "{missing}");
        assert!(missing.contains(VARIABLE), "{missing}");
        let other = line(c"libc.so.6");
        assert!(other.contains("libc.so.6 has no ncclGetUniqueId"), "{other}");
    }
}
