//! The `duplex` command.

fn main() {}
