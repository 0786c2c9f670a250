//! Bytes and floating-point operations that the work needs, counted from the architecture: what the
//! rates of a measurement are rates of. What an implementation does beyond that (computing logits
//! twice, say) does not count. `docs/performance.md` has the formulas.

use crate::arch::Arch;
use crate::base::{DType, Result};
use crate::model::{Head, Params};

/// The sizes that decide the cost of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    /// Parameters of the matrices every token goes through.
    matrices: usize,
    /// Parameters of the head.
    head: usize,
    /// Width of all query heads of all layers.
    attention: usize,
    /// Parameters read in a decode step: all but embeddings that are only looked up.
    read: usize,
    /// All parameters.
    pub(super) parameters: usize,
}

impl Cost {
    pub(super) fn of(arch: &Arch, head: Head) -> Result<Cost> {
        let (specs, _) = Params::lay_out(arch, head, false, None, 1)?;
        let mut cost = Cost {
            matrices: 0,
            head: if head == Head::Lm { arch.vocab * arch.embed_width } else { arch.embed_width },
            attention: arch.layers * arch.heads * arch.head_dim,
            read: 0,
            parameters: 0,
        };
        for spec in &specs {
            let n: usize = spec.shape.iter().product();
            let looked_up = spec.name == "positions.weight" || spec.name == "tokens.weight";
            let is_head = head == Head::Lm && arch.tied && spec.name == "tokens.weight";
            cost.parameters += n;
            cost.read += if looked_up && !is_head { 0 } else { n };
            let block = spec.name.starts_with("blocks.") || spec.name.starts_with("project_");
            cost.matrices += if block && spec.shape.len() == 2 { n } else { 0 };
        }
        Ok(cost)
    }

    /// Forward pass of `sequences` sequences, each of `new` tokens after `old` cached ones, with
    /// the head at `heads` tokens of each.
    pub(super) fn forward(&self, sequences: usize, old: usize, new: usize, heads: usize) -> f64 {
        // Token i of the new ones sees old + i + 1 keys; q k and p v are two operations each.
        let keys = new * old + new * (new + 1) / 2;
        let one = 2 * (new * self.matrices + heads * self.head) + 4 * self.attention * keys;
        (sequences * one) as f64
    }

    /// Forward and backward pass of `sequences` whole sequences: three times the forward pass.
    pub(super) fn training(&self, sequences: usize, tokens: usize, heads: usize) -> f64 {
        3.0 * self.forward(sequences, 0, tokens, heads)
    }

    /// Prefill and decoding of `new` answer tokens; the first comes from the prefill.
    pub(super) fn generation(&self, sequences: usize, prompt: usize, new: usize) -> [f64; 2] {
        let step = |i| self.forward(sequences, prompt + i, 1, 1);
        [self.forward(sequences, 0, prompt, 1), (0..new - 1).map(step).sum()]
    }

    /// Bytes of weights read in a decode step, whatever the batch.
    pub(super) fn step_bytes(&self, dtype: DType) -> f64 {
        (self.read * dtype.size()) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use serde_json::json;

    fn cost(tied: bool, head: Head) -> Cost {
        let config = json!({"model_type": "llama", "vocab_size": 11, "hidden_size": 8,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 10, "max_position_embeddings": 64, "tie_word_embeddings": tied});
        let config = Config::from_map(config.as_object().unwrap().clone());
        Cost::of(&config.arch().unwrap(), head).unwrap()
    }

    #[test]
    fn counts_are_those_made_by_hand() {
        // q 64, k and v 32 each, out 64, gate, up and down 80 each; two norms a block, one at the
        // end.
        let (matrices, norms) = (3 * (64 + 64 + 64 + 240), 7 * 8);
        let tied = cost(true, Head::Lm);
        assert_eq!((tied.matrices, tied.head, tied.attention), (matrices, 88, 24));
        assert_eq!((tied.read, tied.parameters), (matrices + norms + 88, matrices + norms + 88));
        let own = cost(false, Head::Lm);
        assert_eq!((own.read, own.parameters), (tied.read, tied.parameters + 88));
        let score = cost(true, Head::Score);
        assert_eq!((score.head, score.read), (8, matrices + norms + 8));
    }

    #[test]
    fn decoding_costs_what_one_pass_over_the_same_tokens_costs() {
        let c = cost(true, Head::Lm);
        let [prefill, decode] = c.generation(5, 7, 4);
        // The last answer token is never run through the model.
        let whole = c.forward(5, 0, 7 + 3, 4);
        assert_eq!(prefill + decode, whole);
        assert_eq!(c.training(5, 10, 4), 3.0 * whole);
        assert_eq!(c.forward(1, 0, 1, 1), 2.0 * (c.matrices + c.head) as f64 + 4.0 * 24.0);
    }
}
