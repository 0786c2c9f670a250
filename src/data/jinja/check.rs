//! Jinja2's tests, as in `x is defined`.

use super::ast::CompareOp;
use super::names;
use super::ops;
use super::repr::text;
use super::run::{Given, Run};
use super::strings::case_is;
use super::value::{Object, Res, Value, error};

impl Run {
    /// The outcome of a test.
    pub(crate) fn test(&mut self, name: &str, value: &Value, given: Given) -> Res<bool> {
        let comparison = match name {
            "==" | "eq" | "equalto" => Some(CompareOp::Eq),
            "!=" | "ne" => Some(CompareOp::Ne),
            ">" | "gt" | "greaterthan" => Some(CompareOp::Gt),
            ">=" | "ge" => Some(CompareOp::Ge),
            "<" | "lt" | "lessthan" => Some(CompareOp::Lt),
            "<=" | "le" => Some(CompareOp::Le),
            "in" => Some(CompareOp::In),
            _ => None,
        };
        if let Some(op) = comparison {
            let [other] = given.bind(name, [if name == "in" { "seq" } else { "?" }], 1)?;
            return ops::compare(self, op, value, &other.unwrap_or(Value::None));
        }
        match name {
            "divisibleby" => {
                let [number] = given.bind(name, ["num"], 1)?;
                return self.rest_is(value, &number.unwrap_or(Value::None), 0);
            }
            "sameas" => {
                let [other] = given.bind(name, ["other"], 1)?;
                let other = other.unwrap_or(Value::None);
                return ops::same(value, &other).map_or_else(
                    || error("'sameas' of equal texts or numbers is not supported"),
                    Ok,
                );
            }
            _ => {}
        }
        let [] = given.bind(name, [], 0)?;
        Ok(match name {
            "odd" => self.rest_is(value, &Value::Int(2), 1)?,
            "even" => self.rest_is(value, &Value::Int(2), 0)?,
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "string" => value.as_str().is_some(),
            "mapping" => matches!(value, Value::Dict(_)),
            "lower" => case_is(&text(self, value)?, "islower"),
            "upper" => case_is(&text(self, value)?, "isupper"),
            "escaped" => matches!(value, Value::Safe(_)),
            "sequence" => match value {
                // `len` is there, but asking for `__getitem__` fails.
                Value::View(..) => false,
                // Its `__getitem__` raises only where it is called.
                Value::Undefined(_) | Value::Str(_) | Value::Safe(_) => true,
                _ => ops::known_length(value).is_some(),
            },
            "iterable" => match value {
                Value::Iter(_) | Value::Undefined(_) | Value::Str(_) | Value::Safe(_) => true,
                Value::Object(o) => matches!(**o, Object::Loop(_)),
                _ => ops::known_length(value).is_some(),
            },
            "callable" => match value {
                Value::Undefined(_) => true,
                Value::Object(o) => !matches!(**o, Object::Namespace(..) | Object::Cycler(..)),
                _ => false,
            },
            "filter" => {
                ops::hashable(self, value)?;
                value.as_str().is_some_and(|name| names::FILTERS.contains(&name))
            }
            "test" => {
                ops::hashable(self, value)?;
                value.as_str().is_some_and(|name| names::TESTS.contains(&name))
            }
            _ => return error(format!("No test named '{name}'.")),
        })
    }

    /// Python's `value % number == rest`.
    fn rest_is(&mut self, value: &Value, number: &Value, rest: i128) -> Res<bool> {
        let found = ops::binary(self, super::ast::BinaryOp::Mod, value, number)?;
        ops::equal(self, &found, &Value::Int(rest))
    }
}
