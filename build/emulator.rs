//! Kernels and the emulated device that runs them, compiled for the host into a static archive. It is linked whole:
//! kernels make themselves known in static initialisers that nothing else refers to.
//!
//! `DUPLEX_SANITIZE=address|thread` compiles the C++ (not the Rust) with that sanitizer.

use crate::compile::{self, Unit};
use crate::{Result, env};
use std::path::Path;
use std::process::Command;

const FLAGS: [&str; 10] = [
    "-std=c++20",
    "-O2",
    "-g1",
    "-ffp-contract=off",
    "-fPIC",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-I",
    "cuda",
    "-c",
];

pub(crate) fn build(out: &Path, sanitize: Option<&str>, notes: &mut Vec<String>) -> Result<()> {
    let (flags, runtime): (&[&str], _) = match sanitize {
        None => (&[], None),
        Some("address") => (&["-fsanitize=address", "-fno-omit-frame-pointer"], Some("asan")),
        Some("thread") => (&["-fsanitize=thread"], Some("tsan")),
        Some(other) => return Err(format!("DUPLEX_SANITIZE={other}: address or thread")),
    };
    // Each kind has its own folder: going back to the last one compiles nothing.
    let out = compile::folder(out.join(format!("emulator-{}", sanitize.unwrap_or("plain"))))?;
    let compiler = env("CXX").unwrap_or_else(|| "g++".into());
    let version = compile::version(&compiler).map_err(|e| {
        format!("{e}\nThe emulator needs a C++20 compiler: run tools/setup, or name one in CXX.")
    })?;

    let mut units = Vec::new();
    for (folder, extension) in [("cuda/emu", "cpp"), ("cuda/op", "cu"), ("cuda/emu/bugs", "cu")] {
        // Threads of a kernel are fibers. The thread sanitizer is told about them by the runtime, which it must not
        // watch itself: its switches would look like races.
        let flags =
            if extension == "cpp" && sanitize == Some("thread") { &["-DEMU_TSAN"] } else { flags };
        for source in compile::sources(folder, extension) {
            let name = format!("{}-{}.o", folder.replace('/', "-"), compile::stem(&source));
            let mut words = vec![compiler.clone()];
            words.extend(FLAGS.iter().chain(flags).map(|flag| flag.to_string()));
            words.extend(["-x".into(), "c++".into()]);
            units.push(Unit { source, output: out.join(name), words });
        }
    }
    compile::all(&units, &version)?;
    for unit in &units {
        notes.extend(unit.messages()?.lines().map(|line| format!("warning={line}")));
    }
    archive(&units, &out)?;

    notes.push(format!("rustc-link-search=native={}", out.display()));
    // Before all other libraries: a sanitizer must be found ahead of the C library whose functions it replaces. As a
    // linker argument, -fsanitize=..., it would come last; and rustc's -nodefaultlibs makes gcc ignore that.
    notes.extend(runtime.map(|name| format!("rustc-link-lib=dylib={name}")));
    notes.push("rustc-link-lib=static:+whole-archive=duplex_emulator".into());
    notes.extend(["stdc++", "pthread"].map(|name| format!("rustc-link-lib=dylib={name}")));
    Ok(())
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
