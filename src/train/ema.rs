//! Exponential moving average of trained weights, in f32 on the same shards.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::Buffer;
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::model::Model;
use crate::op;
use crate::pool::ParamId;
use crate::tape::Workspace;
use crate::tensor::Desc;

/// The averages of one model.
#[derive(Debug)]
pub struct Ema {
    decay: f32,
    /// Bucket number and its average.
    buckets: Vec<(usize, Buffer)>,
}

impl Ema {
    /// Starts at the weights of `model`.
    pub fn new(ws: &mut Workspace, model: &Model, decay: f32) -> Result<Ema> {
        let buckets = model.store.buckets().iter().enumerate().filter(|(_, f)| f.trained);
        let buckets = buckets
            .map(|(i, f)| Ok((i, Buffer::zeroed(model.store.device(), f.own.len() * 4)?)))
            .collect::<Result<Vec<_>>>()?;
        let ema = Ema { decay, buckets };
        ema.run(ws, model, 0.0)?;
        Ok(ema)
    }

    /// Moves the averages towards the weights.
    pub fn update(&self, ws: &mut Workspace, model: &Model) -> Result<()> {
        self.run(ws, model, self.decay)
    }

    fn run(&self, ws: &mut Workspace, model: &Model, decay: f32) -> Result<()> {
        ws.run(&format!("ema {}", model.store.id()), &(), |tape, ()| {
            for (i, ema) in &self.buckets {
                let store = &model.store;
                let own = &store.buckets()[*i].own;
                let desc = Desc::new(&[own.len()], DType::F32);
                let e = tape.bind(ema.region(), desc);
                let w = tape.bind(store.weights(*i, own), Desc { dtype: store.dtype(), ..desc });
                op::ema::ema(tape, op::ema::Ema { decay }, e, w)?;
            }
            Ok(())
        })
    }

    /// Adds the averages to `out`, as tensors `at/ema/PARAMETER`.
    pub fn save<'a>(
        &'a self,
        model: &'a Model,
        at: &str,
        out: &mut SnapshotBuilder<'a>,
    ) -> Result<()> {
        let store = &model.store;
        for (id, p) in store.trained() {
            let from = store.own_bucket(p.bucket, self.bucket(p.bucket)?, 4);
            let name = format!("{at}/ema/{}", p.spec.name);
            out.tensor(name, DType::F32, &p.spec.shape, move |to| store.gather(id, &from, to));
        }
        Ok(())
    }

    /// Takes the averages from where [`Ema::save`] put them.
    pub fn restore(&self, model: &Model, at: &str, from: &Snapshot) -> Result<()> {
        for (id, p) in model.store.trained() {
            let name = format!("{at}/ema/{}", p.spec.name);
            let bytes = from.tensor(&name, DType::F32, &p.spec.shape)?;
            let to = model.store.own_bucket(p.bucket, self.bucket(p.bucket)?, 4);
            model.store.scatter(id, &to, &bytes)?;
        }
        Ok(())
    }

    fn bucket(&self, bucket: usize) -> Result<&Buffer> {
        let found = self.buckets.iter().find(|(i, _)| *i == bucket).map(|(_, buffer)| buffer);
        found.ok_or_else(|| Error::internal("a trained bucket without an average"))
    }

    /// The average of a parameter, or `None` if it is not trained.
    pub fn read(&self, model: &Model, id: ParamId) -> Result<Option<Vec<f32>>> {
        let p = model.store.param(id);
        let Some((_, buffer)) = self.buckets.iter().find(|(bucket, _)| *bucket == p.bucket) else {
            return Ok(None);
        };
        let mut raw = vec![0u8; p.spec.shape.iter().product::<usize>() * 4];
        model.store.gather(id, &model.store.own_bucket(p.bucket, buffer, 4), &mut raw)?;
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&raw);
        Ok(Some(match model.store.dtype() {
            DType::Bf16 => values.iter().map(|v| <bf16 as Elem>::from_f32(*v).to_f32()).collect(),
            _ => values,
        }))
    }
}
