//! The output layer on the CPU, a share of the rows at a time: their logits, what a loss makes of
//! those, and the gradients that follow.

use crate::base::{DType, Elem, Error, Result};
use crate::device::cpu::parallel_for;
use crate::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::linear::column_sums;
use crate::op::{Grad, View};
use std::ops::Range;

/// Logits that exist at once: 128 MiB of them, so that reading the weights and adding to their
/// gradients, once for each share, is little beside the products.
const LOGITS: usize = (128 << 20) / 4;
/// Rows of a share at least, where there are so many.
const ROWS: usize = 8;

/// Rows whose logits exist at once: even shares. More rows may make smaller shares.
pub(in crate::op) fn chunk_rows(n: usize, vocab: usize) -> usize {
    let most = (LOGITS / vocab.max(1)).max(ROWS);
    n.div_ceil(n.div_ceil(most).max(1))
}

/// Logits of the largest share that up to `n` rows of up to `vocab` words have: it grows with both.
pub(in crate::op) fn most_logits(n: usize, vocab: usize) -> usize {
    (n * vocab).min(LOGITS.max(ROWS * vocab))
}

/// Refuses targets outside the vocabulary.
pub(in crate::op) fn check_targets(targets: &View<'_>, vocab: usize) -> Result<()> {
    let known = |t: &i32| usize::try_from(*t).is_ok_and(|t| t < vocab);
    match targets.i32().iter().find(|t| !known(t)) {
        Some(t) => Err(Error::user(format!(
            "token {t} is outside the model's vocabulary of {vocab}; use the model's own tokenizer"
        ))),
        None => Ok(()),
    }
}

/// Hidden states and the weights that make logits of them.
#[derive(Clone, Copy)]
pub(in crate::op) struct Layer<'a, E> {
    x: &'a [E],
    w: &'a [E],
    bias: Option<&'a [E]>,
    d: usize,
    vocab: usize,
}

impl<'a, E: Elem> Layer<'a, E> {
    /// The layer of x `[n, hidden]`, w `[vocab, hidden]` and an optional bias `[vocab]`.
    pub(in crate::op) fn new(ins: &[Option<View<'a>>]) -> Layer<'a, E> {
        let [Some(x), Some(w), bias, ..] = ins else { panic!("hidden states and weights") };
        let (d, vocab) = (w.desc.shape.last(), w.desc.shape.rows());
        Layer { x: x.get(), w: w.get(), bias: bias.map(|b| b.get::<E>()), d, vocab }
    }

    fn rows(&self, rows: &Range<usize>) -> Mat<'a, E> {
        Mat::dense(&self.x[rows.start * self.d..rows.end * self.d], rows.len(), self.d)
    }

    fn weight(&self) -> Mat<'a, E> {
        Mat::dense(self.w, self.vocab, self.d)
    }

    /// Share by share of `n` rows: makes their logits at the front of `scratch`, calls `row` with
    /// the number and the logits of each row, on all threads, then `then` with the share's rows and
    /// what `row` left. Without rows there is still one (empty) share.
    pub(in crate::op) fn shares(
        &self,
        n: usize,
        scratch: &mut [f32],
        row: impl Fn(usize, &mut [f32]) + Sync + Send,
        mut then: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        let step = chunk_rows(n, self.vocab).max(1);
        for c in 0..n.div_ceil(step).max(1) {
            let rows = c * step..((c + 1) * step).min(n);
            let logits = &mut scratch[..rows.len() * self.vocab];
            let out = MatMut::dense(&mut *logits, rows.len(), self.vocab);
            let epilogue = Epilogue { bias: self.bias, ..Epilogue::default() };
            gemm_nt(self.rows(&rows), self.weight(), out, &epilogue);
            let tasks = row_chunks(rows.len(), self.vocab);
            let shared = SharedMut::new(&mut *logits);
            parallel_for(tasks.len(), |k| {
                for i in tasks[k].clone() {
                    // SAFETY: row i belongs to this task alone.
                    row(rows.start + i, unsafe { shared.slice(i * self.vocab, self.vocab) });
                }
            });
            then(rows, logits);
        }
    }

    /// Gradients of x, w and b from those of the logits of a share, of which each row, rounded to
    /// `E`, lies where that of the logits began.
    pub(in crate::op) fn add_gradients(
        &self,
        dins: &mut [Option<Grad<'_>>],
        rows: Range<usize>,
        logits: &[f32],
    ) {
        let [dx, dw, db, ..] = dins else { panic!("gradients of x, w and b") };
        let (d, vocab, first) = (self.d, self.vocab, rows.start == 0);
        let dlogits = bytemuck::cast_slice::<f32, E>(logits);
        let ld = vocab * size_of::<f32>() / size_of::<E>();
        let dlogits = Mat::new(dlogits, rows.len(), vocab, ld);
        if let Some(dx) = dx {
            let out = &mut dx.view.get::<E>()[rows.start * d..rows.end * d];
            gemm_nn(dlogits, self.weight(), MatMut::dense(out, rows.len(), d), dx.acc);
        }
        if let Some(dw) = dw {
            let (x, acc) = (self.rows(&rows), dw.acc || !first);
            if dw.view.desc.dtype == DType::F32 {
                gemm_tn(dlogits, x, MatMut::dense(dw.view.f32(), vocab, d), acc);
            } else {
                gemm_tn(dlogits, x, MatMut::dense(dw.view.get::<E>(), vocab, d), acc);
            }
        }
        if let Some(db) = db {
            column_sums(dlogits, db.view.f32(), db.acc || !first);
        }
    }
}
