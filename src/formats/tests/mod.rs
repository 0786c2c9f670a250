//! Tests of the readers and writers on crafted, random and damaged files.

mod checkpoint;
mod events;
mod fuzz;
mod safetensors;
mod torch;
mod torch_file;

use super::{SaveTensor, SourceDType};
use crate::base::{Kind, Result, Rng};
use std::borrow::Cow;
use std::collections::HashMap;

/// A generator that differs from run to run; the seed is printed when a test fails.
pub(super) fn fresh_rng() -> Rng {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = now.as_nanos() as u64;
    println!("seed {seed}");
    Rng::new(seed, 0)
}

pub(super) fn random_bytes(rng: &mut Rng, n: usize) -> Vec<u8> {
    (0..n).map(|_| rng.next_u32() as u8).collect()
}

/// A tensor of any values, as random bytes are.
fn any(name: String, dtype: SourceDType, shape: &[usize]) -> SaveTensor {
    SaveTensor { any_value: true, ..SaveTensor::new(name, dtype, shape) }
}

/// Random bytes for each tensor, by name.
fn random_data(rng: &mut Rng, tensors: &[SaveTensor]) -> HashMap<String, Vec<u8>> {
    let size = |t: &SaveTensor| t.info.checked_bytes().unwrap();
    tensors.iter().map(|t| (t.name.clone(), random_bytes(rng, size(t)))).collect()
}

/// A provider of `data` for the writers.
fn from_map<'a>(
    data: &'a HashMap<String, Vec<u8>>,
) -> impl FnMut(&SaveTensor) -> Result<Cow<'a, [u8]>> {
    |tensor| Ok(Cow::Borrowed(&data[&tensor.name][..]))
}

/// Asserts that `result` is the user's error, one line that contains every one of `parts`.
#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("accepted, expected an error with {parts:?}") };
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::User, "{text}");
    assert!(text.len() < 1000 && !text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}
