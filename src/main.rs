//! The `duplex` command.

/// A chat template is a program of others: see [`duplex::base::with_limit`].
#[global_allocator]
static MEMORY: duplex::base::Limited = duplex::base::Limited;

fn main() -> std::process::ExitCode {
    duplex::cli::main()
}
