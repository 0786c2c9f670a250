//! The part of NCCL that is used, as one table of functions, filled from the library, which is
//! opened at run time. Types and numbers are those of `cudarc`, which are made from nccl.h.

use crate::base::{DType, Error, Result, functions};
use crate::comm::Reduce;
use cudarc::nccl::sys::{
    self, cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t,
    ncclUniqueId,
};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// File names of the library, the first that is found counts.
pub const FILES: [&CStr; 2] = [c"libnccl.so.2", c"libnccl.so"];
/// The environment variable that names another file.
pub const VARIABLE: &str = "DUPLEX_NCCL";

/// The call whose errors are those of a machine that is not set up for NCCL.
pub(super) const START: &str = "start";

/// An ncclResult_t as a number: a library may give one that no enumeration of ours has.
pub(super) type Code = u32;

const SUCCESS: Code = ncclResult_t::ncclSuccess as Code;
pub(super) const IN_PROGRESS: Code = ncclResult_t::ncclInProgress as Code;
pub(super) const BYTES: ncclDataType_t = ncclDataType_t::ncclUint8;
/// For `split`: this rank is in none of the new groups. A macro of nccl.h, like those below.
pub(super) const NO_COLOR: c_int = -1;
/// The first fields of a configuration; the library chooses the others.
const MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: c_int = c_int::MIN;

/// Calls that come back before they are done, so that no rank is stuck inside one for a rank that
/// is gone. These are the fields of version 2.18; later ones keep their defaults.
pub(super) fn nonblocking() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: MAGIC,
        version: 21_800,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
    }
}

functions! {
    Code = ncclResult_t;
    unique_id = ncclGetUniqueId (id: *mut ncclUniqueId);
    init = ncclCommInitRankConfig (
        comm: *mut ncclComm_t, ranks: c_int, id: ncclUniqueId, rank: c_int,
        config: *mut ncclConfig_t
    );
    split = ncclCommSplit (
        comm: ncclComm_t, color: c_int, key: c_int, new: *mut ncclComm_t, config: *mut ncclConfig_t
    );
    all_reduce = ncclAllReduce (
        from: *const c_void, to: *mut c_void, count: usize, dtype: ncclDataType_t, by: ncclRedOp_t,
        comm: ncclComm_t, stream: cudaStream_t
    );
    all_gather = ncclAllGather (
        from: *const c_void, to: *mut c_void, count: usize, dtype: ncclDataType_t, comm: ncclComm_t,
        stream: cudaStream_t
    );
    reduce_scatter = ncclReduceScatter (
        from: *const c_void, to: *mut c_void, count: usize, dtype: ncclDataType_t, by: ncclRedOp_t,
        comm: ncclComm_t, stream: cudaStream_t
    );
    broadcast = ncclBroadcast (
        from: *const c_void, to: *mut c_void, count: usize, dtype: ncclDataType_t, root: c_int,
        comm: ncclComm_t, stream: cudaStream_t
    );
    send = ncclSend (
        from: *const c_void, count: usize, dtype: ncclDataType_t, peer: c_int, comm: ncclComm_t,
        stream: cudaStream_t
    );
    receive = ncclRecv (
        to: *mut c_void, count: usize, dtype: ncclDataType_t, peer: c_int, comm: ncclComm_t,
        stream: cudaStream_t
    );
    group_start = ncclGroupStart ();
    group_end = ncclGroupEnd ();
    async_error = ncclCommGetAsyncError (comm: ncclComm_t, state: *mut Code);
    abort = ncclCommAbort (comm: ncclComm_t);
    destroy = ncclCommDestroy (comm: ncclComm_t);
    error_text = ncclGetErrorString (code: Code) -> *const c_char;
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
    Err(format!("several ranks on GPUs need NCCL, which was not found as {}; {way_out}", names()))
}

/// NCCL's number of a type.
pub(super) fn dtype(dtype: DType) -> Result<ncclDataType_t> {
    match dtype {
        DType::F32 => Ok(ncclDataType_t::ncclFloat32),
        DType::Bf16 => Ok(ncclDataType_t::ncclBfloat16),
        other => Err(Error::internal(format!("a reduction of {other}"))),
    }
}

/// NCCL's number of a reduction.
pub(super) fn by(by: Reduce) -> ncclRedOp_t {
    match by {
        Reduce::Sum => ncclRedOp_t::ncclSum,
        Reduce::Max => ncclRedOp_t::ncclMax,
    }
}

impl Api {
    /// An error unless `code` says that a call was made, or is being made.
    pub(super) fn check(&self, what: &str, code: Code) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: the library gives static strings.
        let text = unsafe { (self.error_text)(code).as_ref() };
        // SAFETY: the library's strings are static and end in a nul.
        let text = text.map(|t| unsafe { CStr::from_ptr(t) }.to_string_lossy().into_owned());
        let text = text.unwrap_or_else(|| format!("error {code}"));
        let line = format!("{what}: NCCL reports {text:?}; NCCL_DEBUG=WARN shows more");
        Err(match what {
            START => Error::resource(line),
            _ => {
                Error::stopped(format!("{line}; the same command resumes from the last checkpoint"))
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
