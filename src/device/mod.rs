//! Where bytes live and code runs. The surface is memory and parallelism, no maths.

pub mod cpu;
