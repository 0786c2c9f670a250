//! Parameters of the kernels, as `cuda/` declares them: addresses are u64. The build script makes
//! the structs from the declarations there (`build/params.rs`), so that both sides agree.

/// A struct that a kernel takes by value.
///
/// # Safety
/// Its layout is that of the kernel's declaration.
pub unsafe trait KernelParams: bytemuck::Pod {}

include!(concat!(env!("OUT_DIR"), "/params.rs"));
