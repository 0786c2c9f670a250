//! Rows addressed by indices: range checks, and the scatter-add that is the gradient of reading
//! rows. Several tokens may hit one row, so tokens are grouped by row and each row is summed in
//! token order by one task: no atomics, and the result does not depend on threads.

use crate::base::{Elem, Error, Result};
use crate::device::cpu::parallel_for;
use crate::op::cpu::shared::{SharedMut, row_chunks};

/// Fails unless every `index + offset` is in `0..rows`; `op` and `what` name the culprit.
pub fn check_range(op: &str, what: &str, index: &[i32], offset: usize, rows: usize) -> Result<()> {
    match index.iter().position(|&i| i < 0 || i as usize + offset >= rows) {
        None => Ok(()),
        Some(t) => Err(Error::internal(format!(
            "{op}: {what} {} of token {t} (offset {offset}) is outside 0..{rows}",
            index[t]
        ))),
    }
}

/// `out[index[t] + offset] += scale * rows[t]` for rows of `width` elements, in order of `t`,
/// summed in f32. Without `acc` the whole of `out` is set: rows that no index names become zero.
pub fn scatter_add<E: Elem, O: Elem>(
    index: &[i32],
    offset: usize,
    rows: &[E],
    width: usize,
    scale: f32,
    out: &mut [O],
    acc: bool,
) {
    let mut order: Vec<usize> = (0..index.len()).collect();
    order.sort_unstable_by_key(|&t| (index[t], t));
    let groups: Vec<&[usize]> = order.chunk_by(|&a, &b| index[a] == index[b]).collect();
    let all = row_chunks(out.len(), 1);
    let out = SharedMut::new(out);
    if !acc {
        parallel_for(all.len(), |c| {
            // SAFETY: the ranges are disjoint.
            unsafe { out.slice(all[c].start, all[c].len()) }.fill(O::from_f32(0.0));
        });
    }
    let chunks = row_chunks(groups.len(), index.len() * width / groups.len().max(1));
    parallel_for(chunks.len(), |c| {
        let mut sum = vec![0f32; width];
        for group in &groups[chunks[c].clone()] {
            let row = index[group[0]] as usize + offset;
            // SAFETY: a row belongs to one group, and a group to one task.
            let out = unsafe { out.slice(row * width, width) };
            sum.iter_mut().zip(&*out).for_each(|(s, o)| *s = o.to_f32());
            for &t in *group {
                let from = &rows[t * width..][..width];
                sum.iter_mut().zip(from).for_each(|(s, v)| *s += scale * v.to_f32());
            }
            out.iter_mut().zip(&sum).for_each(|(o, s)| *o = O::from_f32(*s));
        }
    });
}
