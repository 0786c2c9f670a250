//! The grammar of expressions: operators by their precedence, literals.

use super::ast::{BinaryOp, CompareOp, Expr, Kind};
use super::lex::Tok;
use super::parse::{MOST_CHAINED, Parsed, Parser, describe};
use std::sync::Arc;

impl Parser {
    pub(super) fn expr(&mut self) -> Parsed<Expr> {
        self.deeper(Parser::conditional)
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let (line, unknown) = (self.line(), self.unknown.len());
        let mut left = self.or()?;
        let mut chained = 0;
        while self.skip_name("if") {
            self.chain(&mut chained)?;
            let test = self.or()?;
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.deeper(Parser::conditional)?)),
                false => None,
            };
            self.unknown.truncate(unknown);
            left = Expr { line, kind: Kind::Cond(Box::new(test), Box::new(left), otherwise) };
        }
        Ok(left)
    }

    pub(super) fn chain(&self, count: &mut u32) -> Parsed<()> {
        *count += 1;
        if *count > MOST_CHAINED { self.fail("the expression is too long") } else { Ok(()) }
    }

    fn or(&mut self) -> Parsed<Expr> {
        self.joined("or", Parser::and, Kind::Or)
    }

    fn and(&mut self) -> Parsed<Expr> {
        self.joined("and", Parser::not, Kind::And)
    }

    /// A chain of operands with `word` between them.
    fn joined(
        &mut self,
        word: &str,
        operand: fn(&mut Self) -> Parsed<Expr>,
        pair: fn(Box<Expr>, Box<Expr>) -> Kind,
    ) -> Parsed<Expr> {
        let (line, mut chained) = (self.line(), 0);
        let mut left = operand(self)?;
        while self.skip_name(word) {
            self.chain(&mut chained)?;
            let right = operand(self)?;
            left = Expr { line, kind: pair(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        let line = self.line();
        match self.skip_name("not") {
            true => {
                let value = self.deeper(Parser::not)?;
                Ok(Expr { line, kind: Kind::Not(Box::new(value)) })
            }
            false => self.compare(),
        }
    }

    fn compare(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.tok() {
                Tok::Op("==") => CompareOp::Eq,
                Tok::Op("!=") => CompareOp::Ne,
                Tok::Op("<") => CompareOp::Lt,
                Tok::Op("<=") => CompareOp::Le,
                Tok::Op(">") => CompareOp::Gt,
                Tok::Op(">=") => CompareOp::Ge,
                Tok::Name(n) if &**n == "in" => CompareOp::In,
                Tok::Name(n) if &**n == "not" => match self.look(1) {
                    Tok::Name(n) if &**n == "in" => {
                        self.next();
                        CompareOp::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.next();
            rest.push((op, self.sum()?));
        }
        match rest.is_empty() {
            true => Ok(left),
            false => Ok(Expr { line, kind: Kind::Compare(Box::new(left), rest) }),
        }
    }

    /// A chain of binary operators of one precedence.
    fn binary(
        &mut self,
        ops: &[(&str, BinaryOp)],
        operand: fn(&mut Self) -> Parsed<Expr>,
    ) -> Parsed<Expr> {
        let (line, mut chained) = (self.line(), 0);
        let mut left = operand(self)?;
        while let Some((_, op)) = ops.iter().find(|(op, _)| self.is_op(op)) {
            self.next();
            self.chain(&mut chained)?;
            let right = operand(self)?;
            left = Expr { line, kind: Kind::Binary(*op, Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.binary(&[("+", BinaryOp::Add), ("-", BinaryOp::Sub)], Parser::concat)
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Ok(Expr { line, kind: Kind::Concat(parts) }),
        }
    }

    fn product(&mut self) -> Parsed<Expr> {
        let ops = [
            ("*", BinaryOp::Mul),
            ("/", BinaryOp::Div),
            ("//", BinaryOp::FloorDiv),
            ("%", BinaryOp::Mod),
        ];
        self.binary(&ops, Parser::power)
    }

    fn power(&mut self) -> Parsed<Expr> {
        self.binary(&[("**", BinaryOp::Pow)], |p| p.unary(true))
    }

    fn unary(&mut self, with_filter: bool) -> Parsed<Expr> {
        let line = self.line();
        let node = if self.skip_op("-") {
            Expr { line, kind: Kind::Neg(Box::new(self.deeper(|p| p.unary(false))?)) }
        } else if self.skip_op("+") {
            Expr { line, kind: Kind::Pos(Box::new(self.deeper(|p| p.unary(false))?)) }
        } else {
            self.primary()?
        };
        let mut node = self.postfix(node)?;
        if !with_filter {
            return Ok(node);
        }
        let mut chained = 0;
        loop {
            self.chain(&mut chained)?;
            node = match self.tok() {
                Tok::Op("|") => {
                    self.next();
                    self.one_filter(node)?
                }
                Tok::Name(n) if &**n == "is" => self.test(node)?,
                Tok::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    pub(super) fn primary(&mut self) -> Parsed<Expr> {
        let line = self.line();
        let kind = match self.tok().clone() {
            Tok::Name(name) => {
                self.next();
                match &*name {
                    "true" | "True" => Kind::Bool(true),
                    "false" | "False" => Kind::Bool(false),
                    "none" | "None" => Kind::None,
                    _ => {
                        self.names.push(name.clone());
                        Kind::Name(name)
                    }
                }
            }
            Tok::Str(mut text) => {
                self.next();
                while let Tok::Str(more) = self.tok() {
                    text.push_str(more);
                    self.next();
                }
                Kind::Str(Arc::from(text))
            }
            Tok::Int(number) => {
                self.next();
                Kind::Int(number)
            }
            Tok::Float(number) => {
                self.next();
                Kind::Float(number)
            }
            Tok::Op("(") => {
                self.next();
                let inner = self.tuple(true, true, &[])?;
                self.expect_op(")")?;
                return Ok(inner);
            }
            Tok::Op("[") => {
                self.next();
                Kind::List(self.items("]", Parser::expr)?)
            }
            Tok::Op("{") => {
                self.next();
                Kind::Dict(self.items("}", |p| {
                    let key = p.expr()?;
                    p.expect_op(":")?;
                    Ok((key, p.expr()?))
                })?)
            }
            tok => return self.fail(format!("unexpected '{}'", describe(&tok))),
        };
        Ok(Expr { line, kind })
    }

    /// Items up to `close` with commas between them, perhaps one behind the last.
    pub(super) fn items<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_op(close)?;
        Ok(items)
    }

    /// True where a list of names or expressions ends: with its tag, at `)` or a word of `ends`.
    pub(super) fn ends_tuple(&self, ends: &[&str]) -> bool {
        matches!(self.tok(), Tok::BlockEnd | Tok::PrintEnd)
            || self.is_op(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    /// An expression, or several with commas as a tuple.
    pub(super) fn tuple(
        &mut self,
        with_condition: bool,
        parens: bool,
        ends: &[&str],
    ) -> Parsed<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.ends_tuple(ends) {
                break;
            }
            items.push(match with_condition {
                true => self.expr()?,
                false => self.deeper(Parser::or)?,
            });
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(only) = items.pop() {
                return Ok(only);
            }
            if !parens {
                let got = describe(self.tok());
                return self.fail(format!("Expected an expression, got '{got}'"));
            }
        }
        Ok(Expr { line, kind: Kind::Tuple(items) })
    }
}
