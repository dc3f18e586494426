//! Regular expressions: those of Rust's `regex` crate, which match the whole text, and patterns of schemas.
//!
//! A pattern is read as ECMA-262 means it: its classes are those of ASCII, `.` is no line separator, and it may match
//! anywhere unless it is anchored. What both dialects read differently is refused. Invariant: what is no regular language, or
//! looks around, is an error.

use regex_syntax::ast::{self, Ast, ClassPerlKind, ClassSet, ClassSetItem};
use regex_syntax::hir::{Class, Hir, HirKind, Look, translate::TranslatorBuilder};

use super::writer::{State, Writer, many, times};
use super::{ConstraintError, json};

/// How deep groups may be nested.
const NESTING: u32 = 64;

/// Where characters are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Text,
    JsonString,
}

/// A text that the whole expression matches.
///
/// # Errors
/// [`ConstraintError::Regex`], or one of the writer.
pub(super) fn regex(writer: &mut Writer, expression: &str, next: State) -> Result<State, ConstraintError> {
    let hir = translated(expression, &parsed(expression)?)?;
    write(writer, unanchored(&hir, true, true), Inside::Text, next)
}

/// The characters of a JSON string in which `pattern` matches.
///
/// # Errors
/// [`ConstraintError::Regex`], or one of the writer.
pub(super) fn pattern(writer: &mut Writer, pattern: &str, next: State) -> Result<State, ConstraintError> {
    let mut ast = parsed(pattern)?;
    to_ecma(&mut ast)?;
    let hir = translated(pattern, &ast)?;
    search(writer, &hir, next)
}

fn parsed(expression: &str) -> Result<Ast, ConstraintError> {
    let mut parser = ast::parse::ParserBuilder::new().nest_limit(NESTING).build();
    parser.parse(expression).map_err(|e| ConstraintError::Regex(e.kind().to_string()))
}

fn translated(expression: &str, ast: &Ast) -> Result<Hir, ConstraintError> {
    let hir = TranslatorBuilder::new().build().translate(expression, ast);
    hir.map_err(|e| ConstraintError::Regex(e.kind().to_string()))
}

/// The parts of a concatenation without the anchors at its two ends, which say what is so anyway.
fn unanchored(hir: &Hir, mut start: bool, mut end: bool) -> &[Hir] {
    let mut parts = match hir.kind() {
        HirKind::Concat(parts) => &parts[..],
        _ => std::slice::from_ref(hir),
    };
    while let ([first, rest @ ..], true) = (parts, start) {
        start = matches!(first.kind(), HirKind::Look(Look::Start));
        parts = if start { rest } else { parts };
    }
    while let ([rest @ .., last], true) = (parts, end) {
        end = matches!(last.kind(), HirKind::Look(Look::End));
        parts = if end { rest } else { parts };
    }
    parts
}

/// A string that has a match in it.
fn search(writer: &mut Writer, hir: &Hir, next: State) -> Result<State, ConstraintError> {
    match hir.kind() {
        HirKind::Capture(group) => return search(writer, &group.sub, next),
        HirKind::Alternation(ways) => {
            let ways: Result<_, _> = ways.iter().map(|way| search(writer, way, next)).collect();
            return writer.one_of(ways?);
        }
        _ => {}
    }
    let parts = match hir.kind() {
        HirKind::Concat(parts) => &parts[..],
        _ => std::slice::from_ref(hir),
    };
    let is = |part: Option<&Hir>, look: Look| part.is_some_and(|part| *part.kind() == HirKind::Look(look));
    let (starts, ends) = (is(parts.first(), Look::Start), is(parts.last(), Look::End));
    let next = if ends { next } else { many(writer, next, json::char)? };
    let found = write(writer, unanchored(hir, starts, ends), Inside::JsonString, next)?;
    if starts { Ok(found) } else { many(writer, found, json::char) }
}

/// These parts, one behind the other.
fn write(writer: &mut Writer, parts: &[Hir], inside: Inside, next: State) -> Result<State, ConstraintError> {
    parts.iter().rev().try_fold(next, |next, part| write_one(writer, part, inside, next))
}

fn write_one(writer: &mut Writer, hir: &Hir, inside: Inside, next: State) -> Result<State, ConstraintError> {
    match hir.kind() {
        HirKind::Empty => Ok(next),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|_| bytes())?;
            text.chars().rev().try_fold(next, |next, c| char_in(writer, &[(c, c)], inside, next))
        }
        HirKind::Class(Class::Unicode(class)) => {
            let ranges: Vec<_> = class.iter().map(|range| (range.start(), range.end())).collect();
            char_in(writer, &ranges, inside, next)
        }
        HirKind::Class(Class::Bytes(class)) => {
            let ranges = class.iter().map(|range| (char::from(range.start()), char::from(range.end())));
            let ranges: Vec<_> = ranges.collect();
            if ranges.iter().any(|(_, last)| !last.is_ascii()) {
                return Err(bytes());
            }
            char_in(writer, &ranges, inside, next)
        }
        HirKind::Look(_) => Err(ConstraintError::Regex(
            "it looks around: anchors may only stand at its two ends, and there are no word boundaries".into(),
        )),
        HirKind::Repetition(repeated) => {
            let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
            let bounds = (count(repeated.min), repeated.max.map(count));
            times(writer, bounds, next, |writer, next| write_one(writer, &repeated.sub, inside, next))
        }
        HirKind::Capture(group) => write_one(writer, &group.sub, inside, next),
        HirKind::Concat(parts) => write(writer, parts, inside, next),
        HirKind::Alternation(ways) => {
            let ways: Result<_, _> = ways.iter().map(|way| write_one(writer, way, inside, next)).collect();
            writer.one_of(ways?)
        }
    }
}

fn bytes() -> ConstraintError {
    ConstraintError::Regex("it matches bytes that are no text".into())
}

/// A character of these ranges, in a JSON string as it is written there.
fn char_in(
    writer: &mut Writer,
    ranges: &[(char, char)],
    inside: Inside,
    next: State,
) -> Result<State, ConstraintError> {
    if inside == Inside::Text {
        return writer.char_in(ranges, next);
    }
    let (mut ways, mut plain) = (Vec::new(), Vec::new());
    for &(first, last) in ranges {
        let within = json::PLAIN.iter().map(|&(a, b)| (first.max(a), last.min(b)));
        plain.extend(within.filter(|(first, last)| first <= last));
        for c in (first..=last).take_while(|c| *c <= '\\').filter(|c| *c < ' ' || *c == '"' || *c == '\\') {
            ways.push(match json::NAMED.iter().find(|named| named.0 == c) {
                Some(&(_, letter)) => writer.bytes(&[b'\\', letter], next)?,
                None => writer.bytes(format!("\\u{:04x}", u32::from(c)).as_bytes(), next)?,
            });
        }
    }
    ways.push(writer.char_in(&plain, next)?);
    writer.one_of(ways)
}

/// Makes classes of a pattern mean what they do in ECMA-262.
fn to_ecma(ast: &mut Ast) -> Result<(), ConstraintError> {
    match ast {
        Ast::Dot(_) => *ast = parsed(r"[^\n\r\u2028\u2029]")?,
        Ast::ClassPerl(class) => *ast = parsed(perl(&class.kind, class.negated))?,
        Ast::ClassBracketed(class) => match &mut class.kind {
            ClassSet::Item(item) => item_to_ecma(item)?,
            ClassSet::BinaryOp(_) => return Err(ambiguous("&&, -- or ~~ in brackets")),
        },
        Ast::Repetition(repeated) => to_ecma(&mut repeated.ast)?,
        Ast::Group(group) => to_ecma(&mut group.ast)?,
        Ast::Alternation(ways) => ways.asts.iter_mut().try_for_each(to_ecma)?,
        Ast::Concat(parts) => parts.asts.iter_mut().try_for_each(to_ecma)?,
        _ => {}
    }
    Ok(())
}

fn item_to_ecma(item: &mut ClassSetItem) -> Result<(), ConstraintError> {
    match item {
        ClassSetItem::Perl(class) => {
            if let Ast::ClassBracketed(class) = &parsed(perl(&class.kind, class.negated))? {
                *item = ClassSetItem::Bracketed(class.clone());
            }
        }
        ClassSetItem::Union(union) => union.items.iter_mut().try_for_each(item_to_ecma)?,
        ClassSetItem::Bracketed(_) | ClassSetItem::Ascii(_) => return Err(ambiguous("brackets within brackets")),
        _ => {}
    }
    Ok(())
}

fn ambiguous(what: &str) -> ConstraintError {
    ConstraintError::Regex(format!("{what} mean different things in different dialects"))
}

fn perl(kind: &ClassPerlKind, negated: bool) -> &'static str {
    match (kind, negated) {
        (ClassPerlKind::Digit, false) => "[0-9]",
        (ClassPerlKind::Digit, true) => "[^0-9]",
        (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
        (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        (ClassPerlKind::Space, false) => {
            r"[\t\n\x0B\x0C\r \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF]"
        }
        (ClassPerlKind::Space, true) => {
            r"[^\t\n\x0B\x0C\r \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF]"
        }
    }
}
