//! The grammar of statements.

use super::ast::{Expr, For, Kind, MacroDef, Stmt, Target};
use super::lex::Tok;
use super::parse::{Parsed, Parser};
use std::sync::Arc;

impl Parser {
    pub(super) fn statement(&mut self, body: &mut Vec<Stmt>) -> Parsed<()> {
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
}
