//! The law that makes rollout equal training: attention over the cache gives the bits of packed
//! attention, however the tokens came in.

use super::*;
use crate::base::Rng;
use crate::op::attention::tests::{ints, ops, packed, random, rng_seed, same_bits, view, view_mut};

/// Sequences with their caches, fed a few tokens at a time.
struct Session<E> {
    op: Attention,
    lengths: Vec<usize>,
    table: Vec<i32>,
    columns: usize,
    k: Vec<E>,
    v: Vec<E>,
    done: Vec<usize>,
}

impl<E: Elem> Session<E> {
    /// Empty caches of NaN, pages dealt at random.
    fn new(op: &Attention, lengths: &[usize], rng: &mut Rng) -> Session<E> {
        let columns = lengths.iter().max().unwrap().div_ceil(PAGE);
        let mut table: Vec<i32> = (0..(lengths.len() * columns) as i32 + 3).collect();
        let size = table.len() * op.kv_heads * PAGE * op.head_dim;
        rng.shuffle(&mut table);
        table.truncate(lengths.len() * columns);
        let nan = vec![E::from_f32(f32::NAN); size];
        let done = vec![0; lengths.len()];
        let (k, v) = (nan.clone(), nan);
        Session { op: op.clone(), lengths: lengths.to_vec(), table, columns, k, v, done }
    }

    /// Feeds up to `new(rng)` more tokens of each sequence and writes their rows of o to `out`,
    /// both in the packed layout of the whole sequences.
    fn feed(&mut self, qkv: &[E], out: &mut [E], mut new: impl FnMut(usize) -> usize) {
        let (width, row) = (self.op.width(), self.op.heads * self.op.head_dim);
        let (mut tokens, mut cu) = (vec![], vec![0i32]);
        let mut base = 0;
        for (s, length) in self.lengths.iter().enumerate() {
            let n = new(s).min(length - self.done[s]);
            tokens.extend((0..n).map(|i| base + self.done[s] + i));
            cu.push(tokens.len() as i32);
            base += length;
        }
        let part: Vec<E> = tokens.iter().flat_map(|t| qkv[t * width..][..width].to_vec()).collect();
        let starts: Vec<i32> = self.done.iter().map(|d| *d as i32).collect();
        let mut o = vec![E::from_f32(f32::NAN); tokens.len() * row];
        let (n, s) = (tokens.len(), starts.len());
        let cache = [
            self.k.len() / (self.op.kv_heads * PAGE * self.op.head_dim),
            self.op.kv_heads,
            PAGE,
            self.op.head_dim,
        ];
        let mut io = Forward {
            ins: vec![
                view(&part, &[n, width]),
                ints(&cu, &[s + 1]),
                ints(&starts, &[s]),
                ints(&self.table, &[s, self.columns]),
                None,
                None,
            ],
            outs: vec![
                view_mut(&mut o, &[n, row]),
                view_mut(&mut self.k, &cache),
                view_mut(&mut self.v, &cache),
            ],
            scratch: &mut [],
        };
        CachedAttention(self.op.clone()).cpu_forward(&mut io).unwrap();
        for (t, o) in tokens.iter().zip(o.chunks_exact(row)) {
            out[t * row..][..row].copy_from_slice(o);
        }
        for (s, w) in cu.windows(2).enumerate() {
            self.done[s] += (w[1] - w[0]) as usize;
        }
    }

    fn finished(&self) -> bool {
        self.done == self.lengths
    }
}

fn equals_packed<E: Elem>() {
    let mut rng = Rng::new(rng_seed(), 3);
    for op in ops() {
        let lengths: Vec<usize> =
            [1, 17, 31, 33, 65, 200].iter().map(|n| n + rng.below(9) as usize).collect();
        let cu = cumulative(&lengths.iter().map(|n| *n as i32).collect::<Vec<_>>());
        let tokens: usize = lengths.iter().sum();
        let qkv: Vec<E> = random(&mut rng, tokens * op.width());
        let want = packed(&op, &qkv, &cu).0;
        let check = |what: &str, rng: &mut Rng, new: &mut dyn FnMut(usize) -> usize| {
            let mut session = Session::new(&op, &lengths, rng);
            let mut got = vec![E::from_f32(f32::NAN); want.len()];
            while !session.finished() {
                session.feed(&qkv, &mut got, &mut *new);
            }
            assert!(same_bits(&got, &want), "{op:?} {what} {lengths:?}");
        };
        check("at once", &mut rng, &mut |_| usize::MAX);
        let mut split = lengths.clone();
        split.iter_mut().for_each(|n| *n = rng.below(*n as u32 + 1) as usize);
        let mut first = true;
        check("in two parts", &mut rng, &mut |s| {
            let n = if first { split[s] } else { usize::MAX };
            first &= s + 1 < split.len();
            n
        });
        check("token by token", &mut rng, &mut |_| 1);
        let mut prompts: Vec<usize> = split.iter().map(|n| n / 2 + 1).collect();
        check("prompts, then token by token", &mut rng, &mut |s| {
            std::mem::replace(&mut prompts[s], 1)
        });
        let mut draws = rng.clone();
        check("at random", &mut rng, &mut |_| draws.below(40) as usize);
    }
}

#[test]
fn cached_attention_equals_packed_attention_bit_for_bit() {
    equals_packed::<f32>();
    equals_packed::<bf16>();
}

#[test]
fn a_page_that_is_missing_or_out_of_range_is_an_error() {
    let table = [0, 5, 1, -1];
    let pages = Pages { starts: &[60, 0], table: &table, columns: 2 };
    assert!(pages.check(&[0..4, 4..68], 6).is_ok());
    assert!(pages.check(&[0..5, 5..6], 6).is_ok());
    assert!(pages.check(&[0..5, 5..6], 5).unwrap_err().to_string().contains("page 5"));
    assert!(pages.check(&[0..4, 4..69], 6).unwrap_err().to_string().contains("page -1"));
    assert!(pages.check(&[0..70, 70..71], 6).unwrap_err().to_string().contains("2 pages of 64"));
}
