//! Independence of the batch, and products over blocks of input columns against their sum in order.

use super::*;
use crate::base::Rng;
use crate::op::bias_residual::BiasResidual;
use crate::op::cpu::testing::{Host, Runner, forward};

fn rows_are_alike<E: Elem>(rng: &mut Rng) {
    let (tokens, inner, outer) = (41, 150, 70);
    let w = Some(Host::normal::<E>(&[outer, inner], 0.3, rng));
    let b = Some(Host::normal::<E>(&[outer], 1.0, rng));
    let x = Host::normal::<E>(&[tokens, inner], 1.0, rng);
    let r = Host::normal::<f32>(&[tokens, outer], 1.0, rng);
    let run = |at: &[usize]| {
        let ins = [Some(x.rows(at)), w.clone(), b.clone(), Some(r.rows(at))];
        forward(&Linear::LOGITS, &ins).expect("linear").remove(0)
    };
    let all = run(&(0..tokens).collect::<Vec<_>>());
    for at in [vec![0], vec![40, 3], (5..30).rev().collect()] {
        assert_eq!(run(&at), all.rows(&at));
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch() {
    rows_are_alike::<f32>(&mut Rng::new(51, 0));
    rows_are_alike::<bf16>(&mut Rng::new(51, 1));
}

fn one(run: Runner, op: &dyn Op, ins: &[Option<Host>]) -> Host {
    run(op, ins).expect("no faults").remove(0)
}

/// The first row's products are so small and negative that some are -0, the last row is 0.
fn operands<E: Elem>(tokens: usize, outer: usize, inner: usize, rng: &mut Rng) -> [Host; 2] {
    let mut x: Vec<f32> = (0..tokens * inner).map(|_| rng.normal()).collect();
    x[..inner].fill(-1e-30);
    x[(tokens - 1) * inner..].fill(0.0);
    let mut w: Vec<f32> = (0..outer * inner).map(|_| rng.normal()).collect();
    w[..inner].fill(1e-30);
    [Host::new::<E>(&[tokens, inner], &x), Host::new::<E>(&[outer, inner], &w)]
}

fn blocks_add_in_order<E: Elem>(run: Runner, [tokens, outer]: [usize; 2], rng: &mut Rng) {
    let (mut chain, mut sum): (Option<Host>, Vec<f32>) = (None, vec![]);
    for inner in [1, 16, 33, 64] {
        let [x, w] = operands::<E>(tokens, outer, inner, rng);
        let (x, w) = (Some(x), Some(w));
        let product = one(run, &Linear::LOGITS, &[x.clone(), w.clone(), None, None]);
        chain = Some(match chain {
            None => {
                sum = product.f32();
                product
            }
            Some(old) => {
                sum.iter_mut().zip(product.f32()).for_each(|(s, p)| *s += p);
                one(run, &Linear::ONTO, &[x, w, None, Some(old)])
            }
        });
    }
    // Hosts compare as bits.
    assert_eq!(chain, Some(Host::new::<f32>(&[tokens, outer], &sum)));
}

/// The operator in one is a product not rounded, that is settled.
fn settling_is_the_end_of_linear<E: Elem>(run: Runner, rng: &mut Rng) {
    let (tokens, inner, outer) = (19, 40, 35);
    let [x, w] = operands::<E>(tokens, outer, inner, rng).map(Some);
    let sum = one(run, &Linear::LOGITS, &[x.clone(), w.clone(), None, None]);
    let bias_residual = BiasResidual { dtype: E::DTYPE };
    for [with_bias, with_residual] in [[false, false], [true, false], [false, true], [true, true]] {
        let bias = Host::normal::<E>(&[outer], 1.0, rng);
        let residual = Host::normal::<E>(&[tokens, outer], 1.0, rng);
        let (bias, residual) =
            (Some(bias).filter(|_| with_bias), Some(residual).filter(|_| with_residual));
        let ins = [x.clone(), w.clone(), bias.clone(), residual.clone()];
        let want = one(run, &Linear::PLAIN, &ins);
        assert_eq!(one(run, &bias_residual, &[Some(sum.clone()), bias, residual]), want);
    }
}

fn sums_of_blocks_have_one_order(run: Runner) {
    let mut rng = Rng::new(52, 0);
    for sizes in [[3, 9], [33, 64], [70, 130]] {
        blocks_add_in_order::<f32>(run, sizes, &mut rng);
        blocks_add_in_order::<bf16>(run, sizes, &mut rng);
    }
    settling_is_the_end_of_linear::<f32>(run, &mut rng);
    settling_is_the_end_of_linear::<bf16>(run, &mut rng);
}

#[test]
fn products_of_blocks_add_up_in_their_order() {
    sums_of_blocks_have_one_order(forward);
}

#[cfg(feature = "emulator")]
#[test]
fn products_of_blocks_add_up_in_their_order_on_the_emulated_device() {
    sums_of_blocks_have_one_order(crate::op::cuda::testing::forward);
}

#[test]
fn a_sum_in_place_takes_no_bias_and_is_f32() {
    let (x, w) = (Desc::new(&[3, 4], DType::Bf16), Desc::new(&[5, 4], DType::Bf16));
    let (bias, sum) = (Desc::new(&[5], DType::Bf16), Desc::new(&[3, 5], DType::F32));
    let plan = |op: Linear, bias, sum| op.plan(&[Some(x), Some(w), bias, sum]);
    let made = plan(Linear::ONTO, None, Some(sum)).expect("fits");
    assert_eq!(made.outs, [Place::InPlace(3)]);
    assert!(plan(Linear::ONTO, Some(bias), Some(sum)).is_err());
    assert!(plan(Linear::ONTO, None, None).is_err());
    assert!(plan(Linear { f32_out: false, ..Linear::ONTO }, None, Some(sum)).is_err());
    assert!(plan(Linear::ONTO, None, Some(Desc { dtype: DType::Bf16, ..sum })).is_err());
}

/// Behind `bias_residual` the gradient of the f32 sum is a bf16 one widened, and its products are
/// those of the narrow one.
#[cfg(feature = "emulator")]
#[test]
fn gradients_behind_an_f32_sum_are_those_of_a_rounded_output_on_the_emulated_device() {
    use crate::op::cuda::testing::backward;
    let mut rng = Rng::new(53, 0);
    for [tokens, inner, outer] in [[5, 24, 40], [33, 64, 72], [70, 31, 130]] {
        let ins = [
            Some(Host::normal::<bf16>(&[tokens, inner], 1.0, &mut rng)),
            Some(Host::normal::<bf16>(&[outer, inner], 1.0, &mut rng)),
            None,
            None,
        ];
        let dy = Host::normal::<bf16>(&[tokens, outer], 1.0, &mut rng);
        let widened: Vec<f32> = dy.get::<bf16>().into_iter().map(Elem::to_f32).collect();
        let wide = Host::new::<f32>(&[tokens, outer], &widened);
        let wanted = [Some(DType::Bf16), Some(DType::F32), None, None];
        let grads = |op: &Linear, dy: &Host| {
            let blank = Host::blank(dy.desc);
            backward(op, &ins, &[blank], &[Some(dy.clone())], &wanted).expect("no faults")
        };
        assert_eq!(
            grads(&Linear::LOGITS, &wide),
            grads(&Linear::PLAIN, &dy),
            "{tokens} {inner} {outer}"
        );
    }
}
