//! Jinja2 as `transformers` runs it on chat templates: the language of Jinja2 3.1 in its immutable
//! sandbox with trimmed blocks, loop controls and `{% generation %}`, over values that behave as
//! Python's. Where it cannot do the same it fails and names the construct. It knows nothing of
//! messages and tokens.

mod ast;
mod check;
mod eval;
mod filters;
mod format;
mod functions;
mod json;
mod lex;
mod methods;
mod ops;
mod parse;
mod repr;
mod strings;
mod value;

pub(super) use eval::{Failed, Limits, Output, render};
pub(super) use parse::{Program, parse};
#[cfg(test)]
pub(super) use strings::strftime;
pub(super) use value::Value;
