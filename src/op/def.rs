//! The declaration of an operator.

use crate::op::conformance::Case;

/// An operator known to the project.
pub struct OpDef {
    /// Name, equal to the file's stem.
    pub name: &'static str,
    /// One line: the formula or purpose.
    pub about: &'static str,
    /// Test cases: shapes, attributes and the float64 reference.
    pub cases: fn() -> Vec<Case>,
}
