//! Completions that were sampled and scored, ready to be trained on.

/// A prompt and its completion with all that training needs. Vectors have one entry for each token
/// of the completion, or none where the algorithm has no reference or no critic.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// The place of the prompt among those asked.
    pub prompt: usize,
    /// Prompt and completion.
    pub ids: Vec<i32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Log-probs recorded while sampling.
    pub logprobs: Vec<f32>,
    /// Log-probs under the reference.
    pub ref_logprobs: Vec<f32>,
    /// Values of the states before each token.
    pub values: Vec<f32>,
    /// Rewards: the penalty for leaving the reference, and at the end the score.
    pub rewards: Vec<f32>,
    /// Advantages.
    pub advantages: Vec<f32>,
    /// Advantage + value.
    pub returns: Vec<f32>,
    /// Score of the completion as the reward gave it.
    pub score: f32,
    /// The answer ended with an end token.
    pub finished: bool,
}

impl Rollout {
    /// Log-ratio to the reference summed over the completion: a sample of the KL divergence. 0
    /// without a reference.
    pub fn kl(&self) -> f32 {
        self.logprobs.iter().zip(&self.ref_logprobs).map(|(a, b)| a - b).sum()
    }

    /// True if the answer is empty: it has no token, or an end token alone.
    pub fn is_empty(&self) -> bool {
        self.logprobs.len() <= usize::from(self.finished)
    }

    /// Positions whose next token is an answer token.
    pub(super) fn states(&self) -> std::ops::Range<usize> {
        self.prompt_len - 1..self.ids.len() - 1
    }
}

/// A batch of rollouts, ready to train on.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    /// The rollouts; those of one prompt stand together.
    pub rollouts: Vec<Rollout>,
    /// Completions that the reward did not judge, which are left out.
    pub unjudged: usize,
    /// Tokens of all completions with their prompts, those left out included.
    pub tokens: usize,
    /// Iteration they were made in.
    pub iteration: u64,
}
