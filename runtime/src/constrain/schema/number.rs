//! Numbers between bounds, digit by digit.
//!
//! Invariant: bounds are decimal numbers as the schema writes them, never rounded to binary ones, so what is written is within
//! them whoever compares it.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::Number;

use super::super::json::DIGITS;
use super::super::writer::{State, Writer};
use super::Written;

/// Digits of a number with a fraction: different ones are different doubles, in the same order.
const EXACT: usize = 15;

/// Most digits of a bound, before or behind its point: a double has no more.
const MAX_DIGITS: usize = 400;

/// A decimal number that is not below zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decimal {
    /// Digits before the point, without zeros in front.
    whole: Vec<u8>,
    /// Digits behind it, without zeros at the end.
    fraction: Vec<u8>,
}

impl Decimal {
    /// A number as JSON writes it: whether it is below zero, and how far from it.
    fn parse(text: &str) -> Option<(bool, Self)> {
        let (below, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b.wrapping_sub(b'0')).collect();
        if digits.len() > MAX_DIGITS || digits.iter().any(|digit| *digit > 9) {
            return None;
        }
        let mut point = i64::try_from(whole.len()).ok()?.checked_add(exponent)?;
        if point.unsigned_abs() > MAX_DIGITS as u64 {
            return None;
        }
        while point < 0 {
            digits.insert(0, 0);
            point += 1;
        }
        let point = usize::try_from(point).ok()?;
        if digits.len() < point {
            digits.resize(point, 0);
        }
        let fraction = digits.split_off(point);
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        let kept = fraction.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        Some((below, Self { whole: digits.split_off(zeros), fraction: fraction[..kept].to_vec() }))
    }

    fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.fraction.is_empty()
    }

    fn compare(&self, other: &Self) -> Ordering {
        let lengths = self.whole.len().cmp(&other.whole.len());
        lengths.then_with(|| self.whole.cmp(&other.whole)).then_with(|| self.fraction.cmp(&other.fraction))
    }
}

/// One end of a range of numbers that are not below zero.
#[derive(Clone, Debug)]
struct Limit {
    at: Decimal,
    /// Whether it is itself out of the range.
    open: bool,
}

/// Numbers between bounds, if there are any: the least and the greatest, and whether they are below zero.
#[derive(Debug)]
pub(super) struct Range {
    least: Option<(bool, Limit)>,
    most: Option<(bool, Limit)>,
}

/// Bounds as a schema gives them, and whether the bound itself is out of the range.
type Bounds<'s> = [(Option<&'s Number>, bool); 2];

impl Range {
    /// The numbers that all bounds allow; `None` for bounds that are of no sane size.
    pub(super) fn new(least: &Bounds<'_>, most: &Bounds<'_>) -> Option<Self> {
        Some(Self { least: narrowest(least, Ordering::Greater)?, most: narrowest(most, Ordering::Less)? })
    }

    pub(super) fn is_unbounded(&self) -> bool {
        self.least.is_none() && self.most.is_none()
    }

    /// A number of this range; whole ones have no point.
    pub(super) fn write(&self, writer: &mut Writer, whole: bool, next: State) -> Written {
        let zero = || Some(Limit { at: Decimal::default(), open: false });
        // What is not below zero, and what is, by how far it is from zero.
        let above = match (&self.least, &self.most) {
            (_, Some((true, _))) => None,
            (Some((false, least)), most) => Some((Some(least.clone()), most)),
            (_, most) => Some((zero(), most)),
        };
        let mut ways = Vec::new();
        if let Some((least, most)) = above {
            let most = most.as_ref().map(|(_, most)| most.clone());
            ways.push(Digits::new(least, most, whole).write(writer, next)?);
        }
        let below = match (&self.least, &self.most) {
            (Some((false, _)), _) => None,
            (least, Some((true, most))) => Some((least, Some(most.clone()))),
            (least, _) => Some((least, zero().map(|zero| Limit { open: true, ..zero }))),
        };
        if let Some((least, most)) = below {
            let farthest = least.as_ref().map(|(_, least)| least.clone());
            let magnitude = Digits::new(most, farthest, whole).write(writer, next)?;
            ways.push(writer.bytes(b"-", magnitude)?);
        }
        writer.one_of(ways)
    }
}

/// Of two bounds the one that leaves less: the `side`-most.
fn narrowest(bounds: &Bounds<'_>, side: Ordering) -> Option<Option<(bool, Limit)>> {
    let mut best: Option<(bool, Limit)> = None;
    for (number, open) in bounds {
        let Some(number) = number else { continue };
        let (below, at) = Decimal::parse(&number.to_string())?;
        let limit = (below && !at.is_zero(), Limit { at, open: *open });
        let narrower = best.as_ref().is_none_or(|best| match signed(&limit, best) {
            Ordering::Equal => *open,
            order => order == side,
        });
        if narrower {
            best = Some(limit);
        }
    }
    Some(best)
}

fn signed((a_below, a): &(bool, Limit), (b_below, b): &(bool, Limit)) -> Ordering {
    match (a_below, b_below) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.at.compare(&b.at),
        (true, true) => b.at.compare(&a.at),
    }
}

/// Writes numbers that are not below zero, from `least` to `most`.
struct Digits {
    least: Limit,
    most: Limit,
    whole: bool,
    /// Digits before the point.
    length: usize,
    /// What is written behind so many digits of the fraction, along the limits or between them.
    known: HashMap<(usize, bool, bool), State>,
}

impl Digits {
    fn new(least: Option<Limit>, most: Option<Limit>, whole: bool) -> Self {
        let least = least.unwrap_or(Limit { at: Decimal::default(), open: false });
        // Without a limit, what has no more digits than numbers have anyway.
        let far = || Limit { at: Decimal { whole: vec![9; DIGITS], fraction: Vec::new() }, open: false };
        Self { least, most: most.unwrap_or_else(far), whole, length: 0, known: HashMap::new() }
    }

    fn write(&mut self, writer: &mut Writer, next: State) -> Written {
        let mut ways = Vec::new();
        // A number below 1 has one digit before the point.
        let (first, last) = (self.least.at.whole.len().max(1), self.most.at.whole.len().clamp(1, DIGITS));
        for length in first..=last {
            self.length = length;
            self.known.clear();
            let along = (self.least.at.whole.len().max(1) == length, self.most.at.whole.len().max(1) == length);
            ways.push(self.before_point(writer, 0, along, next)?);
        }
        writer.one_of(ways)
    }

    /// Digit `at` before the point and what follows it. `along`: whether all digits so far are those of the limits.
    fn before_point(&mut self, writer: &mut Writer, at: usize, along: (bool, bool), next: State) -> Written {
        if at == self.length {
            let stop = if self.may_end(0, along) { next } else { writer.never() };
            if self.whole {
                return Ok(stop);
            }
            let fraction = self.behind_point(writer, 0, along, next)?;
            let point = writer.bytes(b".", fraction)?;
            return writer.one_of(vec![stop, point]);
        }
        // The one digit of a number below 1 is a zero that limits do not spell out.
        let digit = |limit: &Limit| limit.at.whole.get(at).copied().unwrap_or(0);
        let least = if at == 0 && self.length > 1 { 1 } else { 0 };
        let low = if along.0 { digit(&self.least) } else { least };
        let high = if along.1 { digit(&self.most) } else { 9 };
        let mut ways = Vec::new();
        for (first, last, along) in parts(low, high, along) {
            let rest = self.before_point(writer, at + 1, along, next)?;
            ways.push(writer.range(b'0' + first, b'0' + last, rest)?);
        }
        writer.one_of(ways)
    }

    /// Digit `at` behind the point and what follows it.
    fn behind_point(&mut self, writer: &mut Writer, at: usize, along: (bool, bool), next: State) -> Written {
        if at + self.length >= EXACT {
            return Ok(writer.never());
        }
        if let Some(&state) = self.known.get(&(at, along.0, along.1)) {
            return Ok(state);
        }
        let digit = |limit: &Limit| limit.at.fraction.get(at).copied().unwrap_or(0);
        let low = if along.0 { digit(&self.least) } else { 0 };
        let high = if along.1 { digit(&self.most) } else { 9 };
        let mut ways = Vec::new();
        for (first, last, along) in parts(low, high, along) {
            let more = self.behind_point(writer, at + 1, along, next)?;
            let stop = if self.may_end(at + 1, along) { next } else { writer.never() };
            let rest = writer.one_of(vec![more, stop])?;
            ways.push(writer.range(b'0' + first, b'0' + last, rest)?);
        }
        let state = writer.one_of(ways)?;
        self.known.insert((at, along.0, along.1), state);
        Ok(state)
    }

    /// Whether a number may end after so many digits of its fraction.
    fn may_end(&self, digits: usize, along: (bool, bool)) -> bool {
        let spelled = |limit: &Limit| limit.at.fraction.len() <= digits;
        let above = !along.0 || (spelled(&self.least) && !self.least.open);
        let below = !along.1 || !spelled(&self.most) || !self.most.open;
        above && below
    }
}

/// The digits from `low` to `high`, those of the limits apart: first, last, and which limits they go along.
fn parts(low: u8, high: u8, along: (bool, bool)) -> Vec<(u8, u8, (bool, bool))> {
    let mut parts = Vec::new();
    if low > high {
        return parts;
    }
    if low == high {
        return vec![(low, low, along)];
    }
    let (mut first, mut last) = (low, high);
    if along.0 {
        parts.push((low, low, (true, false)));
        first += 1;
    }
    if along.1 {
        parts.push((high, high, (false, true)));
        last -= 1;
    }
    if first <= last {
        parts.push((first, last, (false, false)));
    }
    parts
}
