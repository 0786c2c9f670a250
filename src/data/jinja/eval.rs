//! Runs a syntax tree: statements, expressions, scopes, loops and macros.

use super::ast::{Args, Expr, For, Kind, MacroDef, Program, Stmt, Target};
use super::names;
use super::ops;
use super::repr;
use super::run::{Failed, Given, Limits, Output, Run};
use super::value::{Fail, Iter, Loop, Macro, Object, Res, Scope, Value, Vars, error, put};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// How a statement ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// Renders a program with its variables.
pub(crate) fn render(
    program: &Program,
    vars: Vars,
    now: i64,
    limits: Limits,
) -> Result<Output, Failed> {
    let given = Rc::new(Scope { vars: RefCell::new(vars), parent: None });
    let top = Scope::new(Some(given));
    let mut run = Run {
        limits,
        depth: 0,
        line: 1,
        now,
        top: top.clone(),
        captured: Vec::new(),
        buffered: 0,
        written: 0,
        generated: Vec::new(),
        spaces: Vec::new(),
        scopes: vec![top.clone()],
    };
    let mut text = String::new();
    let outcome = run.body(&program.body, &top, &mut text);
    let generated = std::mem::take(&mut run.generated);
    run.release();
    match outcome {
        Err(Fail::Error(message)) => Err(Failed::Error(message, run.line)),
        Err(Fail::Fuel) => Err(Failed::Fuel),
        Err(Fail::Depth) => Err(Failed::Depth),
        Ok(_) => {
            let placed = generated.into_iter().map(|(start, part)| {
                let range = start..start + part.len();
                let holds = text.get(range.clone()) == Some(&part);
                holds.then_some(range)
            });
            match placed.collect::<Option<Vec<_>>>() {
                Some(generated) => Ok(Output { text, generated }),
                None => {
                    let message = "{% generation %} inside a macro, a call, a filter or a set \
                                   block has no certain place in the text";
                    Err(Failed::Error(message.into(), run.line))
                }
            }
        }
    }
}

impl Run {
    /// Runs a body in a scope of its own and returns its text.
    fn capture(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Res<(String, Flow)> {
        self.buffered(|run, text| run.body(body, &Scope::new(Some(scope.clone())), text))
    }

    fn body(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Res<Flow> {
        for statement in body {
            let flow = self.deeper(|run| run.statement(statement, scope, out))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn statement(&mut self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Res<Flow> {
        self.spend(1)?;
        match stmt {
            Stmt::Data(text) => self.emit(text, out)?,
            Stmt::Print(value) => {
                let value = self.eval(value, scope)?;
                let text = repr::text(&value)?;
                self.emit(&text, out)?;
            }
            Stmt::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::SetBlock(target, filter, body) => {
                let (text, flow) = self.capture(body, scope)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
                let value = self.filtered(filter, text, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::FilterBlock(filter, body) => {
                let (text, flow) = self.capture(body, scope)?;
                if flow != Flow::On {
                    return Ok(flow);
                }
                let value = self.filtered(filter, text, scope)?;
                let text = repr::text(&value)?;
                self.emit(&text, out)?;
            }
            Stmt::For(f) => {
                let iterable = self.eval(&f.iter, scope)?;
                self.run_loop(f, iterable, scope, 0, out)?;
            }
            Stmt::If(branches, otherwise) => {
                for (test, body) in branches {
                    if ops::truth(&self.eval(test, scope)?) {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            Stmt::With(values, body) => {
                let inner = Scope::new(Some(scope.clone()));
                for (target, value) in values {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            Stmt::Macro(def) => {
                let value = self.make_macro(def, scope);
                if let Some(name) = &def.name {
                    scope.set(name, value);
                }
            }
            Stmt::CallBlock(callee, args, def) => {
                let callee = self.eval(callee, scope)?;
                let mut given = self.given(args, scope)?;
                let caller = self.make_macro(def, scope);
                given.named.push((Arc::from("caller"), caller));
                let value = self.call(&callee, given)?;
                let text = repr::text(&value)?;
                self.emit(&text, out)?;
            }
            Stmt::Block(body, scoped) => {
                let outer = if *scoped { scope.clone() } else { self.top.clone() };
                return self.body(body, &Scope::new(Some(outer)), out);
            }
            Stmt::Generation(body) => {
                let start = self.written;
                let (text, _) = self.capture(body, scope)?;
                self.emit(&text, out)?;
                self.generated.push((start, text));
            }
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn filtered(&mut self, filter: &Expr, text: String, scope: &Rc<Scope>) -> Res<Value> {
        let text = self.text(text)?;
        self.captured.push(text);
        let value = self.eval(filter, scope);
        self.captured.pop();
        value
    }

    fn make_macro(&mut self, def: &Arc<MacroDef>, scope: &Rc<Scope>) -> Value {
        self.scopes.push(scope.clone());
        Value::object(Object::Macro(Macro { def: def.clone(), scope: scope.clone() }))
    }

    pub(crate) fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Res<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Tuple(targets) => {
                let items = ops::items(self, &value)?;
                let (expected, got) = (targets.len(), items.len());
                if got != expected {
                    let message = match got > expected {
                        true => format!("too many values to unpack (expected {expected})"),
                        false => {
                            format!("not enough values to unpack (expected {expected}, got {got})")
                        }
                    };
                    return error(message);
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
            Target::Namespace(name, attr) => {
                let space = self.lookup(name, scope)?;
                let Value::Object(object) = &space else {
                    return error("cannot assign attribute on non-namespace object");
                };
                let Object::Namespace(vars, nested) = &**object else {
                    return error("cannot assign attribute on non-namespace object");
                };
                if attr.starts_with('_') {
                    return error(format!(
                        "a namespace cannot store the underscore-prefixed attribute '{attr}'"
                    ));
                }
                nested.set(nested.get().max(value.nested() + 1));
                put(&mut vars.borrow_mut(), attr, value);
            }
        }
        Ok(())
    }

    fn run_loop(
        &mut self,
        f: &Arc<For>,
        iterable: Value,
        scope: &Rc<Scope>,
        depth: i128,
        out: &mut String,
    ) -> Res<()> {
        let filter = f.test.as_ref().map(|test| (f.target.clone(), test.clone(), scope.clone()));
        let sized = match filter {
            None => ops::known_length(&iterable),
            Some(_) => None,
        };
        let state = Rc::new(Object::Loop(Box::new(RefCell::new(Loop {
            source: ops::source(self, &iterable)?,
            filter,
            sized,
            length: None,
            index0: -1,
            before: None,
            current: None,
            after: None,
            changed: None,
            depth,
            recursive: f.recursive.then(|| (f.clone(), scope.clone())),
        }))));
        let name: Arc<str> = Arc::from("loop");
        // As in Jinja2, an iteration that was broken off does not count against `else`.
        let mut ran = false;
        while let Some(item) = self.advance(&state)? {
            self.spend(1)?;
            let inner = Scope::new(Some(scope.clone()));
            if f.uses_loop {
                inner.set(&name, Value::Object(state.clone()));
            }
            self.line = f.line;
            self.assign(&f.target, item, &inner)?;
            match self.body(&f.body, &inner, out)? {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::On => ran = true,
            }
        }
        if let (Value::Iter(iter), Object::Loop(state)) = (&iterable, &*state)
            && f.test.is_none()
        {
            // What a loop left of a generator is still there.
            *iter.borrow_mut() = std::mem::take(&mut state.borrow_mut().source);
        }
        if !ran {
            self.body(&f.otherwise, &Scope::new(Some(scope.clone())), out)?;
        }
        Ok(())
    }

    /// Moves a loop to its next item.
    fn advance(&mut self, state: &Object) -> Res<Option<Value>> {
        let Object::Loop(cell) = state else { return Ok(None) };
        let looked = cell.borrow_mut().after.take();
        let next = match looked {
            Some(next) => next,
            None => self.pull(cell)?,
        };
        let Some(item) = next else { return Ok(None) };
        let mut state = cell.borrow_mut();
        state.index0 += 1;
        state.before = state.current.replace(item.clone());
        Ok(Some(item))
    }

    /// The next item that passes the loop's filter.
    fn pull(&mut self, cell: &RefCell<Loop>) -> Res<Option<Value>> {
        loop {
            let next = cell.borrow_mut().source.items.pop_front();
            let Some(item) = next else {
                let fails = cell.borrow_mut().source.fails.take();
                return match fails {
                    Some(message) => error(message),
                    None => Ok(None),
                };
            };
            let filter = cell.borrow().filter.clone();
            let Some((target, test, scope)) = filter else { return Ok(Some(item)) };
            self.spend(1)?;
            let inner = Scope::new(Some(scope));
            self.assign(&target, item.clone(), &inner)?;
            if ops::truth(&self.eval(&test, &inner)?) {
                return Ok(Some(item));
            }
        }
    }

    /// The item after the current one.
    fn peek(&mut self, cell: &RefCell<Loop>) -> Res<Option<Value>> {
        let looked = cell.borrow().after.clone();
        match looked {
            Some(after) => Ok(after),
            None => {
                let after = self.pull(cell)?;
                cell.borrow_mut().after = Some(after.clone());
                Ok(after)
            }
        }
    }

    fn loop_length(&mut self, cell: &RefCell<Loop>) -> Res<i128> {
        let known = cell.borrow().length;
        if let Some(length) = known {
            return Ok(length as i128);
        }
        let sized = cell.borrow().sized;
        let length = match sized {
            Some(length) => length,
            None => {
                let mut rest = Vec::new();
                while let Some(item) = self.pull(cell)? {
                    rest.push(item);
                }
                let mut state = cell.borrow_mut();
                let looked = usize::from(matches!(state.after, Some(Some(_))));
                let length = rest.len() + (state.index0 + 1) as usize + looked;
                state.source = Iter { items: rest.into(), fails: None };
                state.filter = None;
                length
            }
        };
        cell.borrow_mut().length = Some(length);
        Ok(length as i128)
    }

    /// An attribute of `loop` that is not a method.
    pub(crate) fn loop_attribute(
        &mut self,
        cell: &RefCell<Loop>,
        name: &str,
    ) -> Res<Option<Value>> {
        let index0 = cell.borrow().index0;
        Ok(Some(match name {
            "index0" => Value::Int(index0),
            "index" => Value::Int(index0 + 1),
            "revindex0" => Value::Int(self.loop_length(cell)? - index0 - 1),
            "revindex" => Value::Int(self.loop_length(cell)? - index0),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(cell)?.is_none()),
            "length" => Value::Int(self.loop_length(cell)?),
            "depth0" => Value::Int(cell.borrow().depth),
            "depth" => Value::Int(cell.borrow().depth + 1),
            "previtem" if index0 == 0 => Value::undefined("there is no previous item"),
            "previtem" => {
                let before = cell.borrow().before.clone();
                before.unwrap_or_else(|| Value::undefined("there is no previous item"))
            }
            "nextitem" => {
                let after = self.peek(cell)?;
                after.unwrap_or_else(|| Value::undefined("there is no next item"))
            }
            _ => return Ok(None),
        }))
    }

    fn given(&mut self, args: &Args, scope: &Rc<Scope>) -> Res<Given> {
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

    fn lookup(&mut self, name: &Arc<str>, scope: &Rc<Scope>) -> Res<Value> {
        if let Some(value) = scope.get(name) {
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
            Kind::Dict(items) => {
                let mut entries = Vec::with_capacity(items.len());
                self.spend_items(2 * items.len())?;
                for (key, value) in items {
                    let key = self.eval(key, scope)?;
                    let value = self.eval(value, scope)?;
                    ops::insert(&mut entries, key, value)?;
                }
                Value::dict(entries)?
            }
            Kind::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let part = self.eval(part, scope)?;
                    text.push_str(&repr::text(&part)?);
                    self.room(text.len())?;
                }
                self.text(text)?
            }
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
            Kind::Compare(first, rest) => {
                let mut left = self.eval(first, scope)?;
                for (op, right) in rest {
                    let right = self.eval(right, scope)?;
                    if !ops::compare(self, *op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
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
            Kind::Slice(object_expr, parts) => {
                let object = self.eval(object_expr, scope)?;
                let mut values = [const { None }; 3];
                for (value, part) in values.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        *value = Some(self.eval(part, scope)?);
                    }
                }
                match (ops::slice(self, &object, &values), is_constant(&object_expr.kind)) {
                    // Jinja2 computes constants ahead, by another way to slice.
                    (Err(Fail::Error(_)), true) => missing(&object, "slice"),
                    (sliced, _) => sliced?,
                }
            }
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

    /// Jinja2's `object[key]`.
    pub(crate) fn getitem(&mut self, object: &Value, key: &Value) -> Res<Value> {
        if let Some(value) = ops::subscript(object, key)? {
            return Ok(value);
        }
        if let Some(name) = key.as_str()
            && let Some(value) = self.attribute(object, name)?
        {
            return Ok(value);
        }
        Ok(missing(object, &repr::repr(key).unwrap_or_else(|_| key.kind().into())))
    }

    /// Jinja2's `object.name`.
    pub(crate) fn getattr(&mut self, object: &Value, name: &Arc<str>) -> Res<Value> {
        if let Some(value) = self.attribute(object, name)? {
            return Ok(value);
        }
        let found = ops::subscript(object, &Value::Str(name.clone()))?;
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
