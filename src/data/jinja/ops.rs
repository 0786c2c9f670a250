//! Python's operators on values.

use super::ast::{BinaryOp, CompareOp};
pub(crate) use super::compare::{
    among, as_count, equal, hashable, insert, is_set, lookup, number, ordered, place_of, same,
    truth,
};
use super::format::percent;
use super::repr::escape_html;
use super::run::Run;
use super::value::{Fail, Iter, Object, Res, Value, View, error, range_len, view_items};
use std::rc::Rc;
use std::sync::Arc;

/// A list, or a tuple where `model` is one.
fn sequence_like(model: &Value, items: Vec<Value>) -> Res<Value> {
    match model {
        Value::Tuple(_) => Value::tuple(items),
        _ => Value::list(items),
    }
}

fn index(len: usize, at: i128) -> Option<usize> {
    let at = if at < 0 { at + len as i128 } else { at };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// Python's `object[key]`; None for its `TypeError` and `LookupError`.
pub(crate) fn subscript(run: &mut Run, object: &Value, key: &Value) -> Res<Option<Value>> {
    Ok(match (object, key) {
        (Value::Undefined(message), _) => return error(&**message),
        (Value::Dict(d), _) => match hashable(run, key) {
            Ok(()) => lookup(run, &d.entries, key)?.cloned(),
            Err(Fail::Error(_)) => None,
            Err(other) => return Err(other),
        },
        (Value::List(s) | Value::Tuple(s), _) => {
            key.as_int().and_then(|i| Some(s.items[index(s.items.len(), i)?].clone()))
        }
        (Value::Str(s) | Value::Safe(s), _) => {
            run.spend(s.len() as u64 / 8)?;
            key.as_int().and_then(|i| {
                let at = index(s.chars().count(), i)?;
                let mut buffer = [0; 4];
                let c: &str = s.chars().nth(at)?.encode_utf8(&mut buffer);
                Some(match object {
                    Value::Safe(_) => Value::Safe(Arc::from(c)),
                    _ => Value::str(c),
                })
            })
        }
        (Value::Range(r), _) => key.as_int().and_then(|i| {
            let at = index(usize::try_from(range_len(r)).ok()?, i)?;
            Some(Value::Int(r[0] + at as i128 * r[2]))
        }),
        _ => None,
    })
}

/// Places that a Python slice of something of `len` items takes, as start, step and count.
fn slice_places(len: usize, parts: &[Option<Value>; 3]) -> Res<(i128, i128, i128)> {
    let mut numbers = [None; 3];
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = match part {
            None | Some(Value::None) => None,
            Some(value) => match value.as_int() {
                Some(i) => Some(i),
                None => return error("slice indices must be integers or None"),
            },
        };
    }
    let (len, step) = (len as i128, numbers[2].unwrap_or(1));
    if step == 0 {
        return error("slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |number: Option<i128>, default: i128| match number {
        None => default,
        Some(i) if i < 0 => i.saturating_add(len).clamp(low, high),
        Some(i) => i.clamp(low, high),
    };
    let start = place(numbers[0], if step > 0 { low } else { high });
    let stop = place(numbers[1], if step > 0 { high } else { low });
    Ok((start, step, range_len(&[start, stop, step.clamp(-len - 1, len + 1)])))
}

fn taken<T: Clone>(items: &[T], (start, step, count): (i128, i128, i128)) -> Vec<T> {
    (0..count).filter_map(|i| items.get(start.checked_add(i * step)? as usize).cloned()).collect()
}

/// Python's `value[start:stop:step]`.
pub(crate) fn slice(run: &mut Run, value: &Value, parts: &[Option<Value>; 3]) -> Res<Value> {
    run.touch(value)?;
    match value {
        Value::Str(s) | Value::Safe(s) => {
            let chars: Vec<char> = s.chars().collect();
            let text: String = taken(&chars, slice_places(chars.len(), parts)?).iter().collect();
            run.like(value, text)
        }
        Value::List(s) | Value::Tuple(s) => {
            let items = taken(&s.items, slice_places(s.items.len(), parts)?);
            run.spend_items(items.len())?;
            sequence_like(value, items)
        }
        Value::Range(r) => {
            let (start, step, count) = slice_places(range_len(r) as usize, parts)?;
            let (first, by) = (r[0] + start * r[2], step.saturating_mul(r[2]));
            let stop = first.saturating_add(count.saturating_mul(by));
            Ok(Value::Range(Rc::new([first, stop, by])))
        }
        Value::Undefined(message) => error(&**message),
        Value::Dict(_) => error("unhashable type: 'slice'"),
        _ => error(format!("'{}' object is not subscriptable", value.kind())),
    }
}

/// Python's `len`.
pub(crate) fn length(value: &Value) -> Res<usize> {
    known_length(value)
        .map_or_else(|| error(format!("object of type '{}' has no len()", value.kind())), Ok)
}

/// The length, where Python's `len` knows one.
pub(crate) fn known_length(value: &Value) -> Option<usize> {
    Some(match value {
        Value::Undefined(_) => 0,
        Value::Str(s) | Value::Safe(s) => s.chars().count(),
        Value::List(s) | Value::Tuple(s) => s.items.len(),
        Value::Dict(d) | Value::View(_, d) => d.entries.len(),
        Value::Range(r) => range_len(r) as usize,
        _ => return None,
    })
}

/// Python's `iter`. What is left of a generator moves into it.
pub(crate) fn source(run: &mut Run, value: &Value) -> Res<Iter> {
    let items = match value {
        Value::Undefined(_) => Vec::new(),
        Value::Str(s) | Value::Safe(s) => {
            run.spend_items(s.len())?;
            s.chars().map(|c| Value::str(c.encode_utf8(&mut [0; 4]))).collect()
        }
        Value::List(s) | Value::Tuple(s) => s.items.clone(),
        Value::Dict(d) => view_items(View::Keys, &d.entries)?,
        Value::View(view, d) => view_items(*view, &d.entries)?,
        Value::Range(r) => {
            let count = range_len(r);
            run.spend_items(usize::try_from(count).unwrap_or(usize::MAX))?;
            (0..count).map(|i| Value::Int(r[0] + i * r[2])).collect()
        }
        Value::Iter(iter) => return Ok(std::mem::take(&mut iter.borrow_mut())),
        Value::Object(o) if matches!(**o, Object::Loop(_)) => {
            return error("iterating over 'loop' is not supported");
        }
        _ => return error(format!("'{}' object is not iterable", value.kind())),
    };
    run.spend_items(items.len())?;
    Ok(Iter::new(items, None))
}

/// All items of an iterable.
pub(crate) fn items(run: &mut Run, value: &Value) -> Res<Vec<Value>> {
    let source = source(run, value)?;
    match source.fails {
        Some(message) => error(message),
        None => Ok(source.items.into()),
    }
}

/// Python's `item in container`.
pub(crate) fn contains(run: &mut Run, container: &Value, item: &Value) -> Res<bool> {
    run.touch(container)?;
    run.touch(item)?;
    Ok(match container {
        Value::Undefined(_) => false,
        Value::Str(s) | Value::Safe(s) => match item.as_str() {
            Some(part) => s.contains(part),
            None => {
                let kind = item.kind();
                return error(format!("'in <string>' requires string as left operand, not {kind}"));
            }
        },
        Value::Dict(d) | Value::View(View::Keys, d) => {
            hashable(run, item)?;
            lookup(run, &d.entries, item)?.is_some()
        }
        Value::Iter(iter) => loop {
            let next = iter.borrow_mut().items.pop_front();
            match next {
                Some(value) => {
                    run.spend(1)?;
                    if equal(run, &value, item)? {
                        break true;
                    }
                }
                None => {
                    let fails = iter.borrow_mut().fails.take();
                    match fails {
                        Some(message) => return error(message),
                        None => break false,
                    }
                }
            }
        },
        Value::List(s) | Value::Tuple(s) => among(run, &s.items, item)?,
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Object(_) => {
            return error(format!("argument of type '{}' is not iterable", container.kind()));
        }
        _ => {
            let items = items(run, container)?;
            among(run, &items, item)?
        }
    })
}

/// Python's chainable comparisons.
pub(crate) fn compare(run: &mut Run, op: CompareOp, a: &Value, b: &Value) -> Res<bool> {
    match op {
        CompareOp::Eq => equal(run, a, b),
        CompareOp::Ne => Ok(!equal(run, a, b)?),
        CompareOp::In => contains(run, b, a),
        CompareOp::NotIn => Ok(!contains(run, b, a)?),
        _ => ordered(run, op, a, b),
    }
}

fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "** or pow()",
    }
}

/// Python's binary operators.
pub(crate) fn binary(run: &mut Run, op: BinaryOp, a: &Value, b: &Value) -> Res<Value> {
    run.touch(a)?;
    run.touch(b)?;
    if let (Value::Undefined(message), _) | (_, Value::Undefined(message)) = (a, b)
        && !(op == BinaryOp::Mod && matches!(a, Value::Str(_)))
    {
        return error(&**message);
    }
    if matches!(a, Value::Safe(_)) || matches!(b, Value::Safe(_)) {
        return safe_binary(run, op, a, b);
    }
    match (op, a, b) {
        (BinaryOp::Add, Value::Str(x), Value::Str(y)) => run.text([&**x, &**y].concat()),
        (BinaryOp::Add, Value::List(x), Value::List(y))
        | (BinaryOp::Add, Value::Tuple(x), Value::Tuple(y)) => {
            run.spend_items(x.items.len() + y.items.len())?;
            sequence_like(a, [&x.items[..], &y.items[..]].concat())
        }
        (BinaryOp::Mod, Value::Str(format), _) => {
            let text = percent(run, format, b)?;
            run.text(text)
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _)
            if b.as_int().is_some() =>
        {
            repeat(run, a, b.as_int().unwrap_or(0))
        }
        (BinaryOp::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_))
            if a.as_int().is_some() =>
        {
            repeat(run, b, a.as_int().unwrap_or(0))
        }
        _ => match (a.as_int(), b.as_int()) {
            (Some(x), Some(y)) => integers(op, x, y),
            _ => match (number(a), number(b)) {
                (Some(x), Some(y)) => floats(op, x, y),
                _ => error(format!(
                    "unsupported operand type(s) for {}: '{}' and '{}'",
                    sign(op),
                    a.kind(),
                    b.kind()
                )),
            },
        },
    }
}

/// `+` escapes the side that is not marked safe; the rest of `Markup` is not supported.
fn safe_binary(run: &mut Run, op: BinaryOp, a: &Value, b: &Value) -> Res<Value> {
    let side = |value: &Value| match value {
        Value::Safe(s) => Some(s.to_string()),
        Value::Str(s) => Some(escape_html(s)),
        _ => None,
    };
    match (op, side(a), side(b)) {
        (BinaryOp::Add, Some(x), Some(y)) => run.safe(x + &y),
        _ => error(format!("'{}' on text marked safe is not supported", sign(op))),
    }
}

fn repeat(run: &mut Run, value: &Value, times: i128) -> Res<Value> {
    let times = as_count(times);
    match value {
        Value::Str(s) => {
            run.room(s.len().saturating_mul(times))?;
            run.text(s.repeat(times))
        }
        Value::List(s) | Value::Tuple(s) => {
            let count = s.items.len().saturating_mul(times);
            run.spend_items(count)?;
            sequence_like(value, s.items.iter().cycle().take(count).cloned().collect())
        }
        _ => error("only texts, lists and tuples can be repeated"),
    }
}

fn integers(op: BinaryOp, a: i128, b: i128) -> Res<Value> {
    const EXACT: u128 = 1 << 53;
    if b == 0 && matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod) {
        return error("division by zero");
    }
    let floor = |quotient: i128, rest: i128| match rest != 0 && (rest < 0) != (b < 0) {
        true => (quotient - 1, rest + b),
        false => (quotient, rest),
    };
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::FloorDiv => a.checked_div(b).map(|q| floor(q, a % b).0),
        BinaryOp::Mod => a.checked_rem(b).map(|r| floor(0, r).1),
        BinaryOp::Div if b == 1 => return Ok(Value::Float(a as f64)),
        BinaryOp::Div if a.unsigned_abs() <= EXACT && b.unsigned_abs() <= EXACT => {
            return Ok(Value::Float(a as f64 / b as f64));
        }
        BinaryOp::Div => return error("division of integers beyond 2**53 is not supported"),
        BinaryOp::Pow if b < 0 && a == 0 => {
            return error("0.0 cannot be raised to a negative power");
        }
        BinaryOp::Pow if b < 0 => return floats(op, a as f64, b as f64),
        BinaryOp::Pow => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (_, Ok(exponent)) => a.checked_pow(exponent),
            _ => None,
        },
    };
    match result {
        Some(result) => Ok(Value::Int(result)),
        None => error("an integer beyond 128 bits is not supported"),
    }
}

fn floats(op: BinaryOp, a: f64, b: f64) -> Res<Value> {
    if b == 0.0 && matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod) {
        return error("float division by zero");
    }
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => floor_rest(a, b).0,
        BinaryOp::Mod => floor_rest(a, b).1,
        BinaryOp::Pow if a == 0.0 && b < 0.0 => {
            return error("0.0 cannot be raised to a negative power");
        }
        BinaryOp::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return error("complex numbers are not supported");
        }
        BinaryOp::Pow => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return error("Numerical result out of range");
            }
            power
        }
    }))
}

/// CPython's `divmod` of floats.
fn floor_rest(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest != 0.0 {
        if (b < 0.0) != (rest < 0.0) {
            rest += b;
            quotient -= 1.0;
        }
    } else {
        rest = 0.0f64.copysign(b);
    }
    if quotient != 0.0 {
        let floor = quotient.floor();
        quotient = if quotient - floor > 0.5 { floor + 1.0 } else { floor };
    } else {
        quotient = 0.0f64.copysign(a / b);
    }
    (quotient, rest)
}

/// Python's unary `-` and `+`.
pub(crate) fn unary(value: &Value, negate: bool) -> Res<Value> {
    match value {
        Value::Undefined(message) => error(&**message),
        Value::Float(f) => Ok(Value::Float(if negate { -f } else { *f })),
        _ => match value.as_int().and_then(|i| if negate { i.checked_neg() } else { Some(i) }) {
            Some(i) => Ok(Value::Int(i)),
            None => {
                let sign = if negate { "-" } else { "+" };
                error(format!("bad operand type for unary {sign}: '{}'", value.kind()))
            }
        },
    }
}

/// A stable sort by keys whose comparison may fail, in Python's order of `reverse`.
pub(crate) fn sort(
    run: &mut Run,
    items: Vec<(Value, Value)>,
    reverse: bool,
) -> Res<Vec<(Value, Value)>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let left = sort(run, left, reverse)?;
    let right = sort(run, right, reverse)?;
    let mut sorted = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let right_first = match reverse {
            false => ordered(run, CompareOp::Lt, &b.0, &a.0)?,
            true => ordered(run, CompareOp::Lt, &a.0, &b.0)?,
        };
        sorted.extend(if right_first { right.next() } else { left.next() });
    }
    sorted.extend(left);
    sorted.extend(right);
    Ok(sorted)
}
