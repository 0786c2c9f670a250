//! Truth, numbers, equality and order of values, as Python has them.

use super::ast::CompareOp;
use super::run::Run;
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
pub(crate) fn equal(run: &mut Run, a: &Value, b: &Value) -> Res<bool> {
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a) | Value::Safe(a), Value::Str(b) | Value::Safe(b)) => {
            a.len() == b.len() && {
                run.spend(a.len() as u64 / 8)?;
                a == b
            }
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            let mut pairs = a.items.iter().zip(&b.items);
            // Lists that hold each other several times are longer than they look.
            a.items.len() == b.items.len()
                && all(&mut pairs, |(a, b)| {
                    run.spend(1)?;
                    equal(run, a, b)
                })?
        }
        (Value::Dict(a), Value::Dict(b)) => {
            a.entries.len() == b.entries.len()
                && all(&mut a.entries.iter(), |(key, value)| {
                    run.spend(1)?;
                    match lookup(run, &b.entries, key)? {
                        Some(other) => equal(run, value, other),
                        None => Ok(false),
                    }
                })?
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
    })
}

/// True if `holds` says so of all.
fn all<T>(items: &mut dyn Iterator<Item = T>, mut holds: impl FnMut(T) -> Res<bool>) -> Res<bool> {
    for item in items {
        if !holds(item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True if one of `items` equals `item`.
pub(crate) fn among(run: &mut Run, items: &[Value], item: &Value) -> Res<bool> {
    Ok(place_of(run, items, item)?.is_some())
}

/// Where the first of `items` is that equals `item`.
pub(crate) fn place_of(run: &mut Run, items: &[Value], item: &Value) -> Res<Option<usize>> {
    for (i, other) in items.iter().enumerate() {
        if equal(run, other, item)? {
            run.spend(i as u64 / 8)?;
            return Ok(Some(i));
        }
    }
    run.spend(items.len() as u64 / 8)?;
    Ok(None)
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
pub(crate) fn ordered(run: &mut Run, op: CompareOp, a: &Value, b: &Value) -> Res<bool> {
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
            run.spend(a.len().min(b.len()) as u64 / 8)?;
            Ok(holds(Some(a.cmp(b))))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                run.spend(1)?;
                if !equal(run, a, b)? {
                    return ordered(run, op, a, b);
                }
            }
            Ok(holds(Some(a.items.len().cmp(&b.items.len()))))
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
pub(crate) fn hashable(run: &mut Run, value: &Value) -> Res<()> {
    match value {
        Value::List(_) | Value::Dict(_) => error(format!("unhashable type: '{}'", value.kind())),
        Value::View(..) => error(format!("{} as a key is not supported", value.kind())),
        Value::Tuple(s) => s.items.iter().try_for_each(|item| {
            run.spend(1)?;
            hashable(run, item)
        }),
        _ => Ok(()),
    }
}

/// An entry of a dictionary.
pub(crate) fn lookup<'a>(
    run: &mut Run,
    entries: &'a [(Value, Value)],
    key: &Value,
) -> Res<Option<&'a Value>> {
    Ok(entry(run, entries, key)?.map(|at| &entries[at].1))
}

/// Where the entry of a key is.
fn entry(run: &mut Run, entries: &[(Value, Value)], key: &Value) -> Res<Option<usize>> {
    run.spend(entries.len() as u64 / 8)?;
    for (at, (known, _)) in entries.iter().enumerate() {
        if equal(run, known, key)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Adds or replaces an entry.
pub(crate) fn insert(
    run: &mut Run,
    entries: &mut Vec<(Value, Value)>,
    key: Value,
    value: Value,
) -> Res<()> {
    hashable(run, &key)?;
    match entry(run, entries, &key)? {
        Some(at) => entries[at].1 = value,
        None => entries.push((key, value)),
    }
    Ok(())
}
