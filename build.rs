//! Build script. Without features it compiles nothing: the CPU backend is plain Rust. `emulator`
//! compiles the CUDA kernels for the host, `cuda` with nvcc for the GPU.
//!
//! Environment: `DUPLEX_SANITIZE` (build/emulator.rs); `DUPLEX_NVCC`, `DUPLEX_CUDA_ARCHS`
//! (build/cuda.rs); `DUPLEX_WRITE_RESOURCES`, `DUPLEX_STRICT` (build/resources.rs).
//!
//! `$OUT_DIR/fatbins.rs` is always there: the list of what `cuda` compiled.

#[path = "build/compile.rs"]
mod compile;
#[path = "build/constants.rs"]
mod constants;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/params.rs"]
mod params;
#[path = "build/resources.rs"]
mod resources;

use std::path::{Path, PathBuf};

/// Text for the user where something went wrong; it may have many lines.
type Result<T> = std::result::Result<T, String>;

/// Environment variables that the build depends on.
const VARIABLES: [&str; 9] = [
    "CI",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "DUPLEX_CUDA_ARCHS",
    "DUPLEX_NVCC",
    "DUPLEX_SANITIZE",
    "DUPLEX_STRICT",
    "DUPLEX_WRITE_RESOURCES",
];

fn main() {
    // Cargo is told only when all went well: of a script that fails it shows all output, and the
    // error alone is of use.
    let mut notes = Vec::new();
    if let Err(message) = run(&mut notes) {
        eprintln!("\n{}\n", message.trim_end());
        std::process::exit(1);
    }
    notes.extend(["build.rs", "build", "cuda"].map(|path| format!("rerun-if-changed={path}")));
    notes.extend(VARIABLES.map(|name| format!("rerun-if-env-changed={name}")));
    notes.iter().for_each(|note| println!("cargo:{note}"));
}

/// `notes` are lines for cargo: libraries to link, warnings to show.
fn run(notes: &mut Vec<String>) -> Result<()> {
    let out = env("OUT_DIR").ok_or("OUT_DIR is not set: this is run by cargo")?;
    let out = Path::new(&out);
    params::write(out, &constants::write(out)?)?;
    match (env("CARGO_FEATURE_EMULATOR"), env("DUPLEX_SANITIZE")) {
        (Some(_), sanitize) => emulator::build(out, sanitize.as_deref(), notes)?,
        (None, Some(_)) => return Err("DUPLEX_SANITIZE needs --features emulator".into()),
        (None, None) => {}
    }
    let fatbins = match env("CARGO_FEATURE_CUDA") {
        Some(_) => cuda::build(out, notes)?,
        None => Vec::new(),
    };
    write(&out.join("fatbins.rs"), &cuda::list(&fatbins))
}

/// Directories of kernels and their headers; names of structs must differ between them.
const KERNELS: [&str; 4] = ["cuda/lib", "cuda/op", "cuda/ptx", "cuda/tile"];

/// The text of every kernel and header, by path.
fn sources() -> Result<Vec<(PathBuf, String)>> {
    let mut found = vec![];
    for dir in KERNELS {
        let entries = std::fs::read_dir(dir).map_err(|e| format!("{dir}: {e}"))?;
        found.extend(entries.filter_map(|e| e.ok().map(|e| e.path())));
    }
    found.sort();
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(e) => Err(format!("{}: {e}", path.display())),
    };
    found.into_iter().map(read).collect()
}

/// A variable that is set and not empty.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Writes a file unless it already has this text.
fn write(path: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
