//! Errors of invalid values that only the device can see; kernels report them with the codes of
//! `cuda/lib/fault.cuh`.

use crate::base::Error;

/// The error of a fault word that is not 0.
pub(super) fn error(code: u32) -> Error {
    match code {
        1 => {
            Error::user("a token is outside the model's vocabulary; use the model's own tokenizer")
        }
        2 => Error::internal("a page is outside the KV-cache"),
        3 => Error::internal("a row is outside its tensor"),
        4 => Error::internal("sequence lengths do not fit the batch"),
        5 => Error::user(
            "no token can be drawn: the model's logits are not finite, or every token is an end \
             token; go back to an earlier checkpoint or lower the learning rate",
        ),
        other => Error::internal(format!("a kernel reported fault {other}")),
    }
}
