//! Host memory of buffers: whole pages of the system, zero until they are touched, and huge ones
//! where there are such. Weights and activations are read in long runs, which small pages slow
//! down.

/// `bytes` zeroed bytes, aligned to a page; `None` where there is no such memory.
pub(super) fn alloc(bytes: usize) -> Option<*mut u8> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
    // SAFETY: a new mapping at an address of the system's choice.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    if ptr == libc::MAP_FAILED {
        return None;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: advice on the mapping just made; where it is not taken nothing changes.
    unsafe {
        libc::madvise(ptr, bytes, libc::MADV_HUGEPAGE);
    }
    Some(ptr.cast())
}

/// Gives memory back.
///
/// # Safety
/// It must come from [`alloc`] with the same size, and not be used any more.
pub(super) unsafe fn free(ptr: *mut u8, bytes: usize) {
    // SAFETY: by the contract of this function, address and length are those of one mapping that
    // `alloc` made, and nobody uses it any more.
    unsafe { libc::munmap(ptr.cast(), bytes) };
}
