//! A template's source, written again so that everything in it that costs memory or time passes through a meter.
//!
//! The engine bounds instructions, and one instruction may double a string. So the parsed template is printed as source again,
//! with each operator, call, filter and literal that can make or walk something large wrapped in the filters of
//! [`budget`](super::budget): `a ~ b` becomes `(a|_cat(b))`, `x|upper` becomes `((x|_pay)|upper|_pay)`. Filters cannot be
//! redefined by a template. Python's `%` on strings, which the engine lacks, is one of them.
//!
//! Invariant: what is printed means the same, statement for statement, on the same lines; literal text becomes string
//! constants, so that no whitespace rule applies to it twice. Statements that would load other templates are errors.

use minijinja::machinery::ast::{BinOpKind, Call, CallArg, CompareOpKind, Expr, Macro, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use super::source;

/// Longest line, in bytes, and most lines of a source: the engine counts both in 16 bits.
const MAX_LINE: usize = 60_000;

/// Bytes after which a line of the printed source is broken.
const LONG: usize = 20_000;

/// Nesting of statements and expressions together; the parser has a bound of its own on expressions.
const MAX_DEPTH: usize = 400;

/// The metered form of a template.
///
/// # Errors
/// Source that is no valid Jinja, or that asks for other templates.
pub(super) fn metered(source: &str, name: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let source = source::generation_tags(&source::line_feeds(source));
    if source.lines().count() > MAX_LINE || source.lines().any(|line| line.len() > MAX_LINE) {
        return Err(Error::new(ErrorKind::SyntaxError, format!("has more than {MAX_LINE} lines, or bytes in one")));
    }
    let mut printer = Printer { out: String::with_capacity(source.len() * 2), line: 1, line_start: 0, depth: 0 };
    let Stmt::Template(template) = parse(&source, name, syntax)? else {
        return Err(Error::new(ErrorKind::SyntaxError, "is not a template"));
    };
    printer.body(&template.children)?;
    Ok(printer.out)
}

struct Printer {
    out: String,
    /// Line that the next character of `out` is on.
    line: usize,
    /// Where that line begins in `out`.
    line_start: usize,
    depth: usize,
}

impl Printer {
    /// Moves to the line that something had, so that errors name it.
    fn line_of(&mut self, span: Span) {
        while self.line < usize::from(span.start_line) || self.out.len() - self.line_start > LONG {
            self.new_line();
        }
    }

    fn new_line(&mut self) {
        self.out.push('\n');
        self.line += 1;
        self.line_start = self.out.len();
    }

    fn nested<T>(&mut self, print: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new(ErrorKind::SyntaxError, "is nested too deeply"));
        }
        self.depth += 1;
        let done = print(self);
        self.depth -= 1;
        done
    }

    fn body(&mut self, body: &[Stmt<'_>]) -> Result<(), Error> {
        body.iter().try_for_each(|statement| self.nested(|p| p.statement(statement)))
    }

    /// `{% text`, with the tag's own line.
    fn open(&mut self, span: Span, text: &str) {
        self.out.push_str("{%");
        self.line_of(span);
        self.out.push_str(text);
        self.out.push(' ');
    }

    fn close(&mut self, text: &str) {
        self.out.push_str("{% ");
        self.out.push_str(text);
        self.out.push_str("%}");
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<(), Error> {
        match statement {
            Stmt::Template(s) => self.body(&s.children)?,
            Stmt::EmitRaw(s) => {
                self.out.push_str("{{");
                self.line_of(s.span());
                self.string(s.raw);
                self.out.push_str("}}");
            }
            Stmt::EmitExpr(s) => {
                self.out.push_str("{{");
                self.line_of(s.span());
                self.expr(&s.expr)?;
                self.out.push_str("}}");
            }
            Stmt::ForLoop(s) => {
                self.open(s.span(), "for");
                self.target(&s.target)?;
                self.out.push_str(" in ");
                // The engine takes none for an empty list.
                self.wrapped(&s.iter, "|_iter)")?;
                if let Some(filter) = &s.filter_expr {
                    self.out.push_str(" if ");
                    self.expr(filter)?;
                }
                self.out.push_str(if s.recursive { " recursive%}" } else { "%}" });
                self.body(&s.body)?;
                if !s.else_body.is_empty() {
                    self.close("else");
                    self.body(&s.else_body)?;
                }
                self.close("endfor");
            }
            Stmt::IfCond(s) => {
                self.open(s.span(), "if");
                self.expr(&s.expr)?;
                self.out.push_str("%}");
                self.body(&s.true_body)?;
                if !s.false_body.is_empty() {
                    self.close("else");
                    self.body(&s.false_body)?;
                }
                self.close("endif");
            }
            Stmt::WithBlock(s) => {
                self.open(s.span(), "with");
                for (i, (target, value)) in s.assignments.iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ", " });
                    self.target(target)?;
                    self.out.push_str(" = ");
                    self.expr(value)?;
                }
                self.out.push_str("%}");
                self.body(&s.body)?;
                self.close("endwith");
            }
            Stmt::Set(s) => {
                self.open(s.span(), "set");
                self.target(&s.target)?;
                self.out.push_str(" = ");
                // What a namespace holds must not hold a namespace, or a value could contain itself.
                let attribute = matches!(s.target, Expr::GetAttr(_));
                self.wrapped(&s.expr, if attribute { "|_plain)" } else { ")" })?;
                self.out.push_str("%}");
            }
            Stmt::SetBlock(s) => {
                self.open(s.span(), "set");
                self.target(&s.target)?;
                if let Some(filter) = &s.filter {
                    self.out.push_str(" | ");
                    self.filter_chain(filter)?;
                }
                self.out.push_str("%}");
                self.body(&s.body)?;
                self.close("endset");
            }
            Stmt::AutoEscape(s) => {
                self.open(s.span(), "autoescape");
                self.expr(&s.enabled)?;
                self.out.push_str("%}");
                self.body(&s.body)?;
                self.close("endautoescape");
            }
            Stmt::FilterBlock(s) => {
                self.open(s.span(), "filter");
                self.filter_chain(&s.filter)?;
                self.out.push_str("%}");
                self.body(&s.body)?;
                self.close("endfilter");
            }
            Stmt::Block(s) => {
                self.open(s.span(), "block");
                self.out.push_str(s.name);
                self.out.push_str("%}");
                self.body(&s.body)?;
                self.close("endblock");
            }
            Stmt::Macro(s) => self.macro_block(s, s.span(), "macro", s.name)?,
            Stmt::CallBlock(s) => {
                self.open(s.span(), "call");
                self.parameters(&s.macro_decl)?;
                self.out.push(' ');
                self.call(&s.call)?;
                self.out.push_str("%}");
                self.body(&s.macro_decl.body)?;
                self.close("endcall");
            }
            Stmt::Continue(s) => {
                self.open(s.span(), "continue");
                self.out.push_str("%}");
            }
            Stmt::Break(s) => {
                self.open(s.span(), "break");
                self.out.push_str("%}");
            }
            Stmt::Do(s) => {
                self.open(s.span(), "do");
                self.call(&s.call)?;
                self.out.push_str("%}");
            }
            Stmt::Import(s) => return Err(alone(s.span())),
            Stmt::FromImport(s) => return Err(alone(s.span())),
            Stmt::Extends(s) => return Err(alone(s.span())),
            Stmt::Include(s) => return Err(alone(s.span())),
        }
        Ok(())
    }

    fn macro_block(&mut self, decl: &Macro<'_>, span: Span, word: &str, name: &str) -> Result<(), Error> {
        self.open(span, word);
        self.out.push_str(name);
        self.parameters(decl)?;
        self.out.push_str("%}");
        self.body(&decl.body)?;
        self.close("endmacro");
        Ok(())
    }

    fn parameters(&mut self, decl: &Macro<'_>) -> Result<(), Error> {
        self.out.push('(');
        let plain = decl.args.len().saturating_sub(decl.defaults.len());
        for (i, arg) in decl.args.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            self.target(arg)?;
            if let Some(default) = i.checked_sub(plain).and_then(|d| decl.defaults.get(d)) {
                self.out.push('=');
                self.expr(default)?;
            }
        }
        self.out.push(')');
        Ok(())
    }

    /// What an assignment, a loop or a macro names.
    fn target(&mut self, target: &Expr<'_>) -> Result<(), Error> {
        match target {
            Expr::Var(var) => self.out.push_str(var.id),
            Expr::GetAttr(attr) => {
                self.target(&attr.expr)?;
                self.out.push('.');
                self.out.push_str(attr.name);
            }
            Expr::List(list) => return self.targets(&list.items),
            Expr::Tuple(tuple) => return self.targets(&tuple.items),
            other => return Err(unknown(other.description())),
        }
        Ok(())
    }

    fn targets(&mut self, items: &[Expr<'_>]) -> Result<(), Error> {
        self.out.push('(');
        for item in items {
            self.nested(|p| p.target(item))?;
            self.out.push(',');
        }
        self.out.push(')');
        Ok(())
    }

    /// A filter without its first operand, which a block supplies.
    fn filter_chain(&mut self, filter: &Expr<'_>) -> Result<(), Error> {
        let Expr::Filter(filter) = filter else { return Err(unknown(filter.description())) };
        if let Some(inner) = &filter.expr {
            self.nested(|p| p.filter_chain(inner))?;
            self.out.push('|');
        }
        self.out.push_str(filter.name);
        self.args(&filter.args)
    }

    /// `(expr` and `end`.
    fn wrapped(&mut self, expr: &Expr<'_>, end: &str) -> Result<(), Error> {
        self.out.push('(');
        self.expr(expr)?;
        self.out.push_str(end);
        Ok(())
    }

    /// An operand that will be walked or copied: its size is paid for first.
    fn paid(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        match expr {
            Expr::Const(_) => self.expr(expr),
            _ => self.wrapped(expr, "|_pay)"),
        }
    }

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        self.nested(|p| p.expr_inside(expr))
    }

    fn expr_inside(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        self.line_of(expr.span());
        match expr {
            Expr::Var(e) => self.out.push_str(e.id),
            Expr::Const(e) => self.constant(&e.value)?,
            Expr::Slice(e) => {
                self.out.push('(');
                self.paid(&e.expr)?;
                self.out.push('[');
                for (i, part) in [&e.start, &e.stop, &e.step].into_iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ":" });
                    part.as_ref().map_or(Ok(()), |part| self.expr(part))?;
                }
                self.out.push_str("]|_pay)");
            }
            Expr::UnaryOp(e) => {
                self.out.push_str(match e.op {
                    UnaryOpKind::Not => "(not ",
                    UnaryOpKind::Neg => "(-",
                });
                self.expr(&e.expr)?;
                self.out.push(')');
            }
            Expr::BinOp(e) => self.binary(e.op, &e.left, &e.right)?,
            Expr::Compare(e) => {
                self.out.push('(');
                self.paid(&e.expr)?;
                for op in &e.ops {
                    self.out.push_str(match op.op {
                        CompareOpKind::Eq => " == ",
                        CompareOpKind::Ne => " != ",
                        CompareOpKind::Lt => " < ",
                        CompareOpKind::Lte => " <= ",
                        CompareOpKind::Gt => " > ",
                        CompareOpKind::Gte => " >= ",
                        CompareOpKind::In => " in ",
                        CompareOpKind::NotIn => " not in ",
                    });
                    self.paid(&op.expr)?;
                }
                self.out.push(')');
            }
            Expr::IfExpr(e) => {
                self.out.push('(');
                self.expr(&e.true_expr)?;
                self.out.push_str(" if ");
                self.expr(&e.test_expr)?;
                if let Some(otherwise) = &e.false_expr {
                    self.out.push_str(" else ");
                    self.expr(otherwise)?;
                }
                self.out.push(')');
            }
            Expr::Filter(e) => {
                let base = e.expr.as_ref().ok_or_else(|| unknown("filter without a value"))?;
                self.out.push('(');
                self.paid(base)?;
                self.out.push('|');
                self.out.push_str(e.name);
                self.args(&e.args)?;
                self.out.push_str("|_pay)");
            }
            Expr::Test(e) => {
                self.out.push('(');
                // Only a comparison looks at more than the kind of a value.
                if e.args.is_empty() {
                    self.wrapped(&e.expr, ")")?
                } else {
                    self.paid(&e.expr)?
                }
                self.out.push_str(" is ");
                self.out.push_str(e.name);
                if !e.args.is_empty() {
                    self.args(&e.args)?;
                }
                self.out.push(')');
            }
            Expr::GetAttr(e) => {
                self.expr(&e.expr)?;
                self.out.push('.');
                self.out.push_str(e.name);
            }
            Expr::GetItem(e) => {
                self.expr(&e.expr)?;
                self.out.push('[');
                self.expr(&e.subscript_expr)?;
                self.out.push(']');
            }
            Expr::Call(e) => {
                self.out.push('(');
                self.call(e)?;
                self.out.push_str("|_pay)");
            }
            Expr::List(e) => {
                self.items('[', &e.items)?;
                self.out.push_str("]|_pay)");
            }
            Expr::Tuple(e) => {
                self.items('(', &e.items)?;
                self.out.push_str(if e.items.is_empty() { ")|_pay)" } else { ",)|_pay)" });
            }
            Expr::Map(e) => {
                self.out.push_str("({");
                for (i, (key, value)) in e.keys.iter().zip(&e.values).enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ", " });
                    self.expr(key)?;
                    self.out.push_str(": ");
                    self.expr(value)?;
                }
                self.out.push_str("}|_pay)");
            }
        }
        Ok(())
    }

    fn binary(&mut self, op: BinOpKind, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), Error> {
        let (text, paid) = match op {
            BinOpKind::Add => return self.metered_operator("_add", left, right),
            BinOpKind::Mul => return self.metered_operator("_mul", left, right),
            BinOpKind::Rem => return self.metered_operator("_rem", left, right),
            BinOpKind::Concat => return self.metered_operator("_cat", left, right),
            BinOpKind::Eq => (" == ", true),
            BinOpKind::Ne => (" != ", true),
            BinOpKind::Lt => (" < ", true),
            BinOpKind::Lte => (" <= ", true),
            BinOpKind::Gt => (" > ", true),
            BinOpKind::Gte => (" >= ", true),
            BinOpKind::In => (" in ", true),
            BinOpKind::ScAnd => (" and ", false),
            BinOpKind::ScOr => (" or ", false),
            BinOpKind::Sub => (" - ", false),
            BinOpKind::Div => (" / ", false),
            BinOpKind::FloorDiv => (" // ", false),
            BinOpKind::Pow => (" ** ", false),
        };
        self.out.push('(');
        if paid {
            self.paid(left)?
        } else {
            self.expr(left)?
        }
        self.out.push_str(text);
        if paid {
            self.paid(right)?
        } else {
            self.expr(right)?
        }
        self.out.push(')');
        Ok(())
    }

    fn metered_operator(&mut self, filter: &str, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), Error> {
        self.wrapped(left, "|")?;
        self.out.push_str(filter);
        self.wrapped(right, "))")
    }

    /// A call, its receiver paid for unless it is one of the engine's own.
    fn call(&mut self, call: &Call<'_>) -> Result<(), Error> {
        match &call.expr {
            Expr::GetAttr(method) => {
                match &method.expr {
                    Expr::Var(var) if matches!(var.id, "loop" | "self" | "super") => self.out.push_str(var.id),
                    receiver => self.paid(receiver)?,
                }
                self.out.push('.');
                self.out.push_str(method.name);
            }
            callee => self.expr(callee)?,
        }
        self.args(&call.args)
    }

    fn args(&mut self, args: &[CallArg<'_>]) -> Result<(), Error> {
        self.out.push('(');
        for (i, arg) in args.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            let value = match arg {
                CallArg::Pos(value) => value,
                CallArg::Kwarg(name, value) => {
                    self.out.push_str(name);
                    self.out.push('=');
                    value
                }
                CallArg::PosSplat(value) => {
                    self.out.push('*');
                    value
                }
                CallArg::KwargSplat(value) => {
                    self.out.push_str("**");
                    value
                }
            };
            self.paid(value)?;
        }
        self.out.push(')');
        Ok(())
    }

    /// `(`, the bracket and the items; the caller closes both.
    fn items(&mut self, bracket: char, items: &[Expr<'_>]) -> Result<(), Error> {
        self.out.push('(');
        self.out.push(bracket);
        for (i, item) in items.iter().enumerate() {
            self.out.push_str(if i == 0 { "" } else { ", " });
            self.expr(item)?;
        }
        Ok(())
    }

    fn constant(&mut self, value: &minijinja::Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.string(text);
            return Ok(());
        }
        let text = match value.kind() {
            minijinja::value::ValueKind::Bool => if value.is_true() { "true" } else { "false" }.to_owned(),
            minijinja::value::ValueKind::None => "none".to_owned(),
            minijinja::value::ValueKind::Number if value.is_integer() => value.to_string(),
            minijinja::value::ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                if !number.is_finite() {
                    return Err(unknown("number without an end"));
                }
                format!("{number:?}")
            }
            _ => return Err(unknown("constant")),
        };
        self.out.push_str(&text);
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push_str("(\"");
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.new_line(),
                '\r' => self.out.push_str("\\r"),
                c => self.out.push(c),
            }
            if self.out.len() - self.line_start > LONG {
                self.out.push_str("\"~");
                self.new_line();
                self.out.push('"');
            }
        }
        self.out.push_str("\")");
    }
}

fn alone(span: Span) -> Error {
    let what = format!("another template is asked for, and there is none (line {})", span.start_line);
    Error::new(ErrorKind::SyntaxError, what)
}

fn unknown(what: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("a {what} cannot stand here"))
}
