//! The `duplex` command.

fn main() -> std::process::ExitCode {
    duplex::cli::main()
}
