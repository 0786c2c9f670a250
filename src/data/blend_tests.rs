use super::*;
use crate::data::split_indices;
use std::collections::HashSet;

fn jsonl(dir: &Path, name: &str, count: usize) -> PathBuf {
    let line = |i| format!("{{\"prompt\":\"{name} {i}\",\"chosen\":\"a\",\"rejected\":\"b\"}}\n");
    let path = dir.join(name);
    std::fs::write(&path, (0..count).map(line).collect::<String>()).unwrap();
    path
}

fn config(data: Vec<Spec>) -> BlendConfig {
    let on_bad = OnBadRow::Error;
    let split = [2.0, 4.0, 4.0];
    let sft_only = vec![];
    let (eval_fraction, by_use, columns) = (0.0, true, false);
    BlendConfig { data, sft_only, split, eval_fraction, seed: 1234, on_bad, by_use, columns }
}

fn spec(path: PathBuf) -> Spec {
    Spec { path, weight: 1.0 }
}

fn message(result: Result<impl Sized>) -> String {
    let e = result.err().unwrap();
    assert_eq!(e.exit_code(), 2);
    e.to_string()
}

/// Slices of numpy's RandomState(1234) permutation of 0..10, boundaries as DeepSpeed-Chat rounds.
#[test]
fn division_is_that_of_deepspeed_chat() {
    let parts = split_indices(10, &[2.0, 4.0, 4.0], 1234);
    assert_eq!(parts, [vec![7, 2], vec![9, 1, 0, 8], vec![4, 5, 6, 3]]);
    let sizes = |n, p: &[f64]| split_indices(n, p, 0).iter().map(Vec::len).collect::<Vec<_>>();
    // Shares 1.4, 2.8, 2.8 round to 1, 3, 3; shares 0.6, 1.2, 1.2 to 1, 1, 1.
    assert_eq!(sizes(7, &[2.0, 4.0, 4.0]), [1, 3, 3]);
    assert_eq!(sizes(3, &[2.0, 4.0, 4.0]), [1, 1, 1]);
    // 2.5 and 2.5 both round to the even 2: the missing row falls to the first part.
    assert_eq!(sizes(5, &[1.0, 1.0]), [3, 2]);
    // 3.5 and 3.5 round to 4: the surplus is taken from the first part.
    assert_eq!(sizes(7, &[1.0, 1.0]), [3, 4]);
    // Where the first part has nothing to give, the next one gives.
    assert_eq!(sizes(3, &[0.0, 5.0, 5.0]), [0, 1, 2]);
    for n in 0..60 {
        for split in [[2.0, 4.0, 4.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.1, 0.0, 9.0]] {
            let mut all = split_indices(n, &split, 7).concat();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>(), "{n} rows by {split:?}");
        }
    }
}

#[test]
fn steps_and_held_out_rows_are_disjoint_and_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let sets = vec![spec(jsonl(dir.path(), "a.jsonl", 53)), spec(jsonl(dir.path(), "b.jsonl", 20))];
    let sft_only = vec![spec(jsonl(dir.path(), "c.jsonl", 7))];
    let config = BlendConfig { sft_only, eval_fraction: 0.2, ..config(sets) };
    let blend = Blend::load(&config).unwrap();
    let mut seen = HashSet::new();
    let mut counts = Vec::new();
    for k in 0..3 {
        for part in blend.parts(Use::ALL[k], "it").unwrap() {
            counts.push((part.train.len(), part.eval.len()));
            for row in part.train.iter().chain(&part.eval) {
                assert!(seen.insert((row.file.clone(), row.row)), "{row:?} twice");
            }
        }
    }
    assert_eq!(seen.len(), 80);
    // 53 rows: 42 + 11; 20 rows: 16 + 4; 7 rows: 6 + 1, all for the first step.
    let expected = [(8, 3), (4, 0), (6, 1), (17, 4), (6, 2), (0, 0), (17, 4), (6, 2), (0, 0)];
    assert_eq!(counts, expected);
    let places = |b: &Blend| {
        let parts = (0..3).flat_map(|k| b.uses[k].iter());
        parts.flat_map(|p| p.train.iter().map(|r| r.row)).collect::<Vec<_>>()
    };
    assert_eq!(places(&blend), places(&Blend::load(&config).unwrap()));
    let other = Blend::load(&BlendConfig { seed: 1, ..config }).unwrap();
    assert_ne!(places(&blend), places(&other));
}

#[test]
fn a_directory_brings_its_held_out_rows() {
    let dir = tempfile::tempdir().unwrap();
    let set = spec(dir.path().to_owned());
    let nothing = "holds no file of rows: no .json, .jsonl, .csv or .tsv; name a file";
    let expected = format!("{} {nothing}", dir.path().display());
    assert_eq!(message(Blend::load(&config(vec![set.clone()]))), expected);
    jsonl(dir.path(), "train.jsonl", 10);
    for name in ["validation.jsonl", "test.json", "eval.json"] {
        jsonl(dir.path(), name, 5);
        let blend = Blend::load(&BlendConfig { eval_fraction: 0.5, ..config(vec![set.clone()]) });
        let blend = blend.unwrap();
        assert_eq!(blend.files[1].0, dir.path().join(name));
        let sizes = |k: usize| (blend.uses[k][0].train.len(), blend.uses[k][0].eval.len());
        assert_eq!([sizes(0), sizes(1), sizes(2)], [(2, 1), (4, 2), (4, 2)]);
    }
}

#[test]
fn an_empty_split_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = jsonl(dir.path(), "a.jsonl", 1);
    let at = path.display().to_string();
    let tail = "give more data or another split";
    let expected = format!("split 2,4,4 leaves no row of {at} for reward; {tail}");
    let blend = Blend::load(&config(vec![spec(path.clone())])).unwrap();
    assert_eq!(message(blend.parts(Use::Pairs, "reward")), expected);
    let only_sft = BlendConfig { split: [1.0, 0.0, 0.0], ..config(vec![spec(path)]) };
    let blend = Blend::load(&only_sft).unwrap();
    let expected = format!("split 1,0,0 leaves no row of {at} for ppo; {tail}");
    assert_eq!(message(blend.parts(Use::Prompts, "ppo")), expected);
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"completion\":\"c\"}\n")
        .unwrap();
    let blend = Blend::load(&config(vec![spec(prompts.clone())])).unwrap();
    let expected = format!(
        "no row for reward, which needs a prompt with \"chosen\" and \"rejected\"; data of {}: \
         1 prompt with completion, 1 prompt without answer",
        prompts.display()
    );
    assert_eq!(message(blend.parts(Use::Pairs, "reward")), expected);
    assert_eq!(
        blend.tally(Use::Prompts),
        [format!("1 prompt with completion, 1 prompt without answer of {}", prompts.display())]
    );
    assert_eq!(message(Blend::load(&config(vec![]))), "no data set given; name one");
    let bad = BlendConfig { eval_fraction: 1.0, ..only_sft };
    assert_eq!(message(Blend::load(&bad)), "eval fraction 1 is not in 0..1");
}

#[test]
fn epochs_differ_repeat_and_keep_the_weights() {
    let sets = [(40, 1.0), (30, 0.5), (0, 1.0), (10, 2.5)];
    let order = epoch_order(&sets, 5, 0);
    assert_eq!(order, epoch_order(&sets, 5, 0));
    assert_ne!(order, epoch_order(&sets, 5, 1));
    assert_ne!(order, epoch_order(&sets, 6, 0));
    let count = |epochs: std::ops::Range<u64>| {
        let mut counts = vec![0; 80];
        epochs.for_each(|e| epoch_order(&sets, 5, e).into_iter().for_each(|i| counts[i] += 1));
        counts
    };
    let one = count(0..1);
    assert!(one[..40].iter().all(|&c| c == 1));
    assert_eq!(one[40..70].iter().sum::<i32>(), 15);
    assert!(one[70..].iter().all(|&c| c == 2 || c == 3) && one[70..].iter().sum::<i32>() == 25);
    // Two epochs together use every row of a half-weight set once, of a 2.5 one five times.
    for start in [0, 2, u64::MAX - 2] {
        let two = count(start..start + 2);
        assert!(two[40..70].iter().all(|&c| c == 1) && two[70..].iter().all(|&c| c == 5));
    }
    assert!(epoch_order(&[], 1, 1).is_empty());
    assert_eq!(epoch_order(&[(3, 0.01)], 1, 1).len(), 1);
}
