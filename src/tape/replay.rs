//! Running part of a segment again before its backward, so that its activations need not be kept.

use super::{ActivationCheckpointing, Tape};
use crate::base::Result;
use crate::op::Place;
use crate::tensor::{Slot, Tensor};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

impl Tape<'_> {
    /// Re-runs what backward of the records in `range` reads and `keep` did not keep, and points
    /// the records at the new slots.
    pub(super) fn replay(
        &mut self,
        range: Range<usize>,
        checkpointing: ActivationCheckpointing,
    ) -> Result<()> {
        if checkpointing == ActivationCheckpointing::None {
            return Ok(());
        }
        let again = self.to_replay(range.clone(), checkpointing);
        let mut renamed: HashMap<Slot, Slot> = HashMap::new();
        let rename = |renamed: &HashMap<Slot, Slot>, t: Tensor| Tensor {
            slot: renamed.get(&t.slot).copied().unwrap_or(t.slot),
            ..t
        };
        for r in range {
            let ins: Vec<Option<Tensor>> =
                self.records[r].ins.iter().map(|t| t.map(|t| rename(&renamed, t))).collect();
            self.records[r].ins.clone_from(&ins);
            if !again.contains(&r) {
                let outs = &mut self.records[r].outs;
                outs.iter_mut().for_each(|t| *t = rename(&renamed, *t));
                continue;
            }
            let (op, plan) = (self.records[r].op.clone(), self.records[r].plan.clone());
            let fresh = self.forward(&op, &plan, &ins)?;
            for (i, new) in fresh.iter().enumerate() {
                if let Place::New(_) = plan.outs[i] {
                    let old = self.records[r].outs[i].slot;
                    // A gradient may have arrived already from a later segment.
                    if let Some(grad) = self.grads.remove(&old) {
                        self.grads.insert(new.slot, grad);
                    }
                    renamed.insert(old, new.slot);
                }
            }
            self.records[r].outs = fresh;
        }
        Ok(())
    }

    /// Records whose outputs backward needs, directly or to redo others.
    fn to_replay(
        &self,
        range: Range<usize>,
        checkpointing: ActivationCheckpointing,
    ) -> HashSet<usize> {
        let mut needed: HashSet<Slot> = HashSet::new();
        for record in &self.records[range.clone()] {
            let saved = |mask: u64, i: usize| mask >> i & 1 == 1;
            let ins =
                record.ins.iter().enumerate().filter(|(i, _)| saved(record.plan.saves_ins, *i));
            needed.extend(ins.filter_map(|(_, t)| t.map(|t| t.slot)));
            let outs =
                record.outs.iter().enumerate().filter(|(i, _)| saved(record.plan.saves_outs, *i));
            needed.extend(outs.map(|(_, t)| t.slot));
        }
        let mut again = HashSet::new();
        for r in range.rev() {
            let record = &self.records[r];
            let candidate = checkpointing == ActivationCheckpointing::Full || record.plan.cheap;
            if candidate && record.outs.iter().any(|t| needed.contains(&t.slot)) {
                again.insert(r);
                needed.extend(record.ins.iter().flatten().map(|t| t.slot));
            }
        }
        again
    }
}
