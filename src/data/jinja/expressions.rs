//! Values of expressions, and calls.

use super::ast::{Args, CompareOp, Expr, Kind};
use super::names;
use super::ops;
use super::repr;
use super::run::{Given, Run};
use super::value::{Fail, Macro, Object, Res, Scope, Value, error};
use std::rc::Rc;
use std::sync::Arc;

impl Run {
    pub(crate) fn given(&mut self, args: &Args, scope: &Rc<Scope>) -> Res<Given> {
        let mut given = Given::default();
        for arg in &args.pos {
            given.pos.push(self.eval(arg, scope)?);
        }
        if let Some(rest) = &args.rest {
            let rest = self.eval(rest, scope)?;
            given.pos.extend(ops::items(self, &rest)?);
        }
        for (name, arg) in &args.named {
            given.named.push((name.clone(), self.eval(arg, scope)?));
        }
        if let Some(rest) = &args.rest_named {
            let rest = self.eval(rest, scope)?;
            let Value::Dict(rest) = rest else {
                return error("argument after ** must be a mapping");
            };
            for (key, value) in &rest.entries {
                let Value::Str(name) = key else { return error("keywords must be strings") };
                if given.named.iter().any(|(n, _)| n == name) {
                    return error(format!("got multiple values for keyword argument '{name}'"));
                }
                given.named.push((name.clone(), value.clone()));
            }
        }
        Ok(given)
    }

    pub(crate) fn lookup(&mut self, name: &Arc<str>, scope: &Rc<Scope>) -> Res<Value> {
        let (found, seen) = scope.get(name);
        self.spend(seen as u64 / 8)?;
        if let Some(value) = found {
            return Ok(value);
        }
        match names::FUNCTIONS.iter().find(|n| **n == &**name) {
            Some(function) => Ok(Value::object(Object::Function(function))),
            None if &**name == "self" => error("'self' is not supported"),
            None => Ok(Value::undefined(format!("'{name}' is undefined"))),
        }
    }

    pub(crate) fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        self.spend(1)?;
        self.line = expr.line;
        self.deeper(|run| run.value(expr, scope))
    }

    fn all(&mut self, items: &[Expr], scope: &Rc<Scope>) -> Res<Vec<Value>> {
        self.spend_items(items.len())?;
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    fn value(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        Ok(match &expr.kind {
            Kind::None => Value::None,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Int(i) => Value::Int(*i),
            Kind::Float(f) => Value::Float(*f),
            Kind::Str(s) => Value::Str(s.clone()),
            Kind::Name(name) => self.lookup(name, scope)?,
            Kind::List(items) => Value::list(self.all(items, scope)?)?,
            Kind::Tuple(items) => Value::tuple(self.all(items, scope)?)?,
            Kind::Dict(items) => self.dict(items, scope)?,
            Kind::Concat(parts) => self.concat(parts, scope)?,
            Kind::Neg(operand) => ops::unary(&self.eval(operand, scope)?, true)?,
            Kind::Pos(operand) => ops::unary(&self.eval(operand, scope)?, false)?,
            Kind::Not(operand) => Value::Bool(!ops::truth(&self.eval(operand, scope)?)),
            Kind::And(a, b) => match self.eval(a, scope)? {
                a if ops::truth(&a) => self.eval(b, scope)?,
                a => a,
            },
            Kind::Or(a, b) => match self.eval(a, scope)? {
                a if ops::truth(&a) => a,
                _ => self.eval(b, scope)?,
            },
            Kind::Binary(op, a, b) => {
                let a = self.eval(a, scope)?;
                let b = self.eval(b, scope)?;
                ops::binary(self, *op, &a, &b)?
            }
            Kind::Compare(first, rest) => self.comparison(first, rest, scope)?,
            Kind::Cond(test, then, otherwise) => {
                match (ops::truth(&self.eval(test, scope)?), otherwise) {
                    (true, _) => self.eval(then, scope)?,
                    (false, Some(otherwise)) => self.eval(otherwise, scope)?,
                    (false, None) => Value::undefined(
                        "the inline if-expression evaluated to false and no else section was \
                         defined",
                    ),
                }
            }
            Kind::Attr(object, name) => {
                let object = self.eval(object, scope)?;
                self.getattr(&object, name)?
            }
            Kind::Item(object, key) => {
                let object = self.eval(object, scope)?;
                let key = self.eval(key, scope)?;
                self.getitem(&object, &key)?
            }
            Kind::Slice(object, parts) => self.slice(object, parts, scope)?,
            Kind::Call(callee, args) => {
                let callee = self.eval(callee, scope)?;
                let given = self.given(args, scope)?;
                self.line = expr.line;
                self.call(&callee, given)?
            }
            Kind::Filter(value, name, args) => {
                let value = self.eval(value, scope)?;
                let given = self.given(args, scope)?;
                self.line = expr.line;
                self.filter(name, value, given)?
            }
            Kind::Test(value, name, args) => {
                let value = self.eval(value, scope)?;
                let given = self.given(args, scope)?;
                self.line = expr.line;
                Value::Bool(self.test(name, &value, given)?)
            }
            Kind::Captured => self.captured.last().cloned().unwrap_or(Value::None),
        })
    }

    fn dict(&mut self, items: &[(Expr, Expr)], scope: &Rc<Scope>) -> Res<Value> {
        let mut entries = Vec::with_capacity(items.len());
        self.spend_items(2 * items.len())?;
        for (key, value) in items {
            let key = self.eval(key, scope)?;
            let value = self.eval(value, scope)?;
            ops::insert(self, &mut entries, key, value)?;
        }
        Value::dict(entries)
    }

    fn concat(&mut self, parts: &[Expr], scope: &Rc<Scope>) -> Res<Value> {
        let mut text = String::new();
        for part in parts {
            let part = self.eval(part, scope)?;
            text.push_str(&repr::text(self, &part)?);
            self.room(text.len())?;
        }
        self.text(text)
    }

    fn comparison(
        &mut self,
        first: &Expr,
        rest: &[(CompareOp, Expr)],
        scope: &Rc<Scope>,
    ) -> Res<Value> {
        let mut left = self.eval(first, scope)?;
        for (op, right) in rest {
            let right = self.eval(right, scope)?;
            if !ops::compare(self, *op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn slice(
        &mut self,
        object_expr: &Expr,
        parts: &[Option<Box<Expr>>; 3],
        scope: &Rc<Scope>,
    ) -> Res<Value> {
        let object = self.eval(object_expr, scope)?;
        let mut values = [const { None }; 3];
        for (value, part) in values.iter_mut().zip(parts) {
            if let Some(part) = part {
                *value = Some(self.eval(part, scope)?);
            }
        }
        match (ops::slice(self, &object, &values), is_constant(&object_expr.kind)) {
            // Jinja2 computes constants ahead, by another way to slice.
            (Err(Fail::Error(_)), true) => Ok(missing(&object, "slice")),
            (sliced, _) => sliced,
        }
    }

    /// Jinja2's `object[key]`.
    pub(crate) fn getitem(&mut self, object: &Value, key: &Value) -> Res<Value> {
        if let Some(value) = ops::subscript(self, object, key)? {
            return Ok(value);
        }
        if let Some(name) = key.as_str()
            && let Some(value) = self.attribute(object, name)?
        {
            return Ok(value);
        }
        match repr::repr(self, key) {
            Ok(name) => Ok(missing(object, &name)),
            Err(Fail::Error(_)) => Ok(missing(object, key.kind())),
            Err(other) => Err(other),
        }
    }

    /// Jinja2's `object.name`.
    pub(crate) fn getattr(&mut self, object: &Value, name: &Arc<str>) -> Res<Value> {
        if let Some(value) = self.attribute(object, name)? {
            return Ok(value);
        }
        let found = ops::subscript(self, object, &Value::Str(name.clone()))?;
        Ok(found.unwrap_or_else(|| missing(object, &format!("'{name}'"))))
    }

    pub(crate) fn call(&mut self, callee: &Value, given: Given) -> Res<Value> {
        let object = match callee {
            Value::Object(object) => object.clone(),
            Value::Undefined(message) => return error(&**message),
            _ => return error(format!("'{}' object is not callable", callee.kind())),
        };
        self.deeper(|run| match &*object {
            Object::Macro(m) => run.call_macro(m, given),
            Object::Function(name) => run.function(name, given),
            Object::Method(owner, name) => run.method(owner, name, given),
            Object::Joiner(separator, used) => {
                let [] = given.bind("joiner", [], 0)?;
                Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
            }
            Object::Loop(cell) => {
                let [iterable] = given.bind("loop", ["iterable"], 1)?;
                let (recursive, depth) = (cell.borrow().recursive.clone(), cell.borrow().depth);
                let Some((f, scope)) = recursive else {
                    return error(
                        "The loop must have the 'recursive' marker to be called recursively.",
                    );
                };
                let iterable = iterable.unwrap_or(Value::None);
                let (text, ()) =
                    run.buffered(|run, text| run.run_loop(&f, iterable, &scope, depth + 1, text))?;
                run.text(text)
            }
            _ => error(format!("'{}' object is not callable", callee.kind())),
        })
    }

    fn call_macro(&mut self, m: &Macro, mut given: Given) -> Res<Value> {
        let def = &*m.def;
        let what = def.name.as_deref().unwrap_or("caller");
        let (count, mut pos) = (def.params.len(), std::mem::take(&mut given.pos));
        let extra = if pos.len() > count { pos.split_off(count) } else { Vec::new() };
        let filled = pos.len();
        let mut values: Vec<Option<Value>> = pos.into_iter().map(Some).collect();
        for name in &def.params[filled..] {
            values.push(given.take(name));
        }
        let scope = Scope::new(Some(m.scope.clone()));
        if def.takes_caller {
            let caller = match given.take("caller") {
                None | Some(Value::None) => Value::undefined("No caller defined"),
                Some(caller) => caller,
            };
            scope.set(&Arc::from("caller"), caller);
        }
        if def.takes_kwargs {
            let entries = given.named.into_iter().map(|(n, v)| (Value::Str(n), v)).collect();
            scope.set(&Arc::from("kwargs"), Value::dict(entries)?);
        } else if let Some((name, _)) = given.named.first() {
            return error(format!("macro '{what}' takes no keyword argument '{name}'"));
        }
        if def.takes_varargs {
            scope.set(&Arc::from("varargs"), Value::tuple(extra)?);
        } else if !extra.is_empty() {
            return error(format!("macro '{what}' takes not more than {count} argument(s)"));
        }
        for (i, (name, value)) in def.params.iter().zip(values).enumerate() {
            let default = (i + def.defaults.len()).checked_sub(count);
            let value = match (value, default) {
                (Some(value), _) => value,
                (None, Some(at)) => self.eval(&def.defaults[at], &scope)?,
                (None, None) => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        let (text, _) = self.buffered(|run, text| run.body(&def.body, &scope, text))?;
        self.text(text)
    }
}

fn is_constant(kind: &Kind) -> bool {
    match kind {
        Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Str(_) => true,
        Kind::Dict(items) => {
            items.iter().all(|(k, v)| is_constant(&k.kind) && is_constant(&v.kind))
        }
        _ => false,
    }
}

/// The undefined value that a missing attribute or item is.
fn missing(object: &Value, name: &str) -> Value {
    let kind = match object {
        Value::None => "None".to_owned(),
        _ => format!("'{} object'", object.kind()),
    };
    Value::undefined(format!("{kind} has no attribute {name}"))
}
