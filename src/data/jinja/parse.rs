//! Tokens to a syntax tree: Jinja2's grammar, with the statements that chat templates have.

use super::ast::{Args, BinaryOp, CompareOp, Expr, For, Kind, MacroDef, Program, Stmt, Target};
use super::lex::{SyntaxError, Tok, Token, tokens};
use super::names;
use std::sync::Arc;

/// Levels that statements and expressions may be nested. Jinja2 itself gives up earlier.
const MOST_NESTED: u32 = 90;

/// Operators, subscripts and filters that one expression may chain.
const MOST_CHAINED: u32 = 500;

type Parsed<T> = Result<T, SyntaxError>;

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

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nested: u32,
    /// `break` and `continue` have a loop.
    in_loop: bool,
    /// Loops around the current statement, also outside of a macro.
    loops: u32,
    /// Names of the blocks so far.
    blocks: Vec<Arc<str>>,
    marks_generation: bool,
    /// Names that expressions read so far.
    names: Vec<Arc<str>>,
    /// Filters and tests that do not exist. Jinja2 fails at once, but not inside a condition.
    unknown: Vec<SyntaxError>,
    unknown_for_sure: Vec<SyntaxError>,
}

fn describe(tok: &Tok) -> String {
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
    fn tok(&self) -> &Tok {
        &self.tokens[self.at].0
    }

    fn look(&self, ahead: usize) -> &Tok {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Tok {
        let tok = self.tok().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        tok
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err((message.into(), self.line()))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.tok(), Tok::Op(o) if *o == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.tok(), Tok::Name(n) if &**n == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
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

    fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) { Ok(()) } else { self.expected(op) }
    }

    fn expect_name(&mut self, name: &str) -> Parsed<()> {
        if self.skip_name(name) { Ok(()) } else { self.expected(name) }
    }

    fn name(&mut self) -> Parsed<Arc<str>> {
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
    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
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
    fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        self.skip_op(":");
        self.block_end()?;
        self.body(ends)
    }

    /// A body with its closing tag.
    fn block(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        let body = self.statements(&[end])?;
        self.next();
        Ok(body)
    }

    /// A body that Jinja2 compiles on its own: a missing filter in it is an error wherever it is.
    fn frame<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let outer = std::mem::take(&mut self.unknown);
        let outcome = f(self);
        self.unknown_for_sure.append(&mut self.unknown);
        self.unknown = outer;
        outcome
    }

    /// A body that Jinja2 compiles to a function, which a loop around it cannot be left from.
    fn function<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        let outcome = self.frame(f);
        self.in_loop = in_loop;
        outcome
    }

    fn statement(&mut self, body: &mut Vec<Stmt>) -> Parsed<()> {
        let Tok::Name(tag) = self.tok().clone() else { return self.fail("tag name expected") };
        let line = self.line();
        self.next();
        body.push(match &*tag {
            "set" => self.set()?,
            "for" => self.for_loop(line)?,
            "if" => self.condition()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.name()?;
                let def = self.function(|p| p.macro_def(Some(name), true, "endmacro"))?;
                Stmt::Macro(Arc::new(def))
            }
            "call" => self.call_block()?,
            "filter" => {
                let captured = Expr { line, kind: Kind::Captured };
                let filter = self.one_filter(captured)?;
                let filter = self.filters(filter)?;
                Stmt::FilterBlock(filter, self.frame(|p| p.block("endfilter"))?)
            }
            "print" => {
                let mut first = true;
                while !matches!(self.tok(), Tok::BlockEnd) {
                    if !first {
                        self.expect_op(",")?;
                    }
                    first = false;
                    let value = self.expr()?;
                    body.push(Stmt::Print(value));
                }
                return Ok(());
            }
            "generation" => {
                self.marks_generation = true;
                Stmt::Generation(self.function(|p| p.block("endgeneration"))?)
            }
            "block" => {
                let name = self.name()?;
                if self.blocks.contains(&name) {
                    return self.fail(format!("block '{name}' defined twice"));
                }
                self.blocks.push(name.clone());
                let scoped = self.skip_name("scoped");
                let body = self.function(|p| p.block("endblock"))?;
                self.skip_name(&name);
                Stmt::Block(body, scoped)
            }
            "break" | "continue" if !self.in_loop => {
                return Err((format!("'{tag}' outside of a loop"), line));
            }
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "include" | "extends" | "import" | "from" => {
                return Err((format!("'{tag}' needs other templates, and there are none"), line));
            }
            "autoescape" => match self.expr()?.kind {
                Kind::Bool(false) => {
                    Stmt::With(Vec::new(), self.frame(|p| p.block("endautoescape"))?)
                }
                _ => return Err(("'autoescape' is not supported".into(), line)),
            },
            _ => return Err((format!("Encountered unknown tag '{tag}'."), line)),
        });
        Ok(())
    }

    fn set(&mut self) -> Parsed<Stmt> {
        let target = self.target(true, &[])?;
        self.keep_loop(&target)?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, false, &[])?));
        }
        let captured = Expr { line: self.line(), kind: Kind::Captured };
        let filter = self.filters(captured)?;
        Ok(Stmt::SetBlock(target, filter, self.frame(|p| p.block("endset"))?))
    }

    fn for_loop(&mut self, line: u32) -> Parsed<Stmt> {
        self.loops += 1;
        let target = Arc::new(self.target(false, &["in"])?);
        self.keep_loop(&target)?;
        self.expect_name("in")?;
        let iter = self.tuple(false, false, &["recursive"])?;
        let test = match self.skip_name("if") {
            true => Some(Arc::new(self.frame(Parser::expr)?)),
            false => None,
        };
        let recursive = self.skip_name("recursive");
        let read = self.names.len();
        let in_loop = std::mem::replace(&mut self.in_loop, true);
        let body = self.frame(|p| p.statements(&["endfor", "else"]))?;
        self.in_loop = in_loop;
        let uses_loop = self.names[read..].iter().any(|n| &**n == "loop");
        let otherwise = match self.next() {
            Tok::Name(end) if &*end == "else" => self.frame(|p| p.block("endfor"))?,
            _ => Vec::new(),
        };
        let uses_loop = uses_loop || recursive;
        self.loops -= 1;
        Ok(Stmt::For(Arc::new(For {
            line,
            target,
            iter,
            test,
            recursive,
            uses_loop,
            body,
            otherwise,
        })))
    }

    /// Inside of a loop, `loop` cannot be assigned to.
    fn keep_loop(&self, target: &Target) -> Parsed<()> {
        match target {
            Target::Name(name) if self.loops > 0 && &**name == "loop" => {
                self.fail("Can't assign to special loop variable in for-loop target")
            }
            Target::Tuple(targets) => targets.iter().try_for_each(|t| self.keep_loop(t)),
            _ => Ok(()),
        }
    }

    fn condition(&mut self) -> Parsed<Stmt> {
        let unknown = self.unknown.len();
        let mut branches = Vec::new();
        let otherwise = loop {
            let test = self.tuple(false, false, &[])?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match self.next() {
                Tok::Name(tag) if &*tag == "elif" => {}
                Tok::Name(tag) if &*tag == "else" => break self.block("endif")?,
                _ => break Vec::new(),
            }
        };
        self.unknown.truncate(unknown);
        Ok(Stmt::If(branches, otherwise))
    }

    fn with(&mut self) -> Parsed<Stmt> {
        let mut values = Vec::new();
        while !matches!(self.tok(), Tok::BlockEnd) {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_op("=")?;
            values.push((target, self.expr()?));
        }
        Ok(Stmt::With(values, self.frame(|p| p.block("endwith"))?))
    }

    fn call_block(&mut self) -> Parsed<Stmt> {
        let has_signature = self.is_op("(");
        let line = self.line();
        let (params, defaults) = if has_signature { self.signature()? } else { Default::default() };
        let call = self.expr()?;
        let Kind::Call(callee, args) = call.kind else {
            return Err(("expected call".into(), line));
        };
        let mut def = self.function(|p| p.macro_def(None, false, "endcall"))?;
        (def.params, def.defaults) = (params, defaults);
        Ok(Stmt::CallBlock(*callee, args, Arc::new(def)))
    }

    fn macro_def(
        &mut self,
        name: Option<Arc<str>>,
        has_signature: bool,
        end: &str,
    ) -> Parsed<MacroDef> {
        let (params, defaults) = if has_signature { self.signature()? } else { Default::default() };
        let read = self.names.len();
        let body = self.block(end)?;
        let takes = |special: &str| {
            self.names[read..].iter().any(|n| &**n == special)
                && !params.iter().any(|p| &**p == special)
        };
        let [takes_kwargs, takes_varargs, takes_caller] =
            ["kwargs", "varargs", "caller"].map(takes);
        Ok(MacroDef { name, params, defaults, takes_kwargs, takes_varargs, takes_caller, body })
    }

    fn signature(&mut self) -> Parsed<(Vec<Arc<str>>, Vec<Expr>)> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            if params.contains(&name) {
                return self.fail(format!("duplicate argument '{name}' in a macro"));
            }
            params.push(name);
            if self.skip_op("=") {
                defaults.push(self.expr()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    /// The left side of an assignment: names, perhaps in tuples.
    fn target(&mut self, with_namespace: bool, ends: &[&str]) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.ends_tuple(ends) {
                break;
            }
            targets.push(self.one_target(with_namespace)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, targets.len()) {
            (false, 0) => self.fail("expected an expression"),
            (false, _) => Ok(targets.remove(0)),
            _ => Ok(Target::Tuple(targets)),
        }
    }

    fn one_target(&mut self, with_namespace: bool) -> Parsed<Target> {
        if self.skip_op("(") {
            let target = self.deeper(|p| p.target(with_namespace, &[]))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            return self.fail("can't assign to 'const'");
        }
        match with_namespace && self.skip_op(".") {
            true => Ok(Target::Namespace(name, self.name()?)),
            false => Ok(Target::Name(name)),
        }
    }

    fn expr(&mut self) -> Parsed<Expr> {
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

    fn chain(&self, count: &mut u32) -> Parsed<()> {
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

    fn primary(&mut self) -> Parsed<Expr> {
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
    fn items<T>(
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
    fn ends_tuple(&self, ends: &[&str]) -> bool {
        matches!(self.tok(), Tok::BlockEnd | Tok::PrintEnd)
            || self.is_op(")")
            || ends.iter().any(|end| self.is_name(end))
    }

    /// An expression, or several with commas as a tuple.
    fn tuple(&mut self, with_condition: bool, parens: bool, ends: &[&str]) -> Parsed<Expr> {
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

    fn postfix(&mut self, mut node: Expr) -> Parsed<Expr> {
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

    fn call(&mut self, node: Expr) -> Parsed<Expr> {
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
    fn filters(&mut self, mut node: Expr) -> Parsed<Expr> {
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

    fn one_filter(&mut self, node: Expr) -> Parsed<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        if !names::FILTERS.contains(&&*name) {
            self.unknown.push((format!("No filter named '{name}'."), line));
        }
        Ok(Expr { line, kind: Kind::Filter(Box::new(node), name, args) })
    }

    fn test(&mut self, node: Expr) -> Parsed<Expr> {
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
