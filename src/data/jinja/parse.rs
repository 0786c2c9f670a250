//! Tokens to a syntax tree: Jinja2's grammar, with the statements that chat templates have.

use super::ast::{Program, Stmt};
use super::lex::{SyntaxError, Tok, Token, tokens};
use std::sync::Arc;

/// Levels that statements and expressions may be nested. Jinja2 itself gives up earlier.
const MOST_NESTED: u32 = 90;

/// Operators, subscripts and filters that one expression may chain.
pub(super) const MOST_CHAINED: u32 = 500;

pub(crate) type Parsed<T> = Result<T, SyntaxError>;

/// Parses a template. Errors are a message and its line.
pub(crate) fn parse(source: &str) -> Parsed<Program> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        nested: 0,
        in_loop: false,
        loops: 0,
        blocks: Vec::new(),
        marks_generation: false,
        names: Vec::new(),
        unknown: Vec::new(),
        unknown_for_sure: Vec::new(),
    };
    let body = parser.body(&[])?;
    parser.unknown_for_sure.append(&mut parser.unknown);
    match parser.unknown_for_sure.into_iter().next() {
        Some(unknown) => Err(unknown),
        None => Ok(Program { body, marks_generation: parser.marks_generation }),
    }
}

pub(crate) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nested: u32,
    /// `break` and `continue` have a loop.
    pub(super) in_loop: bool,
    /// Loops around the current statement, also outside of a macro.
    pub(super) loops: u32,
    /// Names of the blocks so far.
    pub(super) blocks: Vec<Arc<str>>,
    pub(super) marks_generation: bool,
    /// Names that expressions read so far.
    pub(super) names: Vec<Arc<str>>,
    /// Filters and tests that do not exist. Jinja2 fails at once, but not inside a condition.
    pub(super) unknown: Vec<SyntaxError>,
    unknown_for_sure: Vec<SyntaxError>,
}

pub(super) fn describe(tok: &Tok) -> String {
    match tok {
        Tok::Data(_) => "template data / text".into(),
        Tok::BlockBegin => "begin of statement block".into(),
        Tok::BlockEnd => "end of statement block".into(),
        Tok::PrintBegin => "begin of print statement".into(),
        Tok::PrintEnd => "end of print statement".into(),
        Tok::Name(name) => name.to_string(),
        Tok::Str(_) => "string".into(),
        Tok::Int(_) => "integer".into(),
        Tok::Float(_) => "float".into(),
        Tok::Op(op) => (*op).into(),
        Tok::End => "end of template".into(),
    }
}

impl Parser {
    pub(super) fn tok(&self) -> &Tok {
        &self.tokens[self.at].0
    }

    pub(super) fn look(&self, ahead: usize) -> &Tok {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].0
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    pub(super) fn next(&mut self) -> Tok {
        let tok = self.tok().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        tok
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err((message.into(), self.line()))
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.tok(), Tok::Op(o) if *o == op)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.tok(), Tok::Name(n) if &**n == name)
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn expected<T>(&self, what: &str) -> Parsed<T> {
        match self.tok() {
            Tok::End => self.fail(format!("unexpected end of template, expected '{what}'.")),
            tok => self.fail(format!("expected token '{what}', got '{}'", describe(tok))),
        }
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) { Ok(()) } else { self.expected(op) }
    }

    pub(super) fn expect_name(&mut self, name: &str) -> Parsed<()> {
        if self.skip_name(name) { Ok(()) } else { self.expected(name) }
    }

    pub(super) fn name(&mut self) -> Parsed<Arc<str>> {
        match self.tok() {
            Tok::Name(name) => {
                let name = name.clone();
                self.next();
                Ok(name)
            }
            _ => self.expected("name"),
        }
    }

    /// Steps over `end`, the end of a tag.
    fn expect(&mut self, end: &Tok) -> Parsed<()> {
        if self.tok() != end {
            return self.expected(&describe(end));
        }
        self.next();
        Ok(())
    }

    fn block_end(&mut self) -> Parsed<()> {
        self.expect(&Tok::BlockEnd)
    }

    /// Runs `f` one level deeper.
    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nested >= MOST_NESTED {
            return self.fail("nested too deeply");
        }
        self.nested += 1;
        let outcome = f(self);
        self.nested -= 1;
        outcome
    }

    /// Statements up to one of `ends`, which stays the current token.
    fn body(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            match self.tok() {
                Tok::Data(text) => {
                    body.push(Stmt::Data(text.clone()));
                    self.next();
                }
                Tok::PrintBegin => {
                    self.next();
                    body.push(Stmt::Print(self.tuple(true, false, &[])?));
                    self.expect(&Tok::PrintEnd)?;
                }
                Tok::BlockBegin => {
                    self.next();
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.deeper(|p| p.statement(&mut body))?;
                    self.block_end()?;
                }
                Tok::End if ends.is_empty() => return Ok(body),
                Tok::End => {
                    let ends = ends.join("' or '");
                    return self.fail(format!("unexpected end of template, expected '{ends}'"));
                }
                _ => return self.fail("unexpected token"),
            }
        }
    }

    /// A body up to `ends`, after the end of its opening tag.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        self.skip_op(":");
        self.block_end()?;
        self.body(ends)
    }

    /// A body with its closing tag.
    pub(super) fn block(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        let body = self.statements(&[end])?;
        self.next();
        Ok(body)
    }

    /// A body that Jinja2 compiles on its own: a missing filter in it is an error wherever it is.
    pub(super) fn frame<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let outer = std::mem::take(&mut self.unknown);
        let outcome = f(self);
        self.unknown_for_sure.append(&mut self.unknown);
        self.unknown = outer;
        outcome
    }

    /// A body that Jinja2 compiles to a function, which a loop around it cannot be left from.
    pub(super) fn function<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        let outcome = self.frame(f);
        self.in_loop = in_loop;
        outcome
    }
}
