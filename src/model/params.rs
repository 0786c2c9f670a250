//! The parameters of a model: which there are, how they are cut over ranks, and which checkpoint
//! tensors they are made of.

use crate::arch::{Arch, Module, Position};
use crate::base::Result;
use crate::model::{Head, LoraConfig};
use crate::pool::{Cut, ParamId, ParamSpec};

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
    /// Output rows it acts on.
    pub rows: usize,
    /// Full name of the checkpoint module.
    pub module: String,
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

/// One block.
#[derive(Clone, Debug)]
pub struct BlockParams {
    /// Before attention.
    pub norm1: NormParams,
    /// Fused q|k|v.
    pub qkv: Linear,
    /// Attention output.
    pub out: Linear,
    /// Before the MLP.
    pub norm2: NormParams,
    /// First MLP layer, or gate|up.
    pub up: Linear,
    /// Second MLP layer.
    pub down: Linear,
}

/// Checkpoint tensors that make up a parameter, stacked by rows.
#[derive(Clone, Debug)]
pub struct Source {
    /// Full tensor name and its rows in the parameter.
    pub tensors: Vec<(String, usize)>,
    /// Stored `[in, out]`.
    pub transposed: bool,
}

/// All parameters of a model.
#[derive(Clone, Debug)]
pub struct Params {
    /// Token embedding `[vocab, hidden]`.
    pub tokens: ParamId,
    /// Position embedding `[rows, hidden]`.
    pub positions: Option<ParamId>,
    /// The blocks.
    pub blocks: Vec<BlockParams>,
    /// Before the head.
    pub final_norm: NormParams,
    /// `[vocab, hidden]`, which may be the embedding, or `[1, hidden]`.
    pub head: ParamId,
    /// Checkpoint tensors by parameter; `None` for adapters.
    pub sources: Vec<Option<Source>>,
}

impl Params {
    /// Names, shapes, cuts and sources of all parameters of `arch` with `head` on top.
    pub fn lay_out(
        arch: &Arch,
        head: Head,
        train: bool,
        lora: Option<&LoraConfig>,
    ) -> Result<(Vec<ParamSpec>, Params)> {
        if let Some(lora) = lora {
            lora.check(arch)?;
        }
        let mut l = Layout {
            arch,
            specs: vec![],
            sources: vec![],
            segment: 0,
            train_base: train && lora.is_none(),
            train,
            lora,
        };
        let names = &arch.family.names;
        let tokens = l.table("tokens.weight", &[arch.vocab, arch.hidden], names.tokens);
        let positions = match arch.position {
            Position::Learned { rows, .. } => {
                Some(l.table("positions.weight", &[rows, arch.hidden], names.positions))
            }
            Position::Rope { .. } => None,
        };
        let blocks = (0..arch.layers).map(|i| l.block(i)).collect();
        l.segment = arch.layers + 1;
        let final_norm = l.norm("final_norm", &format!("{}{}", names.prefix, names.final_norm));
        let head = match head {
            Head::Lm if arch.tied => tokens,
            Head::Lm => l.param(
                "lm_head.weight",
                &[arch.vocab, arch.hidden],
                Cut::Rows(vec![arch.vocab]),
                l.train_base,
                Some(Source {
                    tensors: vec![("lm_head.weight".into(), arch.vocab)],
                    transposed: false,
                }),
            ),
            Head::Score => l.param(
                "score.weight",
                &[1, arch.hidden],
                Cut::Whole,
                train,
                Some(Source { tensors: vec![("score.weight".into(), 1)], transposed: false }),
            ),
        };
        let params = Params { tokens, positions, blocks, final_norm, head, sources: l.sources };
        Ok((l.specs, params))
    }
}

struct Layout<'a> {
    arch: &'a Arch,
    specs: Vec<ParamSpec>,
    sources: Vec<Option<Source>>,
    segment: usize,
    train_base: bool,
    train: bool,
    lora: Option<&'a LoraConfig>,
}

impl Layout<'_> {
    fn param(
        &mut self,
        name: &str,
        shape: &[usize],
        cut: Cut,
        trained: bool,
        source: Option<Source>,
    ) -> ParamId {
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.specs.push(ParamSpec { name, segment: self.segment, shape, cut, trained });
        self.sources.push(source);
        ParamId(self.specs.len() - 1)
    }

    /// An embedding table, cut by rows.
    fn table(&mut self, name: &str, shape: &[usize], module: &str) -> ParamId {
        let tensor = format!("{}{module}.weight", self.arch.family.names.prefix);
        let source = Source { tensors: vec![(tensor, shape[0])], transposed: false };
        self.param(name, shape, Cut::Rows(vec![shape[0]]), self.train_base, Some(source))
    }

    fn norm(&mut self, name: &str, module: &str) -> NormParams {
        let (hidden, bias) = (self.arch.hidden, self.arch.norm.layer_norm);
        let mut one = |part: &str| {
            let source =
                Source { tensors: vec![(format!("{module}.{part}"), hidden)], transposed: false };
            let train = self.train_base;
            self.param(&format!("{name}.{part}"), &[hidden], Cut::Whole, train, Some(source))
        };
        let weight = one("weight");
        NormParams { weight, bias: bias.then(|| one("bias")) }
    }

    fn block(&mut self, i: usize) -> BlockParams {
        self.segment = i + 1;
        let (arch, n) = (self.arch, &self.arch.family.names);
        let (q, kv) = (arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim);
        let up = if arch.gated { vec![arch.ffn, arch.ffn] } else { vec![arch.ffn] };
        let at = format!("{}{}.", n.prefix, n.block.replace("{i}", &i.to_string()));
        let name = |part: &str| format!("blocks.{i}.{part}");
        let norm1 = self.norm(&name("norm1"), &format!("{at}{}", n.norm1));
        let rows = |groups: &[usize]| Cut::Rows(groups.to_vec());
        let qkv = self.linear(
            &name("qkv"),
            &at,
            n.qkv,
            &[q, kv, kv],
            arch.hidden,
            rows(&[q, kv, kv]),
            arch.bias_qkv,
        );
        let out =
            self.linear(&name("out"), &at, n.out, &[arch.hidden], q, Cut::Cols, arch.bias_out);
        let norm2 = self.norm(&name("norm2"), &format!("{at}{}", n.norm2));
        let up = self.linear(&name("up"), &at, n.up, &up, arch.hidden, rows(&up), arch.bias_mlp);
        let down = self.linear(
            &name("down"),
            &at,
            n.down,
            &[arch.hidden],
            arch.ffn,
            Cut::Cols,
            arch.bias_mlp,
        );
        BlockParams { norm1, qkv, out, norm2, up, down }
    }

    /// A linear layer of output `groups`, from as many modules, or from a single fused one.
    #[allow(clippy::too_many_arguments)]
    fn linear(
        &mut self,
        name: &str,
        at: &str,
        modules: Module,
        groups: &[usize],
        columns: usize,
        cut: Cut,
        bias: bool,
    ) -> Linear {
        let total: usize = groups.iter().sum();
        let groups = if modules.len() == 1 { vec![total] } else { groups.to_vec() };
        let source = |part: &str, transposed: bool| Source {
            tensors: modules
                .iter()
                .zip(&groups)
                .map(|(m, g)| (format!("{at}{m}.{part}"), *g))
                .collect(),
            transposed,
        };
        let transposed = self.arch.family.transposed;
        let bias_cut = if cut == Cut::Cols { Cut::Whole } else { cut.clone() };
        let train = self.train_base;
        let weight_source = source("weight", transposed);
        let weight = self.param(
            &format!("{name}.weight"),
            &[total, columns],
            cut,
            train,
            Some(weight_source),
        );
        let bias = bias.then(|| {
            let source = source("bias", false);
            self.param(&format!("{name}.bias"), &[total], bias_cut, train, Some(source))
        });
        let mut adapters = vec![];
        let mut offset = 0;
        for (module, rows) in modules.iter().zip(&groups) {
            let short = module.rsplit('.').next().unwrap_or(module);
            if let Some(lora) = self.lora.filter(|l| l.targets(short)) {
                let (name, rank) = (format!("{name}.lora.{short}"), lora.rank);
                let a = self.param(
                    &format!("{name}.a"),
                    &[rank, columns],
                    Cut::Whole,
                    self.train,
                    None,
                );
                let b =
                    self.param(&format!("{name}.b"), &[*rows, rank], Cut::Whole, self.train, None);
                let (module, site) = (format!("{at}{module}"), a.0 as u64);
                adapters.push(Adapter { a, b, offset, rows: *rows, module, site });
            }
            offset += rows;
        }
        Linear { weight, bias, adapters }
    }
}
