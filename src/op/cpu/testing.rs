//! For tests: operators on owned host tensors.

use crate::base::{DType, Elem, Result, Rng};
use crate::op::{Backward, Forward, Grad, Op, Place, Plan, View, ViewMut};
use crate::tensor::Desc;

/// A host tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    /// Words rather than bytes for the alignment.
    words: Vec<u32>,
    pub(crate) desc: Desc,
}

impl Host {
    pub(crate) fn new<E: Elem>(dims: &[usize], values: &[f32]) -> Host {
        let mut h = Host::blank(Desc::new(dims, E::DTYPE));
        let values: Vec<E> = values.iter().map(|v| E::from_f32(*v)).collect();
        h.view_mut().get::<E>().copy_from_slice(&values);
        h
    }

    pub(crate) fn ints(values: &[i32]) -> Host {
        let mut h = Host::blank(Desc::new(&[values.len()], DType::I32));
        h.view_mut().i32().copy_from_slice(values);
        h
    }

    /// Standard normal values times `scale`.
    pub(crate) fn normal<E: Elem>(dims: &[usize], scale: f32, rng: &mut Rng) -> Host {
        let n = dims.iter().product();
        Host::new::<E>(dims, &(0..n).map(|_| scale * rng.normal()).collect::<Vec<_>>())
    }

    /// The rows `at`, in that order.
    pub(crate) fn rows(&self, at: &[usize]) -> Host {
        let mut dims = self.desc.shape.dims().to_vec();
        let width = self.desc.bytes() / dims[0];
        dims[0] = at.len();
        let mut h = Host::blank(Desc::new(&dims, self.desc.dtype));
        for (to, from) in h.bytes_mut().chunks_exact_mut(width).zip(at) {
            to.copy_from_slice(&self.bytes()[from * width..][..width]);
        }
        h
    }

    pub(crate) fn get<E: Elem>(&self) -> Vec<E> {
        self.view().get::<E>().to_vec()
    }

    pub(crate) fn f32(&self) -> Vec<f32> {
        self.get()
    }

    pub(crate) fn i32(&self) -> Vec<i32> {
        self.view().i32().to_vec()
    }

    pub(crate) fn blank(desc: Desc) -> Host {
        Host { words: vec![u32::MAX; desc.bytes().div_ceil(4)], desc }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.desc.bytes()]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.desc.bytes()]
    }

    fn view(&self) -> View<'_> {
        View::new(self.bytes(), self.desc)
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let desc = self.desc;
        ViewMut::new(self.bytes_mut(), desc)
    }
}

/// The plan of `op`, and its outputs before it runs: blank, or the inputs that are updated in
/// place.
pub(crate) fn planned(op: &dyn Op, ins: &[Option<Host>]) -> Result<(Plan, Vec<Host>)> {
    let descs: Vec<Option<Desc>> = ins.iter().map(|h| h.as_ref().map(|h| h.desc)).collect();
    let plan = op.plan(&descs)?;
    let made = |place: &Place| match place {
        Place::New(desc) => Host::blank(*desc),
        Place::InPlace(i) => ins[*i].clone().expect("in-place input"),
    };
    let outs = plan.outs.iter().map(made).collect();
    Ok((plan, outs))
}

/// Plans and runs an operator forward: here, or on the emulated device.
pub(crate) type Runner = fn(&dyn Op, &[Option<Host>]) -> Result<Vec<Host>>;

/// Plans and runs `op` forward.
pub(crate) fn forward(op: &dyn Op, ins: &[Option<Host>]) -> Result<Vec<Host>> {
    let (plan, mut outs) = planned(op, ins)?;
    let mut scratch = vec![f32::NAN; plan.scratch];
    let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
    op.cpu_forward(&mut Forward {
        ins: (0..ins.len())
            .map(|i| ins[i].as_ref().filter(|_| !in_place(i)).map(Host::view))
            .collect(),
        outs: outs.iter_mut().map(Host::view_mut).collect(),
        scratch: &mut scratch,
    })?;
    Ok(outs)
}

/// Runs `op` backward for the gradients whose element type is given in `wanted`.
pub(crate) fn backward(
    op: &dyn Op,
    ins: &[Option<Host>],
    outs: &[Host],
    douts: &[Option<Host>],
    wanted: &[Option<DType>],
) -> Result<Vec<Option<Host>>> {
    backward_late(op, ins, outs, douts, wanted).map(|(dins, _)| dins)
}

/// [`backward`], and the outputs that it makes.
pub(crate) fn backward_late(
    op: &dyn Op,
    ins: &[Option<Host>],
    outs: &[Host],
    douts: &[Option<Host>],
    wanted: &[Option<DType>],
) -> Result<(Vec<Option<Host>>, Vec<Host>)> {
    let descs: Vec<Option<Desc>> = ins.iter().map(|h| h.as_ref().map(|h| h.desc)).collect();
    let plan = op.plan(&descs)?;
    let mut dins: Vec<Option<Host>> = wanted
        .iter()
        .zip(&descs)
        .map(|(dtype, desc)| {
            dtype.map(|dtype| Host::blank(Desc { dtype, ..desc.expect("wanted input") }))
        })
        .collect();
    let mut late = if plan.late { planned(op, ins)?.1 } else { vec![] };
    let mut scratch = vec![f32::NAN; plan.scratch_backward];
    op.cpu_backward(&mut Backward {
        ins: (0..ins.len())
            .map(|i| ins[i].as_ref().filter(|_| plan.saves_ins >> i & 1 == 1).map(Host::view))
            .collect(),
        outs: (0..outs.len())
            .map(|i| (plan.saves_outs >> i & 1 == 1).then(|| outs[i].view()))
            .collect(),
        douts: douts.iter().map(|d| d.as_ref().map(Host::view)).collect(),
        dins: dins
            .iter_mut()
            .map(|g| g.as_mut().map(|g| Grad { view: g.view_mut(), acc: false }))
            .collect(),
        late: late.iter_mut().map(Host::view_mut).collect(),
        scratch: &mut scratch,
    })?;
    Ok((dins, late))
}
