//! Errors of invalid values that only the device can see; kernels report them with the codes of
//! `cuda/lib/fault.cuh`.

use super::constants::fault::{FAULT_LENGTHS, FAULT_LOGITS, FAULT_PAGE, FAULT_ROW, FAULT_TOKEN};
use crate::base::Error;

/// The error of a fault word that is not 0.
pub(super) fn error(code: u32) -> Error {
    match code {
        FAULT_TOKEN => {
            Error::user("a token is outside the model's vocabulary; use the model's own tokenizer")
        }
        FAULT_PAGE => Error::internal("a page is outside the KV-cache"),
        FAULT_ROW => Error::internal("a row is outside its tensor"),
        FAULT_LENGTHS => Error::internal("sequence lengths do not fit the batch"),
        FAULT_LOGITS => Error::user(
            "no token can be sampled: the model's logits are not finite, or every token is an end \
             token; go back to an earlier checkpoint or lower the learning rate",
        ),
        other => Error::internal(format!("a kernel reported fault {other}")),
    }
}
