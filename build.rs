//! Build script. Without features it compiles nothing: the CPU backend is plain Rust. `emulator` compiles the CUDA
//! kernels for the host, `cuda` with nvcc for the GPU.
//!
//! Environment: `DUPLEX_SANITIZE` (build/emulator.rs); `DUPLEX_NVCC`, `DUPLEX_CUDA_ARCHS` (build/cuda.rs);
//! `DUPLEX_WRITE_RESOURCES`, `DUPLEX_STRICT` (build/resources.rs).

#[path = "build/compile.rs"]
mod compile;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/resources.rs"]
mod resources;

use std::path::Path;

/// Text for the user where something went wrong; it may have many lines.
type Result<T> = std::result::Result<T, String>;

fn main() {
    for path in ["build.rs", "build", "cuda"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if let Err(message) = run() {
        eprintln!("\n{}\n", message.trim_end());
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let out = env("OUT_DIR").ok_or("OUT_DIR is not set: this is run by cargo")?;
    let out = Path::new(&out);
    match (env("CARGO_FEATURE_EMULATOR"), env("DUPLEX_SANITIZE")) {
        (Some(_), sanitize) => emulator::build(out, sanitize.as_deref())?,
        (None, Some(_)) => return Err("DUPLEX_SANITIZE needs --features emulator".into()),
        (None, None) => {}
    }
    let fatbins = match env("CARGO_FEATURE_CUDA") {
        Some(_) => cuda::build(out)?,
        None => Vec::new(),
    };
    write(&out.join("fatbins.rs"), &cuda::list(&fatbins))
}

/// A variable that is set and not empty. Cargo runs this script again when it changes.
fn env(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Writes a file unless it already has this text.
fn write(path: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
