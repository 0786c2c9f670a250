//! Kernels compiled by nvcc into one fatbin per source, to be embedded: machine code for each
//! architecture, and PTX that a driver compiles for cards these do not cover.
//!
//! `DUPLEX_NVCC` names the compiler; `DUPLEX_CUDA_ARCHS="80 90a"` narrows the list of
//! architectures.

use crate::compile::{self, Unit};
use crate::{Result, env, resources};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const ARCHS: [&str; 3] = ["80", "90", "90a"];
/// PTX is kept for this one alone: later cards run it, earlier ones are not supported.
const PTX_ARCH: &str = "80";

/// Compressed for size: with its line numbers the code of all architectures is 56 MB, an eighth of
/// that in the binary.
const FLAGS: &str =
    "-std=c++17 -O3 --fmad=false -lineinfo -I cuda -Xptxas -v --fatbin --compress-mode=size";

/// Compiles every source; returns the fatbins.
pub(crate) fn build(out: &Path, notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let out = compile::folder(out.join("cuda"))?;
    let archs = archs()?;
    let nvcc = nvcc().ok_or(
        "nvcc was not found in DUPLEX_NVCC, CUDA_HOME, CUDA_PATH, .cuda or PATH: run tools/setup \
         cuda",
    )?;
    let version = compile::version(&nvcc)
        .map_err(|e| format!("{e}\nThis nvcc does not run: run tools/setup cuda"))?;
    let units: Vec<Unit> = ["cuda/op", "cuda/ptx"]
        .iter()
        .flat_map(|folder| compile::sources(folder, "cu"))
        .map(|source| {
            let mut words = vec![nvcc.clone()];
            words.extend(FLAGS.split(' ').map(String::from));
            for arch in &archs {
                let ptx = if *arch == PTX_ARCH { format!(",compute_{arch}") } else { "".into() };
                words.extend([
                    "-gencode".into(),
                    format!("arch=compute_{arch},code=[sm_{arch}{ptx}]"),
                ]);
            }
            Unit { output: out.join(compile::stem(&source) + ".fatbin"), source, words }
        })
        .collect();
    compile::all(&units, &version)?;
    let messages = units.iter().map(Unit::messages).collect::<Result<Vec<String>>>()?;
    resources::check(&messages, &archs, notes)?;
    Ok(units.into_iter().map(|unit| unit.output).collect())
}

/// Rust source of the list of fatbins by operator. They are aligned as the driver reads them: in
/// words.
pub(crate) fn list(fatbins: &[PathBuf]) -> String {
    let mut items = String::new();
    let mut names = String::new();
    for (i, path) in fatbins.iter().enumerate() {
        let bytes = format!("include_bytes!({path:?})");
        let _ =
            writeln!(items, "static FATBIN_{i}: Aligned<{{ {bytes}.len() }}> = Aligned(*{bytes});");
        let _ = writeln!(names, "    ({:?}, &FATBIN_{i}.0),", compile::stem(path));
    }
    if !fatbins.is_empty() {
        items.insert_str(0, "#[repr(C, align(16))]\nstruct Aligned<const N: usize>([u8; N]);\n");
    }
    format!(
        "{items}/// Kernels of each operator, compiled; empty without the feature `cuda`.\n\
         pub(super) static FATBINS: &[(&str, &[u8])] = &[\n{names}];\n"
    )
}

fn archs() -> Result<Vec<&'static str>> {
    let Some(wanted) = env("DUPLEX_CUDA_ARCHS") else { return Ok(ARCHS.to_vec()) };
    for name in wanted.split_whitespace() {
        if !ARCHS.contains(&name) {
            return Err(format!("DUPLEX_CUDA_ARCHS: {name:?} is none of {}", ARCHS.join(", ")));
        }
    }
    let archs =
        ARCHS.into_iter().filter(|arch| wanted.split_whitespace().any(|name| name == *arch));
    Ok(archs.collect())
}

/// The first nvcc there is. One that the user names is taken even if it does not exist: the error
/// then says so.
fn nvcc() -> Option<String> {
    if let Some(named) = env("DUPLEX_NVCC") {
        return Some(named);
    }
    let homes = [env("CUDA_HOME"), env("CUDA_PATH")].into_iter().flatten().map(PathBuf::from);
    let homes = homes.chain([Path::new(".cuda/nvidia/cu13").to_path_buf()]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = homes
        .map(|home| home.join("bin/nvcc"))
        .chain(std::env::split_paths(&path).map(|folder| folder.join("nvcc")))
        .filter(|nvcc| nvcc.is_file());
    found.next().map(|nvcc| nvcc.to_string_lossy().into_owned())
}
