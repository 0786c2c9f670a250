//! The `duplex` command.

/// Files of others have bounds of memory: see [`duplex::base::bounded`].
#[global_allocator]
static MEMORY: duplex::base::Limited = duplex::base::Limited;

fn main() -> std::process::ExitCode {
    duplex::cli::main()
}
