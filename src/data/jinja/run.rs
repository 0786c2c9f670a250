//! The state of a rendering: its budget, its output, and what it must take apart at the end.

use super::value::{Fail, Object, Res, Scope, Value, Vars, error, levels};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Units of work for an item of a list, which bound the memory that lists take.
const ITEM: u64 = 4;

/// The budget of a rendering.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Units of work: steps, items, and eights of bytes.
    pub(crate) fuel: u64,
    /// Levels of calls, statements and expressions.
    pub(crate) depth: u32,
    /// Bytes that one text may have.
    pub(crate) text: usize,
}

/// The result of a rendering.
pub(crate) struct Output {
    pub(crate) text: String,
    /// Byte ranges that came from `{% generation %}`.
    pub(crate) generated: Vec<Range<usize>>,
}

/// Why a rendering failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// A message and its line.
    Error(String, u32),
    Fuel,
    Depth,
}

/// Arguments of a call.
#[derive(Clone, Default)]
pub(crate) struct Given {
    pub(crate) pos: Vec<Value>,
    pub(crate) named: Vars,
}

impl Given {
    /// Takes a named argument out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(n, _)| &**n == name)?;
        Some(self.named.remove(at).1)
    }

    /// The values of the parameters `names`, of which the first `required` must be given.
    pub(crate) fn bind<const N: usize>(
        self,
        what: &str,
        names: [&str; N],
        required: usize,
    ) -> Res<[Option<Value>; N]> {
        if self.pos.len() > N {
            let given = self.pos.len();
            return error(format!("{what}() takes at most {N} arguments ({given} given)"));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.pos) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|n| *n == &*name) {
                Some(i) if values[i].is_none() => values[i] = Some(value),
                Some(_) => {
                    return error(format!("{what}() got multiple values for argument '{name}'"));
                }
                None => {
                    return error(format!("{what}() got an unexpected keyword argument '{name}'"));
                }
            }
        }
        match values[..required].iter().position(Option::is_none) {
            Some(i) => error(format!("{what}() missing required argument '{}'", names[i])),
            None => Ok(values),
        }
    }
}

/// The state of a rendering.
pub(crate) struct Run {
    pub(super) limits: Limits,
    pub(super) depth: u32,
    pub(super) line: u32,
    /// Seconds since 1970 that `strftime_now` tells.
    pub(crate) now: i64,
    pub(super) top: Rc<Scope>,
    /// Texts of the blocks being filtered.
    pub(super) captured: Vec<Value>,
    /// Blocks around the current one whose text does not go straight to the output.
    pub(super) buffered: u32,
    /// Bytes of output so far.
    pub(super) written: usize,
    pub(super) generated: Vec<(usize, String)>,
    /// Namespaces, emptied at the end: they may hold each other in chains of any length.
    pub(super) spaces: Vec<Rc<Object>>,
    /// Scopes that macros hold, for the same reason.
    pub(super) scopes: Vec<Rc<Scope>>,
}

impl Run {
    /// Takes apart what may hold itself.
    pub(super) fn release(&mut self) {
        while let Some(space) = self.spaces.pop() {
            if let Object::Namespace(vars, _) = &*space {
                let _old = std::mem::take(&mut *vars.borrow_mut());
            }
        }
        self.captured.clear();
        while let Some(scope) = self.scopes.pop() {
            let _old = std::mem::take(&mut *scope.vars.borrow_mut());
        }
    }

    /// Takes `units` of work off the budget.
    pub(crate) fn spend(&mut self, units: u64) -> Res<()> {
        match self.limits.fuel.checked_sub(units) {
            Some(left) => {
                self.limits.fuel = left;
                Ok(())
            }
            None => Err(Fail::Fuel),
        }
    }

    /// Takes the work of looking at a value once off the budget.
    pub(crate) fn touch(&mut self, value: &Value) -> Res<()> {
        let size = match value {
            Value::Str(s) | Value::Safe(s) => s.len(),
            Value::List(s) | Value::Tuple(s) => s.items.len(),
            Value::Dict(d) | Value::View(_, d) => d.entries.len(),
            _ => 0,
        };
        self.spend(size as u64 / 8)
    }

    pub(crate) fn spend_items(&mut self, items: usize) -> Res<()> {
        self.spend((items as u64).saturating_mul(ITEM))
    }

    /// An error unless a text of so many bytes may be made.
    pub(crate) fn room(&mut self, bytes: usize) -> Res<()> {
        match bytes <= self.limits.text {
            true => Ok(()),
            false => error(format!("a text of more than {} MiB", self.limits.text >> 20)),
        }
    }

    pub(super) fn shared(&mut self, text: &str) -> Res<Arc<str>> {
        self.room(text.len())?;
        self.spend(text.len() as u64 / 8)?;
        Ok(Arc::from(text))
    }

    /// A text as a value.
    pub(crate) fn text(&mut self, text: impl AsRef<str>) -> Res<Value> {
        self.shared(text.as_ref()).map(Value::Str)
    }

    /// A text that is marked safe.
    pub(crate) fn safe(&mut self, text: impl AsRef<str>) -> Res<Value> {
        self.shared(text.as_ref()).map(Value::Safe)
    }

    /// A text that is marked safe where `model` is.
    pub(crate) fn like(&mut self, model: &Value, text: impl AsRef<str>) -> Res<Value> {
        match model {
            Value::Safe(_) => self.safe(text),
            _ => self.text(text),
        }
    }

    pub(crate) fn namespace(&mut self, vars: Vars) -> Value {
        let nested = levels(vars.iter().map(|(_, v)| v));
        let space = Rc::new(Object::Namespace(RefCell::new(vars), nested.into()));
        self.spaces.push(space.clone());
        Value::Object(space)
    }

    /// Runs `f` a level deeper.
    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.depth >= self.limits.depth {
            return Err(Fail::Depth);
        }
        self.depth += 1;
        let outcome = f(self);
        self.depth -= 1;
        outcome
    }

    pub(super) fn emit(&mut self, text: &str, out: &mut String) -> Res<()> {
        self.spend(text.len() as u64 / 8)?;
        self.room(out.len() + text.len())?;
        out.push_str(text);
        if self.buffered == 0 {
            self.written = out.len();
        }
        Ok(())
    }

    /// Runs `f`, whose text does not go straight to the output.
    pub(super) fn buffered<T>(
        &mut self,
        f: impl FnOnce(&mut Self, &mut String) -> Res<T>,
    ) -> Res<(String, T)> {
        let mut text = String::new();
        self.buffered += 1;
        let outcome = f(self, &mut text);
        self.buffered -= 1;
        Ok((text, outcome?))
    }
}
