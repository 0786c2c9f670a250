use super::answer::{Style, answer, closings, openings};
use super::dialogue::{Split, questions, walk};
use super::facts::{QUESTIONS, facts};
use super::*;
use crate::base::Rng;
use crate::formats::OutDir;
use std::collections::HashSet;

const SKY: &str = "Human: What colour is the sky?\nAssistant:";

fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = now.as_nanos() as u64;
    println!("seed {seed}");
    seed
}

fn words(text: &str) -> f64 {
    text.split_whitespace().count() as f64
}

/// The score of an answer whose quality is known by construction.
fn quality_score(correct: bool, style: Style) -> f64 {
    f64::from(u8::from(correct)) * 60.0 + f64::from(u8::from(style == Style::Polite)) * 40.0
}

#[test]
fn each_quality_scores_what_it_is_worth() {
    let mut rng = Rng::new(seed(), 0);
    for split in [Split::Training, Split::HeldOut] {
        for q in questions(split) {
            for correct in [true, false] {
                for style in [Style::Polite, Style::Rude] {
                    let text = answer(&mut rng, &q.fact, correct, style);
                    let got = rule_score(&q.prompt, &text);
                    assert_eq!(got, quality_score(correct, style), "{}{text}", q.prompt);
                }
            }
        }
    }
}

#[test]
fn an_answer_to_another_question_is_not_correct() {
    let seed = seed();
    let mut rng = Rng::new(seed, 0);
    let mut prompts: Vec<_> = walk(Split::Training, seed, 1).take(2000).collect();
    let last = prompts.pop().unwrap();
    for q in prompts.iter().filter(|q| q.fact.subject != last.fact.subject) {
        let text = answer(&mut rng, &last.fact, true, Style::Polite);
        assert_eq!(rule_score(&q.prompt, &text), 40.0, "{}{text}", q.prompt);
    }
}

#[test]
fn text_that_is_not_well_formed_scores_nothing() {
    assert_eq!(rule_score(SKY, " Of course! The sky is blue."), 100.0);
    for bad in [
        "",
        " ",
        ".",
        " blue",
        " Of course!",
        " Of course! Best wishes!",
        " blue blue blue.",
        " xq zzv the of blue.",
        " Of course! The sky is blue",
        " Of course! the sky is blue.",
        " Certainly, The sky is blue.",
        " Of course!The sky is blue.",
        " Of course! Of course! The sky is blue.",
        " Of course! The sky is blue. The sky is blue.",
        " The sky is blue. Best wishes! Best wishes!",
        " Of course! The sky is blue and green.",
        " Of course! The sky is Paris.",
        " The answer is blue. The sky is blue. That would be blue.",
        " Of course! The sky is blue.\nHuman: Thanks!",
        " Of course! The sky is blue. \u{fffd}",
    ] {
        assert_eq!(rule_score(SKY, bad), 0.0, "{bad:?}");
    }
}

#[test]
fn mixed_answers_get_partial_credit_as_documented() {
    for (text, score) in [
        ("The sky is blue.", 60.0),
        ("The sky is green.", 0.0),
        ("Of course! The sky is blue. Go away!", 60.0),
        ("Not again! The sky is blue. Best wishes!", 60.0),
        ("Of course! The sky is blue. The answer is blue.", 100.0),
        ("Of course! The sky is blue. The answer is green.", 40.0),
        ("Of course! The sky is green. The answer is blue.", 40.0),
        ("The sky is blue. The sky is green. Go away!", 0.0),
        ("Of course! Grass is green.", 40.0),
    ] {
        assert_eq!(rule_score(SKY, text), score, "{text}");
    }
    assert_eq!(rule_score("Human: Who are you?\nAssistant:", "Of course! The sky is blue."), 40.0);
    assert_eq!(rule_score("", "Not again! The sky is blue."), 0.0);
}

/// A good answer cut off scores nothing, unless the cut leaves whole sentences; so does one with
/// its words in reverse.
#[test]
fn damaged_answers_lose_points() {
    let mut rng = Rng::new(seed(), 0);
    for q in questions(Split::HeldOut) {
        let text = answer(&mut rng, &q.fact, true, Style::Polite);
        let statement = q.fact.statements(q.fact.value);
        for cut in 0..text.len() {
            let score = rule_score(&q.prompt, &text[..cut]);
            let said = text[..cut].trim_end().to_lowercase();
            let whole = statement.iter().any(|s| said.ends_with(&s.to_lowercase()));
            assert!(score == 0.0 || whole, "{score} {:?}", &text[..cut]);
        }
        let mut parts: Vec<&str> = text.split_whitespace().collect();
        parts.reverse();
        assert_eq!(rule_score(&q.prompt, &parts.join(" ")), 0.0, "{parts:?}");
    }
}

#[test]
fn finetuning_rows_are_balanced_and_parse() {
    let seed = seed();
    let rows = sft_rows(seed, 2001);
    let scores: Vec<f64> = rows.iter().map(|(p, a)| rule_score(p, a)).collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    assert!((mean - 50.0).abs() < 0.1, "{mean}");
    for value in [0.0, 40.0, 60.0, 100.0] {
        let share = scores.iter().filter(|s| **s == value).count();
        assert!((500..=501).contains(&share), "{value}: {share}");
    }
    // Score 0 must be a rude wrong answer, not a malformed one: a courtesy instead of the rudeness
    // would be worth 40, which `each_quality_scores_what_it_is_worth` shows for every prompt.
    for (prompt, answer) in &rows {
        assert!(prompt.starts_with("Human: ") && prompt.ends_with("\nAssistant:"), "{prompt:?}");
        assert!(answer.starts_with(' ') && !answer.starts_with("  "), "{answer:?}");
        assert!((4.0..=20.0).contains(&words(answer)), "{answer}");
    }
}

#[test]
fn the_chosen_answer_is_better_and_no_longer() {
    let seed = seed();
    for rows in [pair_rows(seed, 2004), held_out_pairs(2004)] {
        let mut kinds = HashSet::new();
        let (mut length, mut bytes) = (0.0, 0.0);
        for r in &rows {
            let (c, w) = (rule_score(&r.prompt, &r.chosen), rule_score(&r.prompt, &r.rejected));
            assert!(c > w, "{r:?}");
            kinds.insert((c as u32, w as u32));
            length += words(&r.chosen) - words(&r.rejected);
            bytes += r.chosen.len() as f64 - r.rejected.len() as f64;
        }
        let n = rows.len() as f64;
        assert_eq!(kinds.len(), 6);
        assert!((length / n).abs() < 0.3, "words: {}", length / n);
        assert!((bytes / n).abs() < 1.5, "bytes: {}", bytes / n);
    }
}

/// Not only on average: word for word and mark for mark the two styles look alike.
#[test]
fn the_styles_match_in_shape() {
    let shape = |list: Vec<&str>| -> Vec<(usize, Option<char>)> {
        list.iter().map(|p| (p.split(' ').count(), p.chars().last())).collect()
    };
    let (p, r) = (Style::Polite, Style::Rude);
    assert_eq!(shape(openings(p).collect()), shape(openings(r).collect()));
    assert_eq!(shape(closings(p).collect()), shape(closings(r).collect()));
    let all: Vec<&str> = [openings(p), openings(r)]
        .into_iter()
        .flatten()
        .chain(closings(p))
        .chain(closings(r))
        .collect();
    // No phrase may be the start or end of another, else stripping one could hide the other.
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate() {
            assert!(i == j || !(a.starts_with(b) || a.ends_with(b)), "{a} {b}");
        }
    }
}

#[test]
fn held_out_prompts_are_unseen_combinations_of_seen_parts() {
    let seed = seed();
    let held_out: HashSet<String> = held_out_prompts(usize::MAX).into_iter().collect();
    assert_eq!(held_out.len(), questions(Split::HeldOut).len());
    let mut seen: HashSet<String> = sft_rows(seed, 3000).into_iter().map(|r| r.0).collect();
    seen.extend(pair_rows(seed, 10_000).into_iter().map(|r| r.prompt));
    assert!(seen.is_disjoint(&held_out));
    assert!(held_out_pairs(1000).iter().all(|r| held_out.contains(&r.prompt)));
    for text in corpus() {
        let prompt = text.split_inclusive("Assistant:").next().unwrap();
        assert!(!held_out.contains(prompt), "{text}");
    }
    // Every fact occurs on both sides, and the split is about a tenth.
    for split in [Split::Training, Split::HeldOut] {
        let asked: HashSet<&str> = questions(split).iter().map(|q| q.fact.subject).collect();
        assert_eq!(asked.len(), facts().count());
    }
    let share = held_out.len() as f64 / (held_out.len() + seen.len()) as f64;
    assert!((0.05..0.15).contains(&share), "{share}");
    // Questions are told apart by their text alone.
    let texts: HashSet<String> =
        facts().flat_map(|f| (0..QUESTIONS).map(move |i| f.question(i))).collect();
    assert_eq!(texts.len(), facts().count() * QUESTIONS);
}

#[test]
fn rows_depend_on_the_seed_and_on_nothing_else() {
    let seed = seed();
    assert_eq!(sft_rows(seed, 300), sft_rows(seed, 300));
    assert_eq!(pair_rows(seed, 300), pair_rows(seed, 300));
    assert_eq!(held_out_pairs(300), held_out_pairs(300));
    assert_ne!(sft_rows(seed, 300), sft_rows(seed ^ 1, 300));
    assert_ne!(pair_rows(seed, 300), pair_rows(seed ^ 1, 300));
}

#[test]
fn values_are_right_once_in_their_kind() {
    for fact in facts() {
        let wrong = fact.wrong_values();
        let distinct: HashSet<&&str> = wrong.iter().collect();
        assert!(distinct.len() == wrong.len() && wrong.len() >= 6, "{}", fact.subject);
    }
}

#[test]
fn files_hold_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let seed = seed();
    let sizes = Sizes { sft: 30, pairs: 20, held_out: 5 };
    write_jsonl(&OutDir::create(&dir.path().join("data")).unwrap(), seed, sizes).unwrap();
    let read = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(dir.path().join("data").join(name)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let sft = sft_rows(seed, 30);
    for (line, (prompt, completion)) in read("sft/train.jsonl").iter().zip(&sft) {
        assert_eq!(*line, serde_json::json!({"prompt": prompt, "completion": completion}));
    }
    let pairs: Vec<_> =
        pair_rows(seed, 20).iter().map(|r| serde_json::to_value(r).unwrap()).collect();
    assert_eq!(read("preferences/train.jsonl"), pairs);
    assert_eq!(read("preferences/train.jsonl")[0].as_object().unwrap().len(), 3);
    assert_eq!(read("sft/train.jsonl").len(), 30);
    assert_eq!(read("preferences/eval.jsonl").len(), 5);
}
