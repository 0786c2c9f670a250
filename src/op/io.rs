//! The arguments of a running operator: on the CPU typed views of exactly the bytes it declared, on
//! a device their addresses and the stream to launch into. It sees nothing else.

use crate::base::{DType, Elem};
use crate::device::{Device, Region, Stream};
use crate::tensor::Desc;

/// A tensor to read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    /// Shape and dtype.
    pub desc: Desc,
}

/// A tensor to write.
#[derive(Debug)]
pub struct ViewMut<'a> {
    bytes: &'a mut [u8],
    /// Shape and dtype.
    pub desc: Desc,
}

/// The gradient of an input: where to put it, and whether to set it or add to it.
#[derive(Debug)]
pub struct Grad<'a> {
    /// Where the gradient goes. Weights have f32 gradients, or bf16 where the plan allows it;
    /// activations their own dtype.
    pub view: ViewMut<'a>,
    /// Add to what is there, instead of setting it.
    pub acc: bool,
}

/// Arguments of a forward pass.
#[derive(Debug)]
pub struct Forward<'a> {
    /// Inputs in order; `None` where an optional input is absent or the output aliases it.
    pub ins: Vec<Option<View<'a>>>,
    /// Outputs in order.
    pub outs: Vec<ViewMut<'a>>,
    /// Workspace of the size asked for in the plan, with undefined content.
    pub scratch: &'a mut [f32],
}

/// Arguments of a backward pass.
#[derive(Debug)]
pub struct Backward<'a> {
    /// Inputs that the plan declared saved.
    pub ins: Vec<Option<View<'a>>>,
    /// Outputs that the plan declared saved.
    pub outs: Vec<Option<View<'a>>>,
    /// Gradients of the outputs; `None` where none flowed.
    pub douts: Vec<Option<View<'a>>>,
    /// Gradients to produce; `None` where not wanted.
    pub dins: Vec<Option<Grad<'a>>>,
    /// Outputs to make, of an operator whose plan says that they are late.
    pub late: Vec<ViewMut<'a>>,
    /// Workspace of the size asked for in the plan, with undefined content.
    pub scratch: &'a mut [f32],
}

impl<'a> View<'a> {
    /// A view over raw bytes.
    pub fn new(bytes: &'a [u8], desc: Desc) -> View<'a> {
        assert_eq!(bytes.len(), desc.bytes(), "view of {desc:?}");
        View { bytes, desc }
    }

    /// The elements; panics if `E` is not the dtype.
    pub fn get<E: Elem>(&self) -> &'a [E] {
        assert_eq!(self.desc.dtype, E::DTYPE);
        bytemuck::cast_slice(self.bytes)
    }

    /// The elements of an f32 tensor.
    pub fn f32(&self) -> &'a [f32] {
        self.get()
    }

    /// The elements of an i32 tensor.
    pub fn i32(&self) -> &'a [i32] {
        assert_eq!(self.desc.dtype, DType::I32);
        bytemuck::cast_slice(self.bytes)
    }

    /// The elements of a tensor of bytes.
    pub fn u8(&self) -> &'a [u8] {
        assert_eq!(self.desc.dtype, DType::U8);
        self.bytes
    }

    /// The elements as they lie in memory, of any dtype.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.desc.shape.dims()
    }
}

impl<'a> ViewMut<'a> {
    /// A view over raw bytes.
    pub fn new(bytes: &'a mut [u8], desc: Desc) -> ViewMut<'a> {
        assert_eq!(bytes.len(), desc.bytes(), "view of {desc:?}");
        ViewMut { bytes, desc }
    }

    /// The elements; panics if `E` is not the dtype.
    pub fn get<E: Elem>(&mut self) -> &mut [E] {
        assert_eq!(self.desc.dtype, E::DTYPE);
        bytemuck::cast_slice_mut(self.bytes)
    }

    /// The elements of an f32 tensor.
    pub fn f32(&mut self) -> &mut [f32] {
        self.get()
    }

    /// The elements of an i32 tensor.
    pub fn i32(&mut self) -> &mut [i32] {
        assert_eq!(self.desc.dtype, DType::I32);
        bytemuck::cast_slice_mut(self.bytes)
    }

    /// The elements of a tensor of bytes.
    pub fn u8(&mut self) -> &mut [u8] {
        assert_eq!(self.desc.dtype, DType::U8);
        self.bytes
    }

    /// The elements as they lie in memory, of any dtype.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl<'a> Forward<'a> {
    /// Input `i`, which must be there.
    pub fn input(&self, i: usize) -> View<'a> {
        self.ins[i].unwrap_or_else(|| panic!("input {i} is absent"))
    }
}

impl<'a> Backward<'a> {
    /// Saved input `i`, which must be there.
    pub fn input(&self, i: usize) -> View<'a> {
        self.ins[i].unwrap_or_else(|| panic!("input {i} was not declared saved"))
    }

    /// Saved output `i`, which must be there.
    pub fn output(&self, i: usize) -> View<'a> {
        self.outs[i].unwrap_or_else(|| panic!("output {i} was not declared saved"))
    }

    /// Gradient of output `i`, which must be there.
    pub fn dout(&self, i: usize) -> View<'a> {
        self.douts[i].unwrap_or_else(|| panic!("no gradient flowed into output {i}"))
    }
}

/// A tensor on a device.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Device address of the first element.
    pub ptr: u64,
    /// Shape and dtype.
    pub desc: Desc,
}

/// The gradient of an input on a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaGrad {
    /// Where the gradient goes.
    pub arg: Arg,
    /// Add to what is there, instead of setting it.
    pub acc: bool,
}

/// Arguments of a forward pass on a device.
#[derive(Debug)]
pub struct CudaForward<'a> {
    /// Where kernels are launched, in order.
    pub stream: &'a Stream,
    /// Inputs in order; `None` where an optional input is absent or the output aliases it.
    pub ins: Vec<Option<Arg>>,
    /// Outputs in order.
    pub outs: Vec<Arg>,
    /// Address of the workspace asked for in the plan; 0 if none was.
    pub scratch: u64,
}

/// Arguments of a backward pass on a device.
#[derive(Debug)]
pub struct CudaBackward<'a> {
    /// Where kernels are launched, in order.
    pub stream: &'a Stream,
    /// Inputs that the plan declared saved.
    pub ins: Vec<Option<Arg>>,
    /// Outputs that the plan declared saved.
    pub outs: Vec<Option<Arg>>,
    /// Gradients of the outputs; `None` where none flowed.
    pub douts: Vec<Option<Arg>>,
    /// Gradients to produce; `None` where not wanted.
    pub dins: Vec<Option<CudaGrad>>,
    /// Outputs to make, of an operator whose plan says that they are late.
    pub late: Vec<Arg>,
    /// Address of the workspace asked for in the plan; 0 if none was.
    pub scratch: u64,
}

impl Arg {
    /// Its memory.
    ///
    /// # Safety
    /// It is memory of `device`, as long as the shape says, that stays allocated as long as the
    /// region is used, and that nothing touches unbidden meanwhile.
    pub unsafe fn region<'b>(&self, device: Device) -> Region<'b> {
        // SAFETY: the contract of this function is that of `Region::new` for this range.
        unsafe { Region::new(device, self.ptr as *mut u8, self.desc.bytes()) }
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.desc.shape.dims()
    }

    /// Rows: all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.desc.shape.rows()
    }

    /// The last dimension.
    pub fn last(&self) -> usize {
        self.desc.shape.last()
    }
}

impl CudaForward<'_> {
    /// Input `i`, which must be there.
    pub fn input(&self, i: usize) -> Arg {
        self.ins[i].unwrap_or_else(|| panic!("input {i} is absent"))
    }

    /// Address of input `i`, 0 if it is absent.
    pub fn ptr(&self, i: usize) -> u64 {
        self.ins[i].map_or(0, |a| a.ptr)
    }
}

impl CudaBackward<'_> {
    /// Saved input `i`, which must be there.
    pub fn input(&self, i: usize) -> Arg {
        self.ins[i].unwrap_or_else(|| panic!("input {i} was not declared saved"))
    }

    /// Address of saved input `i`, 0 if it is absent.
    pub fn ptr(&self, i: usize) -> u64 {
        self.ins[i].map_or(0, |a| a.ptr)
    }

    /// Saved output `i`, which must be there.
    pub fn output(&self, i: usize) -> Arg {
        self.outs[i].unwrap_or_else(|| panic!("output {i} was not declared saved"))
    }

    /// Gradient of output `i`, which must be there.
    pub fn dout(&self, i: usize) -> Arg {
        self.douts[i].unwrap_or_else(|| panic!("no gradient flowed into output {i}"))
    }
}

/// The kernel of a dtype.
pub fn by_dtype(dtype: DType, f32: &'static str, bf16: &'static str) -> &'static str {
    if dtype == DType::Bf16 { bf16 } else { f32 }
}
