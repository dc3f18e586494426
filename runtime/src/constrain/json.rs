//! JSON values without a schema, and the parts that schemas are made of.
//!
//! Invariant: what is written here is JSON that every parser reads as one value: no whitespace but single spaces behind commas
//! and colons, no half surrogates, and numbers that a double holds.

use super::ConstraintError;
use super::writer::{State, Writer, many, times};

/// Digits of a whole number; every such number is exact in 64 bits.
pub(super) const DIGITS: usize = 18;
/// Digits behind the point.
pub(super) const FRACTION: usize = 17;
/// How deep values without a schema are nested, objects and lists counted.
pub(super) const LEVELS: usize = 5;

/// Characters that stand for themselves in a string.
pub(super) const PLAIN: [(char, char); 3] = [(' ', '!'), ('#', '['), (']', char::MAX)];

/// Characters that a string names by a letter behind a backslash.
pub(super) const NAMED: [(char, u8); 7] =
    [('"', b'"'), ('\\', b'\\'), ('\u{8}', b'b'), ('\u{C}', b'f'), ('\n', b'n'), ('\r', b'r'), ('\t', b't')];

type Written = Result<State, ConstraintError>;

/// One character of a string.
pub(super) fn char(writer: &mut Writer, next: State) -> Written {
    let plain = writer.char_in(&PLAIN, next)?;
    let escaped = escape(writer, next)?;
    writer.one_of(vec![plain, escaped])
}

/// One character by a backslash and what follows it.
fn escape(writer: &mut Writer, next: State) -> Written {
    let named = writer.char_in(
        &[('"', '"'), ('/', '/'), ('\\', '\\'), ('b', 'b'), ('f', 'f'), ('n', 'n'), ('r', 'r'), ('t', 't')],
        next,
    )?;
    let third = hex(writer, next)?;
    let second = hex(writer, third)?;
    let first = hex(writer, second)?;
    // What begins with D8 to DF is half of a character.
    let low = writer.char_in(&[('0', '7')], second)?;
    let below = writer.char_in(&[('0', '9'), ('A', 'C'), ('E', 'F'), ('a', 'c'), ('e', 'f')], first)?;
    let around = writer.char_in(&[('D', 'D'), ('d', 'd')], low)?;
    let code = writer.one_of(vec![below, around])?;
    let coded = writer.bytes(b"u", code)?;
    let rest = writer.one_of(vec![named, coded])?;
    writer.bytes(b"\\", rest)
}

fn hex(writer: &mut Writer, next: State) -> Written {
    writer.char_in(&[('0', '9'), ('A', 'F'), ('a', 'f')], next)
}

/// A string of any length.
pub(super) fn string(writer: &mut Writer, next: State) -> Written {
    let close = writer.bytes(b"\"", next)?;
    let chars = many(writer, close, char)?;
    writer.bytes(b"\"", chars)
}

pub(super) fn digit(writer: &mut Writer, next: State) -> Written {
    writer.range(b'0', b'9', next)
}

/// A whole number of up to [`DIGITS`] digits.
pub(super) fn integer(writer: &mut Writer, next: State) -> Written {
    let more = times(writer, (0, Some(DIGITS - 1)), next, digit)?;
    let above = writer.range(b'1', b'9', more)?;
    let zero = writer.bytes(b"0", next)?;
    let below = writer.bytes(b"-", above)?;
    writer.one_of(vec![above, zero, below])
}

/// A number, maybe with a fraction and an exponent.
pub(super) fn number(writer: &mut Writer, next: State) -> Written {
    let power = times(writer, (1, Some(2)), next, digit)?;
    let sign = writer.char_in(&[('+', '+'), ('-', '-')], power)?;
    let signed = writer.one_of(vec![sign, power])?;
    let exponent = writer.char_in(&[('E', 'E'), ('e', 'e')], signed)?;
    let next = writer.one_of(vec![exponent, next])?;
    let digits = times(writer, (1, Some(FRACTION)), next, digit)?;
    let fraction = writer.bytes(b".", digits)?;
    let next = writer.one_of(vec![fraction, next])?;
    integer(writer, next)
}

/// What stands behind a value of a list or an object: a comma and another one.
pub(super) fn comma(writer: &mut Writer, next: State) -> Written {
    spaced(writer, b",", next)
}

/// A colon.
pub(super) fn colon(writer: &mut Writer, next: State) -> Written {
    spaced(writer, b":", next)
}

fn spaced(writer: &mut Writer, sign: &[u8], next: State) -> Written {
    let space = writer.bytes(b" ", next)?;
    let next = writer.one_of(vec![space, next])?;
    writer.bytes(sign, next)
}

/// An object of any names, whose values `value` writes.
pub(super) fn map<C: AsMut<Writer>>(
    context: &mut C,
    next: State,
    value: impl FnOnce(&mut C, State) -> Written,
) -> Written {
    let writer = context.as_mut();
    let close = writer.bytes(b"}", next)?;
    let behind = writer.ahead()?;
    let held = value(context, behind)?;
    let writer = context.as_mut();
    let colon = colon(writer, held)?;
    let pair = string(writer, colon)?;
    let another = comma(writer, pair)?;
    let more = writer.one_of(vec![another, close])?;
    writer.lead(behind, more)?;
    let inside = writer.one_of(vec![pair, close])?;
    writer.bytes(b"{", inside)
}

/// A list of any length, whose values `value` writes.
pub(super) fn list<C: AsMut<Writer>>(
    context: &mut C,
    next: State,
    value: impl FnOnce(&mut C, State) -> Written,
) -> Written {
    let writer = context.as_mut();
    let close = writer.bytes(b"]", next)?;
    let behind = writer.ahead()?;
    let item = value(context, behind)?;
    let writer = context.as_mut();
    let another = comma(writer, item)?;
    let more = writer.one_of(vec![another, close])?;
    writer.lead(behind, more)?;
    let inside = writer.one_of(vec![item, close])?;
    writer.bytes(b"[", inside)
}

/// Any value, in which objects and lists are nested `levels` deep at most.
pub(super) fn any(writer: &mut Writer, levels: usize, next: State) -> Written {
    let mut ways = vec![string(writer, next)?, number(writer, next)?];
    for word in ["true", "false", "null"] {
        ways.push(writer.bytes(word.as_bytes(), next)?);
    }
    if let Some(inside) = levels.checked_sub(1) {
        ways.push(map(writer, next, |writer, next| any(writer, inside, next))?);
        ways.push(list(writer, next, |writer, next| any(writer, inside, next))?);
    }
    writer.one_of(ways)
}
