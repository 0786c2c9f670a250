//! A tensor is a view: slot, offset, shape and dtype. It owns nothing and knows no device; the tape
//! resolves a slot to memory while it runs. Views are row-major and contiguous: every operator
//! takes whole matrices with its own column arithmetic, so strides never had a user.

use crate::base::{DType, Shape};

/// The number of a memory region within one run of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Shape and element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Dimensions, outermost first.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl Desc {
    /// A description from dimensions.
    pub fn new(dims: &[usize], dtype: DType) -> Desc {
        Desc { shape: Shape::new(dims), dtype }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.numel() * self.dtype.size()
    }
}

/// A view into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Where the bytes are.
    pub slot: Slot,
    /// First element, counted in elements.
    pub offset: usize,
    /// Shape and dtype.
    pub desc: Desc,
}

impl Tensor {
    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.desc.shape.dims()
    }
}
