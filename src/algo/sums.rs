//! Sums over micro-batches and ranks.

use crate::base::Result;
use crate::comm::Comm;

/// Adds up what each rank has summed over its rows; one that had none has nothing.
pub(super) fn over_ranks(comm: &Comm, sums: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
    if comm.size() == 1 {
        return Ok(sums);
    }
    let lengths: Vec<u32> = sums.iter().map(|terms| terms.len() as u32).collect();
    let ranks = comm.concat(&[u32::from(!sums.is_empty())])?.iter().sum::<u32>() as usize;
    let (lengths, values) = (comm.concat(&lengths)?, comm.concat(&sums.concat())?);
    let mut all = vec![];
    for values in values.chunks(values.len().div_ceil(ranks.max(1)).max(1)) {
        let mut rest = values;
        let terms = lengths[..lengths.len() / ranks].iter().map(|n| {
            let (terms, others) = rest.split_at(*n as usize);
            rest = others;
            terms.to_vec()
        });
        add(&mut all, terms.collect());
    }
    Ok(all)
}

/// Adds `terms` to `sums`, element by element.
pub(super) fn add(sums: &mut Vec<Vec<f32>>, terms: Vec<Vec<f32>>) {
    if sums.is_empty() {
        *sums = terms;
        return;
    }
    for (s, t) in sums.iter_mut().zip(terms) {
        s.iter_mut().zip(t).for_each(|(a, b)| *a += b);
    }
}
