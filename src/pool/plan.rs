//! The static plan: lifetimes in, offsets out. First fit in order of falling size, so that slots
//! whose lifetimes do not meet share bytes.

/// Alignment of every planned slot, in bytes.
const ALIGN: usize = 64;

/// One slot's size and the first and last moment it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Size in bytes.
    pub bytes: usize,
    /// First use.
    pub first: u32,
    /// Last use, inclusive.
    pub last: u32,
}

/// Where each slot of an arena lies.
#[derive(Clone, Debug, Default)]
pub struct ArenaPlan {
    /// Offset in bytes, by slot.
    pub offsets: Vec<usize>,
    /// Room in bytes, by slot.
    pub sizes: Vec<usize>,
    /// Size of the arena.
    pub total: usize,
}

impl ArenaPlan {
    /// Places slots with the given lifetimes.
    pub fn place(lives: &[Life]) -> ArenaPlan {
        let size = |i: usize| lives[i].bytes.next_multiple_of(ALIGN);
        // What takes no bytes lies anywhere.
        let mut order: Vec<usize> = (0..lives.len()).filter(|i| lives[*i].bytes > 0).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].bytes), i));
        let mut offsets = vec![0; lives.len()];
        // Placed slots, kept sorted by offset.
        let mut placed: Vec<usize> = vec![];
        let mut total = 0;
        for i in order {
            let (mut offset, need) = (0, size(i));
            for &j in &placed {
                let meets = lives[i].first <= lives[j].last && lives[j].first <= lives[i].last;
                if !meets {
                    continue;
                }
                if offset + need <= offsets[j] {
                    break;
                }
                offset = offset.max(offsets[j] + size(j));
            }
            offsets[i] = offset;
            total = total.max(offset + need);
            let at = placed.partition_point(|&j| offsets[j] <= offset);
            placed.insert(at, i);
        }
        ArenaPlan { offsets, sizes: (0..lives.len()).map(size).collect(), total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn slots_alive_together_never_overlap_and_dead_ones_share() {
        let mut rng = Rng::new(3, 0);
        for _ in 0..200 {
            let lives: Vec<Life> = (0..40)
                .map(|_| {
                    let first = rng.below(50);
                    Life { bytes: rng.below(1000) as usize, first, last: first + rng.below(10) }
                })
                .collect();
            let plan = ArenaPlan::place(&lives);
            for i in 0..lives.len() {
                for j in 0..i {
                    let (a, b) = (lives[i], lives[j]);
                    let meet = a.first <= b.last && b.first <= a.last;
                    let (p, q) = (plan.offsets[i], plan.offsets[j]);
                    assert!(!meet || p + a.bytes <= q || q + b.bytes <= p, "{a:?} {b:?}");
                }
            }
            assert!(plan.total <= lives.iter().map(|l| l.bytes.next_multiple_of(ALIGN)).sum());
        }
        let chain: Vec<Life> = (0..10).map(|i| Life { bytes: 64, first: i, last: i + 1 }).collect();
        assert_eq!(ArenaPlan::place(&chain).total, 128);
    }
}
