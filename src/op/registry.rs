//! The one list of operators. Conformance tests, gradient checks and `docs/ops.md` follow from it.

use crate::op::def::OpDef;

/// All operators.
pub static OPS: &[OpDef] = &[
    crate::op::act::DEF,
    crate::op::adamw::DEF,
    crate::op::adamw_compact::DEF,
    crate::op::add::DEF,
    crate::op::advance::DEF,
    crate::op::all_gather::DEF,
    crate::op::all_reduce::DEF,
    crate::op::attention::DEF,
    crate::op::cached_attention::DEF,
    crate::op::ema::DEF,
    crate::op::embed::DEF,
    crate::op::gae::DEF,
    crate::op::gather::DEF,
    crate::op::head::DEF,
    crate::op::head_norm::DEF,
    crate::op::linear::DEF,
    crate::op::logprob::DEF,
    crate::op::lora::DEF,
    crate::op::narrow::DEF,
    crate::op::nll::DEF,
    crate::op::norm::DEF,
    crate::op::pairwise::DEF,
    crate::op::ppo_policy::DEF,
    crate::op::ppo_value::DEF,
    crate::op::rope::DEF,
    crate::op::sample::DEF,
    crate::op::settle::DEF,
    crate::op::softcap::DEF,
    crate::op::stitch::DEF,
    crate::op::sum_sq::DEF,
    crate::op::weighted_sum::DEF,
    crate::op::whiten::DEF,
];
