//! Libraries for several ranks, looked for as a program finds them: by name, by the dynamic loader.

use super::finding::Finding;
use crate::comm::nccl;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// A library to look for.
struct Library {
    name: &'static str,
    /// File names, the first that is found counts.
    files: &'static [&'static CStr],
    /// The file that the user names instead.
    given: fn() -> Option<CString>,
    /// The function that tells the version.
    symbol: &'static CStr,
    version: unsafe fn(*mut c_void) -> Option<String>,
}

static LIBRARIES: [Library; 2] = [
    Library {
        name: "NCCL",
        files: &nccl::FILES,
        given: nccl::given,
        symbol: c"ncclGetVersion",
        version: nccl_version,
    },
    Library {
        name: "MPI",
        files: &[c"libmpi.so.40", c"libmpi.so.12", c"libmpi.so"],
        given: || None,
        symbol: c"MPI_Get_library_version",
        version: mpi_version,
    },
];

pub(super) fn look() -> Vec<Finding> {
    LIBRARIES.iter().map(find).collect()
}

fn find(library: &Library) -> Finding {
    let given = (library.given)();
    let files = given.as_deref().map_or(library.files.to_vec(), |file| vec![file]);
    for file in &files {
        // SAFETY: opening a library by a fixed name; it stays open, and its initialisers are those
        // that any program using it would run.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        if handle.is_null() {
            continue;
        }
        // SAFETY: the library is open and the name ends in a nul.
        let function = unsafe { libc::dlsym(handle, library.symbol.as_ptr()) };
        let file = file.to_string_lossy();
        if function.is_null() {
            let text =
                format!("{file} has no {}: not this library", library.symbol.to_string_lossy());
            return Finding::note(library.name, text).with("found", false);
        }
        // SAFETY: the symbol has the type that the library's header declares for its name.
        let version = unsafe { (library.version)(function) };
        let place = path_of(function).unwrap_or_else(|| file.to_string());
        let text = format!("{}, {place}", version.as_deref().unwrap_or("of unknown version"));
        let finding = Finding::ok(library.name, text);
        return finding.with("found", true).with("version", version).with("path", place);
    }
    let names: Vec<_> = files.iter().map(|f| f.to_string_lossy()).collect();
    let text =
        format!("not found by the names {}; only runs of several ranks need it", names.join(", "));
    Finding::ok(library.name, text).with("found", false)
}

/// # Safety
/// `function` must be `ncclGetVersion`.
unsafe fn nccl_version(function: *mut c_void) -> Option<String> {
    let mut version: c_int = 0;
    // SAFETY: by the contract of this function the address is that of `ncclGetVersion`, whose type
    // this is; it writes one int, and the pointer is to a local.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(function);
        get(&raw mut version)
    };
    // 1000 major before version 2.9, 10000 since.
    let (major, minor) = match version {
        v if v < 10_000 => (v / 1000, v % 1000 / 100),
        v => (v / 10_000, v % 10_000 / 100),
    };
    (code == 0).then(|| format!("{major}.{minor}.{}", version % 100))
}

/// # Safety
/// `function` must be `MPI_Get_library_version`, which may be called before `MPI_Init`.
unsafe fn mpi_version(function: *mut c_void) -> Option<String> {
    // The standard's largest is 8192 in the common implementations.
    let mut text = vec![0u8; 16 << 10];
    let mut length: c_int = 0;
    // SAFETY: by the contract of this function the address is that of `MPI_Get_library_version`,
    // whose type this is; it writes a text of at most 8192 bytes, for which there is room, and its
    // length into a local.
    let code = unsafe {
        let get: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int =
            std::mem::transmute(function);
        get(text.as_mut_ptr().cast(), &raw mut length)
    };
    let text = CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned();
    let first = text.split(['\n', ',']).next()?.trim().to_string();
    (code == 0 && !first.is_empty()).then_some(first)
}

/// The file that a function was loaded from.
fn path_of(function: *mut c_void) -> Option<String> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the pointer is to a local of the right type, which zeros make valid.
    let info = unsafe {
        libc::dladdr(function, info.as_mut_ptr());
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's string lives as long as the library, which is never closed.
    Some(unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn a_library_is_found_by_its_name_or_the_names_are_told() {
        let files = &[c"libduplex-none.so"];
        let (symbol, version) = (c"none", nccl_version);
        let none = Library { name: "none", files, given: || None, symbol, version };
        let f = find(&none);
        assert!(f.mark == Mark::Ok && f.text.contains("libduplex-none.so"), "{}", f.text);
        let f = find(&Library { given: || Some(c"/nowhere/libmine.so".into()), ..none });
        assert!(f.text.contains("/nowhere/libmine.so") && !f.text.contains("-none"), "{}", f.text);
        assert_eq!(f.values["found"], false);
    }
}
