//! Jinja2 as `transformers` runs it on chat templates: the language of Jinja2 3.1 in its immutable
//! sandbox with trimmed blocks, loop controls and `{% generation %}`, over values that behave as
//! Python's. Where it cannot do the same it fails and names the construct. It knows nothing of
//! messages and tokens.

mod ast;
mod check;
mod compare;
mod eval;
mod expressions;
mod filters;
mod format;
mod functions;
mod json;
mod lex;
mod methods;
mod names;
mod number_filters;
mod ops;
mod parse;
mod parse_expressions;
mod parse_postfix;
mod parse_statements;
mod repr;
mod run;
mod sequence_filters;
mod str_methods;
mod strings;
mod text_filters;
mod value;

pub(super) use ast::Program;
pub(super) use eval::render;
pub(super) use parse::parse;
pub(super) use run::{Failed, Limits, Output};
#[cfg(test)]
pub(super) use strings::strftime;
pub(super) use value::Value;
