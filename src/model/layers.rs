//! The layers of a block, whole or cut: what one rank computes with all blocks of the cut, one
//! after the other, or with its own alone, beside ranks that have the others. Sums over blocks are
//! of f32 products, in the order of the blocks, and rounded once, so both ways have the same bits.

use crate::arch::Position;
use crate::base::{Error, Result};
use crate::model::{Linear, Model, NormParams, Pass};
use crate::op;
use crate::op::act::Kind;
use crate::op::bias_residual::BiasResidual;
use crate::op::concat_columns::ConcatColumns;
use crate::op::embed::{Embed, Window};
use crate::op::linear::Linear as Product;
use crate::op::lora::{Columns, Lora};
use crate::op::norm::Norm;
use crate::pool::{ParamId, Portion, ShardSpec};
use crate::tape::Tape;
use crate::tensor::Tensor;

/// Makes the input of a layer that is cut by columns: those of a block, or all.
pub(super) type Columnwise<'f, 'a> = dyn FnMut(&mut Tape<'a>, Option<usize>) -> Result<Tensor> + 'f;

impl Model {
    /// A parameter as this rank computes with it: a table's rows that are its own where it computes
    /// with one block, all else.
    pub(super) fn param<'a>(&'a self, tape: &mut Tape<'a>, id: ParamId) -> Tensor {
        tape.portion(&self.store, Portion { id, block: self.store.tp_shard() })
    }

    /// Embeddings of `ids` at `positions`, both `[tokens]`.
    pub(super) fn embed<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        ids: Tensor,
        positions: Tensor,
    ) -> Result<Tensor> {
        let p = &self.params;
        let position_offset = match self.arch.position {
            Position::Learned { offset, .. } => offset,
            Position::Rotary(_) | Position::Alibi { .. } => 0,
        };
        let plain = Embed { id_offset: 0, position_offset: 0, scale: 1.0, window: None };
        let scaled = Embed { scale: self.arch.embed_scale, ..plain };
        let Some(project) = p.project_in else {
            let embed = Embed { position_offset, ..scaled };
            return self.looked_up(tape, embed, [ids, positions], p.tokens, p.positions);
        };
        // Position embeddings are as wide as the model, not as the token embedding.
        let narrow = self.looked_up(tape, scaled, [ids, positions], p.tokens, None)?;
        let wide = match p.positions {
            Some(table) => {
                let embed = Embed { id_offset: position_offset, ..plain };
                Some(self.looked_up(tape, embed, [positions, positions], table, None)?)
            }
            None => None,
        };
        self.project(tape, project, narrow, wide)
    }

    /// Rows of tables, of which this rank may have a part.
    fn looked_up<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        embed: Embed,
        [ids, positions]: [Tensor; 2],
        tokens: ParamId,
        learned: Option<ParamId>,
    ) -> Result<Tensor> {
        let tok = self.param(tape, tokens);
        let pos = learned.map(|id| self.param(tape, id));
        let Some(tp_shard) = self.beside() else {
            return op::embed::embed(tape, embed, ids, positions, tok, pos);
        };
        let first = |table: Tensor| tp_shard * table.dims()[0];
        let window = Window { first_id: first(tok), first_position: pos.map_or(0, first) };
        let embed = Embed { window: Some(window), ..embed };
        let part = op::embed::embed(tape, embed, ids, positions, tok, pos)?;
        self.settled(tape, part, None, None)
    }

    /// The block that this rank computes with, where others compute with others.
    fn beside(&self) -> Option<usize> {
        self.store.tp_shard().filter(|_| self.store.partition().tensor.size() > 1)
    }

    /// A projection between the embedding's width and the model's.
    pub(super) fn project<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        weight: ParamId,
        x: Tensor,
        residual: Option<Tensor>,
    ) -> Result<Tensor> {
        let weight = self.param(tape, weight);
        op::linear::linear(tape, Product::PLAIN, x, weight, None, residual)
    }

    pub(super) fn norm<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &NormParams,
        x: Tensor,
    ) -> Result<Tensor> {
        let weight = self.param(tape, p.weight);
        let bias = p.bias.map(|b| self.param(tape, b));
        let kind = self.arch.norm;
        let norm = Norm { mean: kind.layer_norm, eps: kind.eps, unit_offset: kind.unit_offset };
        op::norm::norm(tape, norm, x, weight, bias)
    }

    /// A linear layer, or the output rows of it that a block has; `residual` is added.
    pub(super) fn linear<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        x: Tensor,
        block: Option<usize>,
        residual: Option<Tensor>,
        pass: Pass,
    ) -> Result<Tensor> {
        let (weight, bias) = self.portions(tape, p, block);
        let y = op::linear::linear(tape, Product::PLAIN, x, weight, bias, residual)?;
        self.adapted(tape, p, y, x, block, pass)
    }

    /// A linear layer without adapters, and `activation` of what it makes, in one operator.
    pub(super) fn activated<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        x: Tensor,
        block: Option<usize>,
        activation: Kind,
    ) -> Result<Tensor> {
        let (weight, bias) = self.portions(tape, p, block);
        let linear = Product { activation: Some(activation), ..Product::PLAIN };
        op::linear::linear(tape, linear, x, weight, bias, None)
    }

    /// The weight and the bias of a layer, or the rows of them that a block has.
    fn portions<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        block: Option<usize>,
    ) -> (Tensor, Option<Tensor>) {
        let weight = tape.portion(&self.store, Portion { id: p.weight, block });
        let bias = p.bias.map(|id| tape.portion(&self.store, Portion { id, block }));
        (weight, bias)
    }

    /// `y` with what the layer's adapters make of its input `x`, or of a block of either.
    fn adapted<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        mut y: Tensor,
        x: Tensor,
        block: Option<usize>,
        pass: Pass,
    ) -> Result<Tensor> {
        for adapter in p.adapters.iter().filter(|_| pass.adapters) {
            let config = self.lora.as_ref().expect("adapters come with a config");
            let columns = match (&self.store.param(adapter.a).spec.sharding, block) {
                (ShardSpec::Cols(group), Some(b)) => {
                    let total = self.store.param(adapter.a).spec.shape[1];
                    Some(Columns { first: group.blocks[b].start, total })
                }
                _ => None,
            };
            let lora = Lora {
                scale: adapter.scale,
                offset: if block.is_some() { adapter.offset_in_block } else { adapter.offset },
                dropout: pass.dropout.map_or(0.0, |_| config.dropout),
                seed: pass.dropout.map_or(0, |d| d.seed),
                site: adapter.site,
                first: pass.dropout.map_or(0, |d| d.first),
                columns,
            };
            let [a, b] = [adapter.a, adapter.b].map(|id| self.factor(tape, id, block));
            y = op::lora::lora(tape, lora, y, x, a, b)?;
        }
        Ok(y)
    }

    /// An adapter's factor: a block of it if it is cut. What is not has one copy to compute with.
    fn factor<'a>(&'a self, tape: &mut Tape<'a>, id: ParamId, block: Option<usize>) -> Tensor {
        match self.store.param(id).spec.sharding {
            ShardSpec::Replicated => self.param(tape, id),
            _ => tape.portion(&self.store, Portion { id, block }),
        }
    }

    /// A layer that is cut by input columns, which `part` makes for a block; `residual` is added.
    pub(super) fn joined<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        residual: Option<Tensor>,
        pass: Pass,
        part: &mut Columnwise<'_, 'a>,
    ) -> Result<Tensor> {
        let blocks = self.store.partition().blocks;
        if blocks == 1 {
            let (block, x) = (self.store.tp_shard(), part(tape, self.store.tp_shard())?);
            return self.linear(tape, p, x, block, residual, pass);
        }
        let mut sum: Option<Tensor> = None;
        for block in self.store.tp_shard().map_or(0..blocks, |own| own..own + 1) {
            let x = part(tape, Some(block))?;
            let weight = tape.portion(&self.store, Portion { id: p.weight, block: Some(block) });
            let adapters = pass.adapters && !p.adapters.is_empty();
            sum = Some(match sum {
                Some(sum) if !adapters => {
                    op::linear::linear(tape, Product::ONTO, x, weight, None, Some(sum))?
                }
                before => {
                    // A block's product and its update are one term of the sum.
                    let y = op::linear::linear(tape, Product::LOGITS, x, weight, None, None)?;
                    let y = self.adapted(tape, p, y, x, Some(block), pass)?;
                    before.map_or(Ok(y), |sum| op::add::add(tape, sum, y))?
                }
            });
        }
        let sum = sum.ok_or_else(|| Error::internal("a layer without blocks"))?;
        self.settled(tape, sum, p.bias, residual)
    }

    /// A sum over this rank's blocks made one over all, and rounded: f32 `[tokens, width]`, with a
    /// bias and a residual.
    fn settled<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        mut sum: Tensor,
        bias: Option<ParamId>,
        residual: Option<Tensor>,
    ) -> Result<Tensor> {
        if self.beside().is_some() {
            sum = op::all_reduce::all_reduce(tape, &self.store.partition().tensor, sum)?;
        }
        let bias = bias.map(|id| self.param(tape, id));
        op::bias_residual::bias_residual(
            tape,
            BiasResidual { dtype: self.store.dtype() },
            sum,
            bias,
            residual,
        )
    }

    /// Logits f32 of this rank's rows of the head, `[n, rows]`, as those of all, `[n, vocab]`.
    pub(super) fn whole_rows<'a>(&'a self, tape: &mut Tape<'a>, logits: Tensor) -> Result<Tensor> {
        if self.beside().is_none() {
            return Ok(logits);
        }
        let all = op::all_gather::all_gather(tape, &self.store.partition().tensor, logits)?;
        op::concat_columns::concat_columns(tape, ConcatColumns { width: self.arch.vocab }, all)
    }
}
