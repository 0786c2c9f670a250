//! The grammar of what follows an operand: subscripts, calls, filters, tests.

use super::ast::{Args, Expr, Kind};
use super::lex::Tok;
use super::names;
use super::parse::{Parsed, Parser};
use std::sync::Arc;

impl Parser {
    pub(super) fn postfix(&mut self, mut node: Expr) -> Parsed<Expr> {
        let mut chained = 0;
        loop {
            self.chain(&mut chained)?;
            node = match self.tok() {
                Tok::Op(".") | Tok::Op("[") => self.subscript(node)?,
                Tok::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    fn subscript(&mut self, node: Expr) -> Parsed<Expr> {
        let line = self.line();
        let node = Box::new(node);
        if self.skip_op(".") {
            return match self.next() {
                Tok::Name(name) => Ok(Expr { line, kind: Kind::Attr(node, name) }),
                Tok::Int(number) => {
                    let index = Expr { line, kind: Kind::Int(number) };
                    Ok(Expr { line, kind: Kind::Item(node, Box::new(index)) })
                }
                _ => Err(("expected name or number".into(), line)),
            };
        }
        self.expect_op("[")?;
        let first = match self.is_op(":") {
            true => None,
            false => Some(Box::new(self.expr()?)),
        };
        if self.skip_op(":") {
            let mut parts = [first, None, None];
            for part in &mut parts[1..] {
                if !self.is_op(":") && !self.is_op("]") {
                    *part = Some(Box::new(self.expr()?));
                }
                if !self.skip_op(":") {
                    break;
                }
            }
            self.expect_op("]")?;
            return Ok(Expr { line, kind: Kind::Slice(node, parts) });
        }
        let Some(first) = first else { return self.fail("expected a subscript") };
        let mut items = vec![*first];
        while self.skip_op(",") {
            items.push(self.expr()?);
        }
        self.expect_op("]")?;
        let index = match items.len() {
            1 => items.remove(0),
            _ => Expr { line, kind: Kind::Tuple(items) },
        };
        Ok(Expr { line, kind: Kind::Item(node, Box::new(index)) })
    }

    pub(super) fn call(&mut self, node: Expr) -> Parsed<Expr> {
        let line = self.line();
        let args = self.args()?;
        Ok(Expr { line, kind: Kind::Call(Box::new(node), args) })
    }

    fn args(&mut self) -> Parsed<Args> {
        let line = self.line();
        let mut args = Args::default();
        self.expect_op("(")?;
        self.items(")", |p| p.arg(line, &mut args))?;
        Ok(args)
    }

    /// One argument of a call that begins in `line`.
    fn arg(&mut self, line: u32, args: &mut Args) -> Parsed<()> {
        let invalid = || Err(("invalid syntax for function call expression".into(), line));
        if self.skip_op("*") {
            if args.rest.is_some() || args.rest_named.is_some() {
                return invalid();
            }
            args.rest = Some(Box::new(self.expr()?));
        } else if self.skip_op("**") {
            if args.rest_named.is_some() {
                return invalid();
            }
            args.rest_named = Some(Box::new(self.expr()?));
        } else if matches!((self.tok(), self.look(1)), (Tok::Name(_), Tok::Op("="))) {
            if args.rest_named.is_some() {
                return invalid();
            }
            let name = self.name()?;
            self.next();
            if args.named.iter().any(|(n, _)| *n == name) {
                return Err((format!("keyword argument repeated: {name}"), line));
            }
            args.named.push((name, self.expr()?));
        } else {
            let late = args.rest.is_some() || args.rest_named.is_some();
            if late || !args.named.is_empty() {
                return invalid();
            }
            args.pos.push(self.expr()?);
        }
        Ok(())
    }

    /// Further filters behind `node`.
    pub(super) fn filters(&mut self, mut node: Expr) -> Parsed<Expr> {
        let mut chained = 0;
        while self.skip_op("|") {
            self.chain(&mut chained)?;
            node = self.one_filter(node)?;
        }
        Ok(node)
    }

    fn dotted_name(&mut self) -> Parsed<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(Arc::from(name))
    }

    pub(super) fn one_filter(&mut self, node: Expr) -> Parsed<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        if !names::FILTERS.contains(&&*name) {
            self.unknown.push((format!("No filter named '{name}'."), line));
        }
        Ok(Expr { line, kind: Kind::Filter(Box::new(node), name, args) })
    }

    pub(super) fn test(&mut self, node: Expr) -> Parsed<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let has_operand = match self.tok() {
            Tok::Name(n) => !["else", "or", "and"].contains(&&**n),
            Tok::Str(_) | Tok::Int(_) | Tok::Float(_) | Tok::Op("[") | Tok::Op("{") => true,
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if has_operand {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let operand = self.deeper(Parser::primary)?;
            Args { pos: vec![self.postfix(operand)?], ..Args::default() }
        } else {
            Args::default()
        };
        if !names::TESTS.contains(&&*name) {
            self.unknown.push((format!("No test named '{name}'."), line));
        }
        let test = Expr { line, kind: Kind::Test(Box::new(node), name, args) };
        Ok(match negated {
            true => Expr { line, kind: Kind::Not(Box::new(test)) },
            false => test,
        })
    }
}
