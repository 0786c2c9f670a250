//! Kernels and the emulated device that runs them, compiled for the host into a static archive. It
//! is linked whole: kernels make themselves known in static initialisers that nothing else refers
//! to.
//!
//! `DUPLEX_SANITIZE=address|thread` compiles the C++ (not the Rust) with that sanitizer.

use crate::compile::{self, Unit};
use crate::{Result, env};
use std::path::Path;
use std::process::Command;

const FLAGS: &str =
    "-std=c++20 -O2 -g1 -ffp-contract=off -fPIC -Wall -Wno-unknown-pragmas -I cuda -c -x c++";

/// Folders of sources, and what the sources are called.
const SOURCES: [(&str, &str); 4] =
    [("cuda/emu", "cpp"), ("cuda/op", "cu"), ("cuda/ptx", "cu"), ("cuda/emu/bugs", "cu")];

pub(crate) fn build(out: &Path, sanitize: Option<&str>, notes: &mut Vec<String>) -> Result<()> {
    let (flags, runtime): (&[&str], _) = match sanitize {
        None => (&[], None),
        Some("address") => (&["-fsanitize=address", "-fno-omit-frame-pointer"], Some("asan")),
        Some("thread") => (&["-fsanitize=thread"], Some("tsan")),
        Some(other) => return Err(format!("DUPLEX_SANITIZE={other}: address or thread")),
    };
    let out = compile::folder(out.join("emulator"))?;
    // Each kind has its own objects: going back to the last one compiles nothing.
    let objects = compile::folder(out.join(sanitize.unwrap_or("plain")))?;
    let compiler = env("CXX").unwrap_or_else(|| "g++".into());
    let version = compile::version(&compiler).map_err(|e| {
        format!("{e}\nThe emulator needs a C++20 compiler: run tools/setup, or name one in CXX.")
    })?;

    let mut units = Vec::new();
    for (folder, extension) in SOURCES {
        // Threads of a kernel are fibers. The thread sanitizer is told about them by the runtime,
        // which it must not watch itself: its switches would look like races.
        let flags =
            if extension == "cpp" && sanitize == Some("thread") { &["-DEMU_TSAN"] } else { flags };
        for source in compile::sources(folder, extension) {
            let name = format!("{}-{}.o", folder.replace('/', "-"), compile::stem(&source));
            let mut words = vec![compiler.clone()];
            let flags = FLAGS.split(' ').chain(fma().iter().copied()).chain(flags.iter().copied());
            words.extend(flags.map(String::from));
            units.push(Unit { source, output: objects.join(name), words });
        }
    }
    compile::all(&units, &version)?;
    for unit in &units {
        notes.extend(unit.messages()?.lines().map(|line| format!("warning={line}")));
    }
    archive(&units, &out)?;

    // The sanitizer's library comes before all others: its functions replace those of the C
    // library. (As a linker argument, -fsanitize=..., it would come last; and rustc's
    // -nodefaultlibs makes gcc ignore that.) It goes by a name of ours, a linker script, so that
    // all kinds have the same arguments: rustc then links again, but does not compile.
    let script = runtime.map_or("/* nothing */\n".into(), |name| format!("INPUT(-l{name})\n"));
    crate::write(&out.join("libduplex_sanitizer.so"), &script)?;
    let libraries = [
        "dylib=duplex_sanitizer",
        "static:+whole-archive=duplex_emulator",
        "dylib=stdc++",
        "dylib=pthread",
    ];
    notes.push(format!("rustc-link-search=native={}", out.display()));
    notes.extend(libraries.map(|library| format!("rustc-link-lib={library}")));
    Ok(())
}

/// Without an instruction for it every fmaf is a call.
fn fma() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("fma") && std::is_x86_feature_detected!("avx2") {
        return &["-mavx2", "-mfma"];
    }
    &[]
}

/// A new archive each time: objects of sources that are gone must not stay in it.
fn archive(units: &[Unit], out: &Path) -> Result<()> {
    let path = out.join("libduplex_emulator.a");
    let _ = std::fs::remove_file(&path);
    let run =
        Command::new("ar").arg("rcsD").arg(&path).args(units.iter().map(|u| &u.output)).output();
    let run = run.map_err(|e| format!("ar: {e}"))?;
    if run.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&run.stderr).into()) }
}
