//! Drawing answers: ends, minimum lengths, and filters that leave one token.

use crate::common::*;
use crate::setup::*;
use duplex::base::DType;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::rollout::{Answer, Sampling};
use duplex::tape::Workspace;

fn engine(family: &str) -> Engine {
    Engine::frozen(model(family, Head::Lm, DType::F32, false, None, 9))
}

fn answers(ws: &mut Workspace, engine: &mut Engine, sampling: &Sampling) -> Vec<Answer> {
    let prompts = prompts(14, 12);
    let rows: Vec<&[i32]> = prompts.iter().map(Vec::as_slice).collect();
    let ids: Vec<u64> = (0..12).collect();
    let mut heard = vec![vec![]; 12];
    let answers = engine.generate(ws, &rows, &ids, sampling, &mut |i, t| heard[i].push(t)).unwrap();
    assert!(answers.iter().zip(&heard).all(|(a, h)| a.tokens == *h));
    answers
}

#[test]
fn answers_end_at_the_first_end_token_and_not_before_the_minimum() {
    for family in FAMILIES {
        let (mut ws, mut engine) = (workspace(), engine(family));
        let eos: Vec<i32> = (0..VOCAB as i32).filter(|t| t % 3 == 0).collect();
        for min_new_tokens in [0, 1, 6, 10] {
            let sampling = Sampling {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_new_tokens,
                max_new_tokens: 10,
                eos: eos.clone(),
                seed: 2,
            };
            let all = answers(&mut ws, &mut engine, &sampling);
            for a in &all {
                assert_eq!(a.tokens.len(), a.logprobs.len());
                assert!(a.tokens.iter().all(|t| (0..VOCAB as i32).contains(t)));
                let first = a.tokens.iter().position(|t| eos.contains(t));
                assert_eq!(a.finished, first.is_some());
                assert_eq!(a.tokens.len(), first.map_or(10, |f| f + 1));
                assert!(first.is_none_or(|f| f >= min_new_tokens));
            }
            let ends: Vec<usize> = all.iter().map(|a| a.tokens.len()).collect();
            match min_new_tokens {
                10 => assert!(all.iter().all(|a| !a.finished)),
                _ => assert!(all.iter().any(|a| a.finished), "{ends:?}"),
            }
        }
        // Without end tokens nothing ends.
        let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(10, vec![]) };
        let all = answers(&mut ws, &mut engine, &sampling);
        assert!(all.iter().all(|a| !a.finished && a.tokens.len() == 10));
    }
}

#[test]
fn greedy_takes_the_likeliest_token_and_narrow_filters_leave_no_other() {
    for family in FAMILIES {
        let (mut ws, mut engine) = (workspace(), engine(family));
        let greedy = Sampling::greedy(8, vec![7]);
        let want = answers(&mut ws, &mut engine, &greedy);
        for (prompt, answer) in prompts(14, 12).iter().zip(&want) {
            let mut ids = prompt.clone();
            for (token, logp) in answer.tokens.iter().zip(&answer.logprobs) {
                let all = distribution(&mut ws, &engine, &ids, 1.0);
                assert!(all.iter().all(|l| *l <= all[*token as usize]));
                assert_eq!(f64::from(*logp), all[*token as usize]);
                ids.push(*token);
            }
        }
        let draw = Sampling { temperature: 1.0, seed: 77, ..greedy.clone() };
        let k = Sampling { top_k: 1, ..draw.clone() };
        let p = Sampling { top_p: 1e-6, ..draw.clone() };
        let both = Sampling { top_k: 5, top_p: 1e-6, ..draw.clone() };
        for sampling in [k, p, both] {
            assert_eq!(answers(&mut ws, &mut engine, &sampling), want, "{family}");
        }
        // At another temperature the tokens are the same, their log-probs are not.
        let cold = Sampling { temperature: 0.5, top_k: 1, ..draw.clone() };
        let cold = answers(&mut ws, &mut engine, &cold);
        let tokens = |a: &[Answer]| a.iter().map(|a| a.tokens.clone()).collect::<Vec<_>>();
        assert_eq!(tokens(&cold), tokens(&want));
        assert!(cold.iter().zip(&want).all(|(c, w)| c.logprobs != w.logprobs));
        // Unfiltered draws differ, and by seed.
        let one = answers(&mut ws, &mut engine, &draw);
        let other = answers(&mut ws, &mut engine, &Sampling { seed: 78, ..draw });
        assert!(tokens(&one) != tokens(&want) && tokens(&one) != tokens(&other));
    }
}

#[test]
fn draws_follow_the_distribution_within_the_filters() {
    let (mut ws, mut engine) = (workspace(), engine("gpt2"));
    let prompt: &[i32] = &[5, 6, 7];
    let n = 4000;
    let rows = vec![prompt; n];
    let ids: Vec<u64> = (0..n as u64).collect();
    let mut p: Vec<(f64, usize)> = distribution(&mut ws, &engine, prompt, 0.8)
        .into_iter()
        .enumerate()
        .map(|(i, l)| (l.exp(), i))
        .collect();
    p.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (top_k, top_p) in [(0, 1.0), (6, 1.0), (0, 0.5), (9, 0.6)] {
        // What is left: the k likeliest, then the fewest of them with the share p.
        let left = &p[..if top_k == 0 { p.len() } else { top_k }];
        let total: f64 = left.iter().map(|x| x.0).sum();
        let mut share = 0.0;
        let mut kept = vec![];
        for x in left {
            if share < f64::from(top_p) * total {
                kept.push(*x);
            }
            share += x.0;
        }
        let total: f64 = kept.iter().map(|x| x.0).sum();
        let draw = Sampling { temperature: 0.8, top_k, top_p, ..Sampling::greedy(1, vec![]) };
        let made = engine.generate(&mut ws, &rows, &ids, &draw, &mut |_, _| {}).unwrap();
        let mut counts = vec![0f64; VOCAB];
        made.iter().for_each(|a| counts[a.tokens[0] as usize] += 1.0);
        for (share, token) in &kept {
            let (want, deviation) = (share / total, (share / total / n as f64).sqrt());
            let got = counts[*token] / n as f64;
            assert!((got - want).abs() < 5.0 * deviation + 2e-3, "{token}: {got} {want}");
            counts[*token] = 0.0;
        }
        assert!(counts.iter().all(|c| *c == 0.0), "tokens outside of top-k and top-p");
    }
}
