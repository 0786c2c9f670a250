//! Plans of operators grow with their sizes, on every device: a program that was planned for the
//! largest sizes met then runs with all smaller ones. Cases come from the registry, each size of
//! which takes random values, up to those of a real model.

use crate::base::{DType, Rng};
use crate::op::conformance::{Case, Input};
use crate::op::registry::OPS;
use crate::op::{Op, Place, Plan};
use crate::tensor::Desc;
use std::collections::{BTreeMap, BTreeSet};

/// Pairs of random shapes of each case and dtype; `DUPLEX_SHAPES` asks for more.
fn shapes() -> usize {
    std::env::var("DUPLEX_SHAPES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// The sizes of a case and what stands for them: equal ones are one size.
type Sizes = BTreeMap<usize, usize>;

fn descs(case: &Case, dtype: DType, sizes: &Sizes) -> Vec<Option<Desc>> {
    let desc = |input: &Input| {
        let dims: Vec<usize> = input.dims().iter().map(|d| sizes[d]).collect();
        Desc::new(&dims, input.dtype(dtype))
    };
    case.ins.iter().map(|input| input.as_ref().map(desc)).collect()
}

fn plan(case: &Case, dtype: DType, sizes: &Sizes) -> Option<Plan> {
    case.op.plan(&descs(case, dtype, sizes)).ok()
}

/// The sizes that an operator's attributes do not fix, and the number each is a multiple of.
fn free(case: &Case, dtype: DType) -> Sizes {
    let all: BTreeSet<usize> = case.ins.iter().flatten().flat_map(|i| i.dims().to_vec()).collect();
    let mut base: Sizes = all.iter().map(|d| (*d, *d)).collect();
    let mut free = Sizes::new();
    // Once more with those large that were found: some sizes are bounded by others.
    for _ in 0..2 {
        for d in &all {
            let fits = |to: usize| plan(case, dtype, &with(&base, [(*d, to)].into())).is_some();
            let unit = [1, *d].into_iter().find(|unit| *unit > 0 && fits(base[d] + unit));
            if let Some(unit) = unit {
                free.entry(*d).or_insert(unit);
            }
        }
        free.iter().for_each(|(d, _)| *base.get_mut(d).expect("a size") = 64 * d);
    }
    free
}

/// The sizes of `base` but for those in `changed`.
fn with(base: &Sizes, changed: Sizes) -> Sizes {
    base.clone().into_iter().chain(changed).collect()
}

/// A number up to `most`, of every order of magnitude alike.
fn below(rng: &mut Rng, most: usize) -> usize {
    let bits = (most + 1).ilog2();
    let top = 1usize << rng.below(bits + 1);
    (top + rng.below(top as u32) as usize).min(most + 1) - 1
}

/// Bytes of outputs and of workspaces.
fn bytes(plan: &Plan) -> Vec<usize> {
    let out = |place: &Place| match place {
        Place::New(desc) => desc.bytes(),
        Place::InPlace(_) => 0,
    };
    let scratch = [plan.scratch, plan.scratch_backward];
    let cuda = [plan.cuda_scratch, plan.cuda_scratch_backward];
    plan.outs.iter().map(out).chain(scratch).chain(cuda).collect()
}

/// Properties that decide which slots a program has.
fn structure(plan: &Plan) -> (Vec<Option<usize>>, [u64; 4], [bool; 2]) {
    let place = |place: &Place| match place {
        Place::New(_) => None,
        Place::InPlace(i) => Some(*i),
    };
    let masks = [plan.differentiable, plan.saves_ins, plan.saves_outs, plan.bf16_grads];
    (plan.outs.iter().map(place).collect(), masks, [plan.late, plan.cheap])
}

/// Compares random shapes of a case with smaller ones; returns how many there were.
fn grows(case: &Case, dtype: DType, rng: &mut Rng) -> usize {
    const MOST: usize = 1 << 18;
    let free = free(case, dtype);
    let fixed: Sizes = case.ins.iter().flatten().flat_map(|i| i.dims()).map(|d| (*d, *d)).collect();
    let mut compared = 0;
    for _ in 0..if free.is_empty() { 0 } else { shapes() } {
        let large: Sizes = free.iter().map(|(d, unit)| (*d, below(rng, MOST / unit))).collect();
        let small: Sizes = large.iter().map(|(d, n)| (*d, below(rng, *n))).collect();
        let [large, small] = [large, small].map(|sizes| {
            let whole = sizes.into_iter().map(|(d, n)| (d, n * free[&d])).collect();
            with(&fixed, whole)
        });
        let plans = [&large, &small].map(|sizes| plan(case, dtype, sizes));
        let [Some(more), Some(less)] = &plans else { continue };
        compared += 1;
        let what = || format!("{:?} {dtype}: {large:?}, then {small:?}", case.op);
        assert_eq!(structure(more), structure(less), "{}", what());
        for (i, (more, less)) in bytes(more).into_iter().zip(bytes(less)).enumerate() {
            assert!(less <= more, "{}: {less} of {more} in place {i}", what());
        }
    }
    compared
}

#[test]
fn operators_need_no_more_for_smaller_sizes() {
    let clock =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let seed = clock.as_nanos() as u64;
    println!("seed {seed}");
    let mut rng = Rng::new(seed, 0);
    let mut all = 0;
    for def in OPS {
        let mut compared = 0;
        for case in (def.cases)() {
            for dtype in case.dtypes {
                compared += grows(&case, *dtype, &mut rng);
            }
        }
        // The state of the compact optimizer has sizes that all follow from one.
        let expected = if def.name == "adamw_compact" { 0 } else { shapes() / 4 };
        assert!(compared >= expected, "{}: {compared} shapes", def.name);
        all += compared;
    }
    println!("{all} pairs of shapes");
}

/// A share of fewer rows may be larger, which the plan must know.
#[test]
fn shares_of_fewer_rows_fit_into_what_is_planned_for_more() {
    use crate::op::logprob::LogProb;
    let op = LogProb { temperature: 1.0, softcap: 0.0 };
    let scratch = |n: usize, vocab: usize| {
        let f32s = |dims: &[usize]| Some(Desc::new(dims, DType::F32));
        let targets = Some(Desc::new(&[n], DType::I32));
        let plan = op.plan(&[f32s(&[n, 16]), f32s(&[vocab, 16]), None, targets]).expect("a plan");
        assert_eq!(plan.scratch, plan.scratch_backward);
        plan.scratch
    };
    // Two shares of 413 rows, and one of 661.
    assert!(scratch(826, 49152) >= 661 * 49152);
    assert!(scratch(413, 49152) <= 413 * 49152);
    assert!(scratch(100_000, 262_144) <= (128 << 20) / 4);
}
