//! Values of a rendering: Python's, without what the sandbox forbids. Lists and dictionaries never
//! change, so copies share them.

use super::ast::{Expr, MacroDef, Target};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Levels that a value may be nested. Python gives up at about twice as many.
const MOST_NESTED: u32 = 400;

/// Why a rendering stopped.
#[derive(Debug)]
pub(crate) enum Fail {
    /// An exception of Python or Jinja2, or an unsupported construct.
    Error(String),
    /// The budget of work is used up.
    Fuel,
    /// Calls are nested deeper than the stack allows.
    Depth,
}

pub(crate) type Res<T> = Result<T, Fail>;

/// Values by name.
pub(crate) type Vars = Vec<(Arc<str>, Value)>;

/// An error of the template.
pub(crate) fn error<T>(message: impl Into<String>) -> Res<T> {
    Err(Fail::Error(message.into()))
}

/// A value.
#[derive(Clone)]
pub(crate) enum Value {
    /// Jinja2's undefined, with the message of an error that its use raises.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    /// `Markup`: text that `safe` or `escape` returned.
    Safe(Arc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    /// Start, stop and step.
    Range(Rc<[i128; 3]>),
    /// A generator: its items come once.
    Iter(Rc<RefCell<Iter>>),
    Object(Rc<Object>),
}

/// Which part of a dictionary a view shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum View {
    Keys,
    Values,
    Items,
}

/// Items of a list or tuple.
pub(crate) struct Seq {
    pub(crate) items: Vec<Value>,
    /// A pair of `groupby`, which has the attributes `grouper` and `list`.
    pub(crate) group: bool,
    nested: u32,
}

/// A dictionary in order of insertion.
pub(crate) struct Dict {
    pub(crate) entries: Vec<(Value, Value)>,
    nested: u32,
}

/// The rest of a generator. Items are computed ahead; an error waits for its turn.
#[derive(Default)]
pub(crate) struct Iter {
    pub(crate) items: VecDeque<Value>,
    pub(crate) fails: Option<String>,
    /// Levels of the items that it began with.
    nested: u32,
}

impl Iter {
    pub(crate) fn new(items: Vec<Value>, fails: Option<String>) -> Iter {
        let nested = levels(items.iter());
        Iter { items: items.into(), fails, nested }
    }
}

/// Objects with an identity.
pub(crate) enum Object {
    Namespace(RefCell<Vars>, Cell<u32>),
    Cycler(Rc<Seq>, Cell<usize>),
    Joiner(Value, Cell<bool>),
    Loop(Box<RefCell<Loop>>),
    Macro(Macro),
    /// A global function.
    Function(&'static str),
    /// A method bound to its value.
    Method(Value, Arc<str>),
}

/// Variables of a scope and those around it.
pub(crate) struct Scope {
    pub(crate) vars: RefCell<Vars>,
    pub(crate) parent: Option<Rc<Scope>>,
}

/// A macro, or the body of a call block.
pub(crate) struct Macro {
    pub(crate) def: Arc<MacroDef>,
    pub(crate) scope: Rc<Scope>,
}

/// State of a loop that its body can ask for.
pub(crate) struct Loop {
    pub(crate) source: Iter,
    /// Target, filter and scope of `for ... if ...`.
    pub(crate) filter: Option<(Arc<Target>, Arc<Expr>, Rc<Scope>)>,
    /// Length of what is iterated over, where Python's `len` knows it.
    pub(crate) sized: Option<usize>,
    pub(crate) length: Option<usize>,
    pub(crate) index0: i128,
    pub(crate) before: Option<Value>,
    pub(crate) current: Option<Value>,
    /// The item after this one, once looked at; None inside says that there is none.
    pub(crate) after: Option<Option<Value>>,
    pub(crate) changed: Option<Value>,
    pub(crate) depth: i128,
    pub(crate) recursive: Option<(Arc<super::ast::For>, Rc<Scope>)>,
}

impl Scope {
    pub(crate) fn new(parent: Option<Rc<Scope>>) -> Rc<Scope> {
        Rc::new(Scope { vars: RefCell::default(), parent })
    }

    pub(crate) fn set(&self, name: &Arc<str>, value: Value) {
        put(&mut self.vars.borrow_mut(), name, value);
    }

    /// The value of a name, and how many names were looked at.
    pub(crate) fn get(&self, name: &str) -> (Option<Value>, usize) {
        let (mut scope, mut seen) = (self, 0);
        loop {
            let vars = scope.vars.borrow();
            seen += vars.len() + 1;
            if let Some(value) = named(&vars, name) {
                return (Some(value.clone()), seen);
            }
            let Some(parent) = &scope.parent else { return (None, seen) };
            scope = parent;
        }
    }
}

/// The value of a name.
pub(crate) fn named<'a>(vars: &'a Vars, name: &str) -> Option<&'a Value> {
    vars.iter().find(|(n, _)| &**n == name).map(|(_, v)| v)
}

/// Sets the value of a name.
pub(crate) fn put(vars: &mut Vars, name: &Arc<str>, value: Value) {
    match vars.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value,
        None => vars.push((name.clone(), value)),
    }
}

/// Levels of something that holds `items`.
pub(crate) fn levels<'a>(items: impl Iterator<Item = &'a Value>) -> u32 {
    items.map(Value::nested).max().unwrap_or(0) + 1
}

fn nested<'a>(items: impl Iterator<Item = &'a Value>) -> Res<u32> {
    match levels(items) {
        levels if levels <= MOST_NESTED => Ok(levels),
        _ => error("a value is nested too deeply"),
    }
}

impl Value {
    pub(crate) fn str(text: impl AsRef<str>) -> Value {
        Value::Str(Arc::from(text.as_ref()))
    }

    pub(crate) fn undefined(message: impl AsRef<str>) -> Value {
        Value::Undefined(Arc::from(message.as_ref()))
    }

    pub(crate) fn list(items: Vec<Value>) -> Res<Value> {
        let nested = nested(items.iter())?;
        Ok(Value::List(Rc::new(Seq { items, group: false, nested })))
    }

    pub(crate) fn tuple(items: Vec<Value>) -> Res<Value> {
        let nested = nested(items.iter())?;
        Ok(Value::Tuple(Rc::new(Seq { items, group: false, nested })))
    }

    /// A pair as `groupby` makes it.
    pub(crate) fn group(key: Value, items: Value) -> Res<Value> {
        let items = vec![key, items];
        let nested = nested(items.iter())?;
        Ok(Value::Tuple(Rc::new(Seq { items, group: true, nested })))
    }

    /// A dictionary of entries whose keys differ.
    pub(crate) fn dict(entries: Vec<(Value, Value)>) -> Res<Value> {
        let nested = nested(entries.iter().flat_map(|(k, v)| [k, v]))?;
        Ok(Value::Dict(Rc::new(Dict { entries, nested })))
    }

    pub(crate) fn iter(items: Vec<Value>) -> Value {
        Value::Iter(Rc::new(RefCell::new(Iter::new(items, None))))
    }

    pub(crate) fn object(object: Object) -> Value {
        Value::Object(Rc::new(object))
    }

    pub(crate) fn nested(&self) -> u32 {
        match self {
            Value::List(s) | Value::Tuple(s) => s.nested,
            Value::Dict(d) | Value::View(_, d) => d.nested,
            Value::Iter(i) => i.borrow().nested,
            Value::Object(o) => match &**o {
                Object::Namespace(_, nested) => nested.get(),
                Object::Cycler(items, _) => items.nested,
                Object::Joiner(v, _) | Object::Method(v, _) => v.nested() + 1,
                _ => 1,
            },
            _ => 0,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    /// Text, marked safe or not.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) | Value::Safe(s) => Some(s),
            _ => None,
        }
    }

    /// An integer as Python's `__index__` has it.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// Python's name of its type.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Safe(_) => "Markup",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Range(_) => "range",
            Value::Iter(_) => "generator",
            Value::Object(o) => match &**o {
                Object::Namespace(..) => "Namespace",
                Object::Cycler(..) => "Cycler",
                Object::Joiner(..) => "Joiner",
                Object::Loop(_) => "LoopContext",
                Object::Macro(_) => "Macro",
                Object::Function(_) => "function",
                Object::Method(..) => "method",
            },
        }
    }
}

/// Numbers of a range.
pub(crate) fn range_len([start, stop, step]: &[i128; 3]) -> i128 {
    match *step > 0 {
        true if start < stop => (stop - start - 1) / step + 1,
        false if start > stop => (start - stop - 1) / -step + 1,
        _ => 0,
    }
}

/// The items that a view of a dictionary shows.
pub(crate) fn view_items(view: View, entries: &[(Value, Value)]) -> Res<Vec<Value>> {
    entries
        .iter()
        .map(|(k, v)| match view {
            View::Keys => Ok(k.clone()),
            View::Values => Ok(v.clone()),
            View::Items => Value::tuple(vec![k.clone(), v.clone()]),
        })
        .collect()
}
