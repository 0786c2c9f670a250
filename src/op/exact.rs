//! Reference values in float64, by the plain formulas: what test cases of operators and tests of
//! algorithms compare with. Nothing that runs in training uses them.

/// The logits of each row of `x [n, d]`, in float64: by `w [vocab, d]` and `bias [vocab]`, which
/// may be empty.
pub fn exact_logits<'a>(
    x: &'a [f64],
    w: &'a [f64],
    bias: &'a [f64],
    d: usize,
    softcap: f32,
) -> impl Iterator<Item = Vec<f64>> + 'a {
    let cap = f64::from(softcap);
    let capped = move |l: f64| if cap == 0.0 { l } else { cap * (l / cap).tanh() };
    x.chunks(d).map(move |x| {
        let logit = |(v, w): (usize, &[f64])| {
            let dot = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            capped(dot + bias.get(v).unwrap_or(&0.0))
        };
        w.chunks(d).enumerate().map(logit).collect()
    })
}

/// Logarithm of the sum of the exponentials of `z`, in float64.
pub fn log_sum_exp(z: &[f64]) -> f64 {
    let top = z.iter().copied().fold(f64::MIN, f64::max);
    top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln()
}

/// log(1 + e^x), in float64, also where e^x is too large.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
