//! Runs a syntax tree: statements, scopes, loops and macros.

use super::ast::{Expr, For, MacroDef, Program, Stmt, Target};
use super::ops;
use super::repr;
use super::run::{Failed, Limits, Output, Run};
use super::value::{Fail, Iter, Loop, Macro, Object, Res, Scope, Value, Vars, error, put};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// How a statement ended.
#[derive(PartialEq)]
pub(crate) enum Flow {
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

    pub(crate) fn body(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Res<Flow> {
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
                let text = repr::text(self, &value)?;
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
                let text = repr::text(self, &value)?;
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
                let text = repr::text(self, &value)?;
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
            Target::Name(name) => {
                self.spend(scope.vars.borrow().len() as u64 / 8)?;
                scope.set(name, value);
            }
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
                self.spend(vars.borrow().len() as u64 / 8)?;
                nested.set(nested.get().max(value.nested() + 1));
                put(&mut vars.borrow_mut(), attr, value);
            }
        }
        Ok(())
    }

    pub(crate) fn run_loop(
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
                state.source = Iter::new(rest, None);
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
}
