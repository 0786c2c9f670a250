//! Truth, numbers, equality and order of values, as Python has them.

use super::ast::CompareOp;
use super::value::{Object, Res, Value, error, range_len};
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

/// Python's `bool`.
pub(crate) fn truth(value: &Value) -> bool {
    match value {
        Value::Undefined(_) | Value::None => false,
        Value::Bool(b) => *b,
        Value::Int(i) => *i != 0,
        Value::Float(f) => *f != 0.0,
        Value::Str(s) | Value::Safe(s) => !s.is_empty(),
        Value::List(s) | Value::Tuple(s) => !s.items.is_empty(),
        Value::Dict(d) | Value::View(_, d) => !d.entries.is_empty(),
        Value::Range(r) => range_len(r) > 0,
        Value::Iter(_) | Value::Object(_) => true,
    }
}

/// A number as Python's `float` has it.
pub(crate) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(f) => Some(*f),
        _ => value.as_int().map(|i| i as f64),
    }
}

/// True for a flag that is given and true.
pub(crate) fn is_set(flag: Option<Value>) -> bool {
    flag.is_some_and(|flag| truth(&flag))
}

/// A width or count as Python takes it: below nothing is nothing.
pub(crate) fn as_count(count: i128) -> usize {
    usize::try_from(count.max(0)).unwrap_or(usize::MAX)
}

/// The same object, as Python's `is` sees it.
pub(crate) fn same(a: &Value, b: &Value) -> Option<bool> {
    Some(match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
        (Value::Int(a), Value::Int(b)) if a == b && (-5..=256).contains(a) => true,
        (Value::Int(a), Value::Int(b)) if a != b => false,
        (Value::Float(a), Value::Float(b)) if a != b => false,
        (Value::Str(a), Value::Str(b)) if a != b => false,
        (Value::Str(a), Value::Str(b)) if Arc::ptr_eq(a, b) || a.len() < 2 => true,
        (Value::Int(_), Value::Int(_))
        | (Value::Float(_), Value::Float(_))
        | (Value::Str(_), Value::Str(_)) => return None,
        (Value::Undefined(a), Value::Undefined(b)) => Arc::ptr_eq(a, b),
        _ => false,
    })
}

/// Python's `==`.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a) | Value::Safe(a), Value::Str(b) | Value::Safe(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.items.len() == b.items.len() && a.items.iter().zip(&b.items).all(|(a, b)| equal(a, b))
        }
        (Value::Dict(a), Value::Dict(b)) => {
            let has = |(k, v): &(Value, Value)| {
                b.entries.iter().any(|(key, value)| equal(k, key) && equal(v, value))
            };
            a.entries.len() == b.entries.len() && a.entries.iter().all(has)
        }
        (Value::Range(a), Value::Range(b)) => {
            let n = range_len(a);
            n == range_len(b) && (n == 0 || a[0] == b[0]) && (n < 2 || a[2] == b[2])
        }
        (Value::View(x, a), Value::View(y, b)) => x == y && Rc::ptr_eq(a, b),
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Object(a), Value::Object(b)) => match (&**a, &**b) {
            (Object::Function(a), Object::Function(b)) => a == b,
            _ => Rc::ptr_eq(a, b),
        },
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => compare_numbers(a, b) == Some(Some(Ordering::Equal)),
        },
    }
}

/// None where one is no number; None inside for NaN.
fn compare_numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    match (a, b) {
        (Value::Float(_), _) | (_, Value::Float(_)) => {
            let (x, y) = (number(a)?, number(b)?);
            let order = x.partial_cmp(&y);
            // Integers that a float cannot hold.
            Some(match (order, a.as_int(), b.as_int()) {
                (Some(Ordering::Equal), Some(i), _) => Some(i.cmp(&(y as i128))),
                (Some(Ordering::Equal), _, Some(i)) => Some((x as i128).cmp(&i)),
                _ => order,
            })
        }
        _ => Some(Some(a.as_int()?.cmp(&b.as_int()?))),
    }
}

/// Python's `<`, `<=`, `>` and `>=`.
pub(crate) fn ordered(op: CompareOp, a: &Value, b: &Value) -> Res<bool> {
    let holds = |order: Option<Ordering>| match order {
        None => false,
        Some(order) => match op {
            CompareOp::Lt => order.is_lt(),
            CompareOp::Le => order.is_le(),
            CompareOp::Gt => order.is_gt(),
            _ => order.is_ge(),
        },
    };
    match (a, b) {
        (Value::Undefined(message), _) | (_, Value::Undefined(message)) => error(&**message),
        (Value::Str(a) | Value::Safe(a), Value::Str(b) | Value::Safe(b)) => {
            Ok(holds(Some(a.cmp(b))))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            let pairs = a.items.iter().zip(&b.items);
            match pairs.into_iter().find(|(a, b)| !equal(a, b)) {
                Some((a, b)) => ordered(op, a, b),
                None => Ok(holds(Some(a.items.len().cmp(&b.items.len())))),
            }
        }
        _ => match compare_numbers(a, b) {
            Some(order) => Ok(holds(order)),
            None => {
                let sign = match op {
                    CompareOp::Lt => "<",
                    CompareOp::Le => "<=",
                    CompareOp::Gt => ">",
                    _ => ">=",
                };
                let (a, b) = (a.kind(), b.kind());
                error(format!("'{sign}' not supported between instances of '{a}' and '{b}'"))
            }
        },
    }
}

/// An error unless `value` can be a key.
pub(crate) fn hashable(value: &Value) -> Res<()> {
    match value {
        Value::List(_) | Value::Dict(_) => error(format!("unhashable type: '{}'", value.kind())),
        Value::View(..) => error(format!("{} as a key is not supported", value.kind())),
        Value::Tuple(s) => s.items.iter().try_for_each(hashable),
        _ => Ok(()),
    }
}

/// An entry of a dictionary.
pub(crate) fn lookup<'a>(entries: &'a [(Value, Value)], key: &Value) -> Option<&'a Value> {
    entries.iter().find(|(k, _)| equal(k, key)).map(|(_, v)| v)
}

/// Adds or replaces an entry.
pub(crate) fn insert(entries: &mut Vec<(Value, Value)>, key: Value, value: Value) -> Res<()> {
    hashable(&key)?;
    match entries.iter_mut().find(|(k, _)| equal(k, &key)) {
        Some((_, old)) => *old = value,
        None => entries.push((key, value)),
    }
    Ok(())
}
