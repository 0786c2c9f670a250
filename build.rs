//! Build script. Without features it compiles nothing: the CPU backend is plain Rust.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
