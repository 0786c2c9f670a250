//! The syntax tree of a template.

use std::sync::Arc;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) body: Vec<Stmt>,
    /// The template has `{% generation %}`.
    pub(crate) marks_generation: bool,
}

/// An expression and its line.
#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) line: u32,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// Test, then, else.
    Cond(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    Attr(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Args),
    Filter(Box<Expr>, Arc<str>, Args),
    Test(Box<Expr>, Arc<str>, Args),
    /// The text of the block that a filter is applied to.
    Captured,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) pos: Vec<Expr>,
    pub(crate) named: Vec<(Arc<str>, Expr)>,
    pub(crate) rest: Option<Box<Expr>>,
    pub(crate) rest_named: Option<Box<Expr>>,
}

/// The left side of an assignment.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Arc<str>),
    Tuple(Vec<Target>),
    Namespace(Arc<str>, Arc<str>),
}

#[derive(Debug)]
pub(crate) enum Stmt {
    Data(String),
    Print(Expr),
    Set(Target, Expr),
    /// The expression is the captured text, filtered.
    SetBlock(Target, Expr, Vec<Stmt>),
    For(Arc<For>),
    /// Conditions with their bodies, and the last else.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Macro(Arc<MacroDef>),
    /// The callee, its arguments, and the body as a macro.
    CallBlock(Expr, Args, Arc<MacroDef>),
    FilterBlock(Expr, Vec<Stmt>),
    /// A named block; true where it sees the loop around it.
    Block(Vec<Stmt>, bool),
    Generation(Vec<Stmt>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) line: u32,
    pub(crate) target: Arc<Target>,
    pub(crate) iter: Expr,
    pub(crate) test: Option<Arc<Expr>>,
    pub(crate) recursive: bool,
    /// The body asks for `loop`.
    pub(crate) uses_loop: bool,
    pub(crate) body: Vec<Stmt>,
    pub(crate) otherwise: Vec<Stmt>,
}

#[derive(Debug)]
pub(crate) struct MacroDef {
    /// None for the body of a call block.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) params: Vec<Arc<str>>,
    /// Defaults of the last parameters.
    pub(crate) defaults: Vec<Expr>,
    pub(crate) takes_kwargs: bool,
    pub(crate) takes_varargs: bool,
    pub(crate) takes_caller: bool,
    pub(crate) body: Vec<Stmt>,
}
