//! The parameters of a model: which there are, how they are cut over ranks, and which checkpoint
//! tensors they are made of.

use crate::arch::{Arch, Module, Position, Residual};
use crate::base::Result;
use crate::model::lora::Size;
use crate::model::{Head, LoraConfig};
use crate::pool::{Group, ParamId, ParamSpec, ShardSpec};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
    /// LoRA adapters on ranges of output rows.
    pub adapters: Vec<Adapter>,
}

/// A LoRA adapter on one checkpoint module.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `[rank, in]`.
    pub a: ParamId,
    /// `[rows, rank]`.
    pub b: ParamId,
    /// First output row it acts on.
    pub offset: usize,
    /// The same within each block.
    pub offset_in_block: usize,
    /// Output rows it acts on.
    pub rows: usize,
    /// Width of the update.
    pub rank: usize,
    /// Factor on the update.
    pub scale: f32,
    /// Full name of the checkpoint module.
    pub module: String,
    /// Row of the module that each of these rows is; None where they are the same.
    pub order: Option<Arc<[usize]>>,
    /// Number of the dropout stream.
    pub site: u64,
}

/// A norm.
#[derive(Clone, Copy, Debug)]
pub struct NormParams {
    /// `[hidden]`.
    pub weight: ParamId,
    /// `[hidden]`, LayerNorm only.
    pub bias: Option<ParamId>,
}

/// One block. Its norms are those its [`Residual`] names.
#[derive(Clone, Debug)]
pub struct BlockParams {
    /// Before attention (after it in post-norm blocks).
    pub norm1: NormParams,
    /// Fused q|k|v.
    pub qkv: Linear,
    /// On query heads and on key heads, `[head_dim]` each.
    pub qk_norm: Option<[ParamId; 2]>,
    /// Attention output.
    pub out: Linear,
    /// After attention.
    pub post1: Option<NormParams>,
    /// Before the MLP (after it in post-norm blocks).
    pub norm2: Option<NormParams>,
    /// First MLP layer, or gate|up.
    pub up: Linear,
    /// Second MLP layer.
    pub down: Linear,
    /// After the MLP.
    pub post2: Option<NormParams>,
}

/// Checkpoint tensors that make up a parameter, stacked by rows.
#[derive(Clone, Debug)]
pub struct Source {
    /// Full tensor name and its rows in the parameter.
    pub tensors: Vec<(String, usize)>,
    /// Stored `[in, out]`.
    pub transposed: bool,
    /// Row of the stacked tensors that each row of the parameter is; None where they are the same.
    pub order: Option<Arc<[usize]>>,
}

impl Source {
    fn new(tensor: String, rows: usize) -> Source {
        Source { tensors: vec![(tensor, rows)], transposed: false, order: None }
    }
}

/// All parameters of a model.
#[derive(Clone, Debug)]
pub struct Params {
    /// Token embedding `[vocab, hidden]`.
    pub tokens: ParamId,
    /// Position embedding `[rows, hidden]`.
    pub positions: Option<ParamId>,
    /// After the embedding.
    pub embed_norm: Option<NormParams>,
    /// `[hidden, embed_width]`, where these differ.
    pub project_in: Option<ParamId>,
    /// `[embed_width, hidden]`, likewise.
    pub project_out: Option<ParamId>,
    /// The blocks.
    pub blocks: Vec<BlockParams>,
    /// Query heads of each block of the cut.
    pub heads: Group,
    /// Key and value heads of each.
    pub kv_heads: usize,
    /// Before the head.
    pub final_norm: Option<NormParams>,
    /// `[vocab, embed_width]`, which may be the embedding, or `[1, embed_width]`.
    pub head: ParamId,
    /// `[vocab]`.
    pub head_bias: Option<ParamId>,
    /// Checkpoint tensors by parameter; `None` for adapters.
    pub sources: Vec<Option<Source>>,
}

impl Params {
    /// Names, shapes, cuts into `blocks` and sources of all parameters of `arch` with `head` on
    /// top.
    pub fn lay_out(
        arch: &Arch,
        head: Head,
        train: bool,
        lora: Option<&LoraConfig>,
        blocks: usize,
    ) -> Result<(Vec<ParamSpec>, Params)> {
        let adapted = lora.map_or(Ok(HashMap::new()), |l| l.sizes(arch))?;
        let mut l = Layout {
            arch,
            specs: vec![],
            sources: vec![],
            segment: 0,
            train_base: train && lora.is_none(),
            train,
            adapted,
            widths: BlockWidths::new(arch, blocks),
            qkv_order: arch.qkv_source_rows().map(Arc::from),
        };
        let names = &arch.family.names;
        let full = |name: &str| format!("{}{name}", names.prefix);
        let tokens = l.table("tokens.weight", &[arch.vocab, arch.embed_width], names.tokens);
        let positions = match arch.position {
            Position::Learned { rows, .. } => {
                Some(l.table("positions.weight", &[rows, arch.hidden], names.positions))
            }
            Position::Rotary(_) | Position::Alibi { .. } => None,
        };
        let narrow = arch.embed_width != arch.hidden;
        let project_in = narrow.then(|| {
            l.projection("project_in", [arch.hidden, arch.embed_width], &full(names.project_in))
        });
        let embed_norm = arch.embed_norm.then(|| l.norm("embed_norm", &full(names.embed_norm)));
        let blocks = (0..arch.layers).map(|i| l.block(i)).collect();
        l.segment = arch.layers + 1;
        let final_norm = arch.final_norm.then(|| l.norm("final_norm", &full(names.final_norm)));
        let project_out = narrow.then(|| {
            l.projection("project_out", [arch.embed_width, arch.hidden], &full(names.project_out))
        });
        let own_bias = arch.head_bias && head == Head::Lm;
        let head_bias = own_bias.then(|| {
            let source = Source::new(format!("{}.bias", names.head), arch.vocab);
            l.param("lm_head.bias", &[arch.vocab], ShardSpec::Table, l.train_base, Some(source))
        });
        let head = match head {
            Head::Lm if arch.tied => tokens,
            Head::Lm => l.param(
                "lm_head.weight",
                &[arch.vocab, arch.embed_width],
                ShardSpec::Table,
                l.train_base,
                Some(Source::new(format!("{}.weight", names.head), arch.vocab)),
            ),
            Head::Score => l.param(
                "score.weight",
                &[1, arch.embed_width],
                ShardSpec::Replicated,
                train,
                Some(Source::new("score.weight".into(), 1)),
            ),
        };
        let params = Params {
            tokens,
            positions,
            embed_norm,
            project_in,
            project_out,
            blocks,
            heads: l.widths.heads,
            kv_heads: l.widths.kv_heads,
            final_norm,
            head,
            head_bias,
            sources: l.sources,
        };
        Ok((l.specs, params))
    }
}

impl Params {
    /// The linear layers of all blocks, in block order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down])
    }
}

/// How the widths inside a block are cut: heads stay whole, and a block has the key and value heads
/// that its query heads read.
#[derive(Clone, Debug)]
pub(super) struct BlockWidths {
    /// Query heads.
    pub heads: Group,
    /// Key and value heads of a block.
    pub kv_heads: usize,
    /// Elements of the query heads.
    pub q: Group,
    /// Elements of the key or value heads.
    pub kv: Group,
    /// Elements inside the MLP.
    pub ffn: Group,
}

impl BlockWidths {
    /// The widths in each of `blocks` blocks of `arch`. Where there are fewer key and value heads
    /// than blocks, several blocks have the same one, and share out its query heads.
    pub(super) fn new(arch: &Arch, blocks: usize) -> BlockWidths {
        let (heads, kv_heads) = (arch.heads, arch.kv_heads.max(1));
        let group = heads / kv_heads;
        let (q, kv) = if kv_heads >= blocks {
            let kv = Group::even(0..kv_heads, blocks);
            (kv.times(group), kv)
        } else {
            let copies = blocks / kv_heads;
            let each = group.div_ceil(copies);
            let ranges = (0..blocks).map(|b| {
                let (head, copy) = (b / copies, b % copies);
                let at = |copy: usize| head * group + (copy * each).min(group);
                let q = if head < kv_heads { at(copy)..at(copy + 1) } else { heads..heads };
                let kv = if q.is_empty() { kv_heads..kv_heads } else { head..head + 1 };
                (q, kv)
            });
            let (q, kv): (Vec<Range<usize>>, Vec<Range<usize>>) = ranges.unzip();
            (Group { each, blocks: q.into() }, Group { each: 1, blocks: kv.into() })
        };
        let d = arch.head_dim;
        BlockWidths {
            kv_heads: kv.each,
            q: q.times(d),
            kv: kv.times(d),
            ffn: Group::even(0..arch.ffn, blocks),
            heads: q,
        }
    }
}

struct Layout<'a> {
    arch: &'a Arch,
    specs: Vec<ParamSpec>,
    sources: Vec<Option<Source>>,
    segment: usize,
    train_base: bool,
    train: bool,
    /// Adapters by the module they are on.
    adapted: HashMap<String, Size>,
    widths: BlockWidths,
    /// Row order of qkv, the same in all blocks; see [`Source::order`].
    qkv_order: Option<Arc<[usize]>>,
}

/// The shape of a linear layer.
struct Shape<'a> {
    /// Output rows, by module.
    groups: &'a [usize],
    /// Inputs.
    columns: usize,
    /// How its weight is cut.
    sharding: ShardSpec,
    /// True if it has a bias.
    bias: bool,
}

impl Layout<'_> {
    fn param(
        &mut self,
        name: &str,
        shape: &[usize],
        sharding: ShardSpec,
        trained: bool,
        source: Option<Source>,
    ) -> ParamId {
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.specs.push(ParamSpec { name, segment: self.segment, shape, sharding, trained });
        self.sources.push(source);
        ParamId(self.specs.len() - 1)
    }

    /// An embedding table.
    fn table(&mut self, name: &str, shape: &[usize], module: &str) -> ParamId {
        let tensor = format!("{}{module}.weight", self.arch.family.names.prefix);
        let source = Source::new(tensor, shape[0]);
        self.param(name, shape, ShardSpec::Table, self.train_base, Some(source))
    }

    /// A linear map without bias, whole on every rank.
    fn projection(&mut self, name: &str, shape: [usize; 2], module: &str) -> ParamId {
        let source = Source::new(format!("{module}.weight"), shape[0]);
        let name = format!("{name}.weight");
        self.param(&name, &shape, ShardSpec::Replicated, self.train_base, Some(source))
    }

    /// The weight of a norm over heads.
    fn qk_norm(&mut self, name: &str, module: &str) -> ParamId {
        let (d, train) = (self.arch.head_dim, self.train_base);
        let source = Source::new(format!("{module}.weight"), d);
        self.param(&format!("{name}.weight"), &[d], ShardSpec::Replicated, train, Some(source))
    }

    fn norm(&mut self, name: &str, module: &str) -> NormParams {
        let (hidden, bias) = (self.arch.hidden, self.arch.norm.layer_norm);
        let mut one = |part: &str| {
            let source = Source::new(format!("{module}.{part}"), hidden);
            let train = self.train_base;
            self.param(
                &format!("{name}.{part}"),
                &[hidden],
                ShardSpec::Replicated,
                train,
                Some(source),
            )
        };
        let weight = one("weight");
        NormParams { weight, bias: bias.then(|| one("bias")) }
    }

    fn block(&mut self, i: usize) -> BlockParams {
        self.segment = i + 1;
        let (arch, n) = (self.arch, &self.arch.family.names);
        let (q, kv) = (arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim);
        let parts = if arch.gated { 2 } else { 1 };
        let widths = self.widths.clone();
        let across = |width: usize, group: &Group, parts: usize| {
            ShardSpec::Rows((0..parts).map(|i| group.after(i * width)).collect())
        };
        let at = format!("{}{}.", n.prefix, n.block.replace("{i}", &i.to_string()));
        let name = |part: &str| format!("blocks.{i}.{part}");
        let norm1 = self.norm(&name("norm1"), &format!("{at}{}", n.norm1));
        let [k, v] = [q, q + kv].map(|first| widths.kv.after(first));
        let qkv = self.linear(
            &name("qkv"),
            &at,
            n.qkv,
            Shape {
                groups: &[q, kv, kv],
                columns: arch.hidden,
                sharding: ShardSpec::Rows(vec![widths.q.clone(), k, v]),
                bias: arch.bias_qkv,
            },
        );
        let qk_norm = arch.qk_norm.then(|| {
            [("q_norm", n.q_norm), ("k_norm", n.k_norm)]
                .map(|(ours, theirs)| self.qk_norm(&name(ours), &format!("{at}{theirs}")))
        });
        let out = self.linear(
            &name("out"),
            &at,
            n.out,
            Shape {
                groups: &[arch.hidden],
                columns: q,
                sharding: ShardSpec::Cols(widths.q),
                bias: arch.bias_out,
            },
        );
        let sandwich = arch.residual == Residual::Sandwich;
        let post1 = sandwich.then(|| self.norm(&name("post1"), &format!("{at}{}", n.post1)));
        let two = arch.residual != Residual::ParallelOneNorm;
        let norm2 = two.then(|| self.norm(&name("norm2"), &format!("{at}{}", n.norm2)));
        let up = self.linear(
            &name("up"),
            &at,
            n.up,
            Shape {
                groups: &vec![arch.ffn; parts],
                columns: arch.hidden,
                sharding: across(arch.ffn, &widths.ffn, parts),
                bias: arch.bias_mlp,
            },
        );
        let down = self.linear(
            &name("down"),
            &at,
            n.down,
            Shape {
                groups: &[arch.hidden],
                columns: arch.ffn,
                sharding: ShardSpec::Cols(widths.ffn),
                bias: arch.bias_mlp,
            },
        );
        let post2 = sandwich.then(|| self.norm(&name("post2"), &format!("{at}{}", n.post2)));
        BlockParams { norm1, qkv, qk_norm, out, post1, norm2, up, down, post2 }
    }

    /// A linear layer from as many modules as its shape has groups, or from a single fused one.
    fn linear(&mut self, name: &str, at: &str, modules: Module, shape: Shape<'_>) -> Linear {
        let Shape { groups, columns, sharding, bias } = shape;
        let total: usize = groups.iter().sum();
        // Only qkv has three groups.
        let mixed = modules.len() == 1 && groups.len() == 3;
        let order = self.qkv_order.clone().filter(|_| mixed);
        let groups = if modules.len() == 1 { vec![total] } else { groups.to_vec() };
        let source = |part: &str, transposed: bool| Source {
            order: order.clone(),
            tensors: modules
                .iter()
                .zip(&groups)
                .map(|(m, g)| (format!("{at}{m}.{part}"), *g))
                .collect(),
            transposed,
        };
        let bias_sharding = if matches!(sharding, ShardSpec::Cols(_)) {
            ShardSpec::Replicated
        } else {
            sharding.clone()
        };
        let train = self.train_base;
        let weight_source = source("weight", self.arch.family.transposed);
        let weight = self.param(
            &format!("{name}.weight"),
            &[total, columns],
            sharding.clone(),
            train,
            Some(weight_source),
        );
        let bias = bias.then(|| {
            let source = source("bias", false);
            self.param(&format!("{name}.bias"), &[total], bias_sharding, train, Some(source))
        });
        let modules: Vec<(&str, usize)> = modules.iter().copied().zip(groups).collect();
        let adapters = self.adapters([name, at], &modules, columns, &sharding, order);
        Linear { weight, bias, adapters }
    }

    /// The adapters of the `modules` of a layer, each with its output rows, that are to have one.
    fn adapters(
        &mut self,
        [name, at]: [&str; 2],
        modules: &[(&str, usize)],
        columns: usize,
        sharding: &ShardSpec,
        order: Option<Arc<[usize]>>,
    ) -> Vec<Adapter> {
        let several = modules.len() > 1;
        let mut adapters = vec![];
        let (mut offset, mut offset_in_block) = (0, 0);
        for (i, &(module, rows)) in modules.iter().enumerate() {
            let short = module.rsplit('.').next().unwrap_or(module);
            let module = format!("{at}{module}");
            if let Some(Size { rank, scale }) = self.adapted.get(&module).copied() {
                let name = format!("{name}.lora.{short}");
                // Of an adapter's two factors one is sharded like the weight.
                let (sharding_a, sharding_b) = match sharding {
                    ShardSpec::Cols(_) => (sharding.clone(), ShardSpec::Replicated),
                    ShardSpec::Rows(all) if several => {
                        (ShardSpec::Replicated, ShardSpec::Rows(vec![all[i].since(offset)]))
                    }
                    _ => (ShardSpec::Replicated, sharding.clone()),
                };
                let mut factor = |part: &str, shape: &[usize], sharding| {
                    self.param(&format!("{name}.{part}"), shape, sharding, self.train, None)
                };
                let a = factor("a", &[rank, columns], sharding_a);
                let b = factor("b", &[rows, rank], sharding_b);
                let (order, site) = (order.clone(), a.0 as u64);
                adapters.push(Adapter {
                    a,
                    b,
                    offset,
                    offset_in_block,
                    rows,
                    rank,
                    scale,
                    module,
                    order,
                    site,
                });
            }
            offset += rows;
            offset_in_block += match sharding {
                ShardSpec::Rows(all) if several => all[i].each,
                _ => 0,
            };
        }
        adapters
    }
}
