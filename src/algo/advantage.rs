//! Advantages: how much better a token, or a whole completion, did than expected. The expectation,
//! the baseline, is a critic's value or the other completions of the same prompt.

use super::experience::Rollout;
use super::policy_loss::PolicyLoss;
use crate::base::Result;
use crate::op::gae::{Gae, gae};
use crate::op::whiten::{Whiten, whiten as whiten_op};
use crate::tape::{Shaped, Workspace};

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Advantage {
    /// Generalised advantage estimation over a critic's values (Schulman et al. 2015, equation 16).
    Gae {
        /// Discount.
        gamma: f32,
        /// Lambda.
        lambda: f32,
    },
    /// The reward of a completion minus the mean reward of the other completions of its prompt
    /// (Kool et al. 2019; Ahmadian et al. 2024, equation 4). Every token has that of its
    /// completion.
    LeaveOneOut,
}

impl Advantage {
    /// True if it takes a critic's values.
    pub fn asks_critic(&self) -> bool {
        matches!(self, Advantage::Gae { .. })
    }

    /// Completions that a prompt needs at least.
    pub fn least_generations(&self) -> usize {
        match self {
            Advantage::Gae { .. } => 1,
            Advantage::LeaveOneOut => 2,
        }
    }

    /// Sets the advantages of `rollouts`, and the returns where there are values. Rollouts of one
    /// prompt stand together.
    pub(super) fn estimate(&self, ws: &mut Workspace, rollouts: &mut [Rollout]) -> Result<()> {
        match *self {
            Advantage::Gae { gamma, lambda } => generalised(ws, Gae { gamma, lambda }, rollouts),
            Advantage::LeaveOneOut => {
                leave_one_out(rollouts);
                Ok(())
            }
        }
    }
}

fn generalised(ws: &mut Workspace, op: Gae, rollouts: &mut [Rollout]) -> Result<()> {
    let mut scan = Scan { first: vec![], second: vec![], cu_seqlens: vec![0] };
    for r in rollouts.iter() {
        scan.first.extend(&r.rewards);
        scan.second.extend(&r.values);
        scan.cu_seqlens.push(scan.first.len() as i32);
    }
    let (advantages, returns) = ws.run("gae", &scan, |tape, scan: &Scan| {
        let rewards = tape.input_f32(&scan.first)?;
        let values = tape.input_f32(&scan.second)?;
        let cu_seqlens = tape.input_i32(&scan.cu_seqlens)?;
        let (advantages, returns) = gae(tape, op, rewards, values, cu_seqlens)?;
        Ok((tape.read_f32(advantages)?, tape.read_f32(returns)?))
    })?;
    for (r, w) in rollouts.iter_mut().zip(scan.cu_seqlens.windows(2)) {
        let range = w[0] as usize..w[1] as usize;
        r.advantages = advantages[range.clone()].to_vec();
        r.returns = returns[range].to_vec();
    }
    Ok(())
}

/// A completion that is alone, because the reward judged no other of its prompt, has advantage 0.
fn leave_one_out(rollouts: &mut [Rollout]) {
    for group in rollouts.chunk_by_mut(|a, b| a.prompt == b.prompt) {
        let total = |r: &Rollout| r.rewards.iter().map(|x| f64::from(*x)).sum::<f64>();
        let (sum, others) = (group.iter().map(total).sum::<f64>(), group.len() - 1);
        for r in group {
            let own = total(r);
            let baseline = if others == 0 { own } else { (sum - own) / others as f64 };
            r.advantages = vec![(own - baseline) as f32; r.rewards.len()];
        }
    }
}

/// Brings the advantages of all units of the policy loss to mean 0 and variance 1.
pub(super) fn whiten(ws: &mut Workspace, rollouts: &mut [Rollout], unit: PolicyLoss) -> Result<()> {
    let advantages = unit.advantages(&rollouts.iter().collect::<Vec<_>>());
    let (ones, n) = (vec![1.0; advantages.len()], advantages.len());
    let scan = Scan { first: advantages, second: ones, cu_seqlens: vec![0, n as i32] };
    let white = ws.run("whiten", &scan, |tape, scan: &Scan| {
        let x = tape.input_f32(&scan.first)?;
        let mask = tape.input_f32(&scan.second)?;
        let y = whiten_op(tape, Whiten { shift_mean: true }, x, mask)?;
        tape.read_f32(y)
    })?;
    let mut rest = white.as_slice();
    for r in rollouts {
        let tokens = r.advantages.len();
        let (own, others) = rest.split_at(unit.units(tokens));
        // Every token has the advantage of its unit.
        r.advantages = own.iter().copied().cycle().take(tokens).collect();
        rest = others;
    }
    Ok(())
}

/// Two columns over packed sequences.
struct Scan {
    first: Vec<f32>,
    second: Vec<f32>,
    cu_seqlens: Vec<i32>,
}

impl Shaped for Scan {
    fn dims(&self) -> Vec<usize> {
        vec![self.first.len(), self.cu_seqlens.len() - 1]
    }

    fn largest(dims: &[usize]) -> Scan {
        let zeros = vec![0.0; dims[0]];
        Scan { first: zeros.clone(), second: zeros, cu_seqlens: vec![0; dims[1] + 1] }
    }
}
