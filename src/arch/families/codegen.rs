//! CodeGen (Nijkamp et al. 2023): GPT-J with a fused qkv layer, whose rows lie in the blocks of the
//! four devices it was trained on.

use super::{Family, Names, gptj};
use crate::arch::{Arch, Config, QkvRows};
use crate::base::Result;

const DEVICES: usize = 4;

pub(super) static CODEGEN: Family = Family {
    model_type: "codegen",
    causal_lm: "CodeGenForCausalLM",
    // transformers has no such class; the name says what the weights are.
    classifier: "CodeGenForSequenceClassification",
    transposed: false,
    names: Names { qkv: &["attn.qkv_proj"], ..gptj::NAMES },
    keys: &[gptj::KEYS],
    read,
};

fn read(c: &Config, family: &'static Family) -> Result<Arch> {
    let arch = gptj::read(c, family)?;
    if arch.heads % DEVICES != 0 {
        let what = format!("{} is not a multiple of {DEVICES}", arch.heads);
        return Err(c.error("n_head", &what));
    }
    Ok(Arch { qkv_order: QkvRows::Blocks(DEVICES), ..arch })
}
