//! Constants of the kernels, as `cuda/` declares them: tiles, sizes of blocks, limits, flags,
//! numbers of kinds. The build script makes them from the declarations there
//! (`build/constants.rs`), a module per file, so that both sides agree.

// Casts of values to the type they already have, which are simpler to make than to avoid.
#![allow(clippy::unnecessary_cast, unused_parens)]
// C spells constants out that Rust has by name.
#![allow(clippy::approx_constant, clippy::excessive_precision)]

include!(concat!(env!("OUT_DIR"), "/constants.rs"));
