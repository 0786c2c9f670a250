//! CPU kernels shared by several operators.
