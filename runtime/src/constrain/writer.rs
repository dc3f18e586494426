//! Writes an automaton over bytes from its end to its beginning.
//!
//! Every method is given the state that comes next, and returns the one that says something before it; so what follows is
//! shared, never copied. Invariant: what is written is UTF-8, and the automaton's memory is bounded, so that a grammar of a
//! few bytes cannot take more than it is worth.

use std::collections::HashMap;

use regex_automata::nfa::thompson::{BuildError, Builder, NFA, Transition};
use regex_automata::util::primitives::StateID;
use regex_syntax::utf8::Utf8Sequences;

use super::ConstraintError;

/// Most memory of the automaton in bytes.
const MAX_BYTES: usize = 16 << 20;

/// A state of the automaton that is written.
pub(super) type State = StateID;

/// See the module.
pub(super) struct Writer {
    builder: Builder,
    /// States that read one byte, by what they read and what follows.
    ranges: HashMap<(u8, u8, State), State>,
    /// Where the text is complete.
    end: State,
    /// From where it never is.
    never: State,
}

impl AsMut<Writer> for Writer {
    fn as_mut(&mut self) -> &mut Writer {
        self
    }
}

impl Writer {
    /// An automaton of nothing but its end.
    pub(super) fn new() -> Result<Self, ConstraintError> {
        let mut builder = Builder::new();
        builder.set_size_limit(Some(MAX_BYTES)).map_err(|e| too_large(&e))?;
        builder.start_pattern().map_err(|e| too_large(&e))?;
        let end = builder.add_match().map_err(|e| too_large(&e))?;
        let never = builder.add_fail().map_err(|e| too_large(&e))?;
        Ok(Self { builder, ranges: HashMap::new(), end, never })
    }

    /// Where the text is complete.
    pub(super) fn end(&self) -> State {
        self.end
    }

    /// From where no text is complete.
    pub(super) fn never(&self) -> State {
        self.never
    }

    /// A byte from `first` to `last`.
    pub(super) fn range(&mut self, first: u8, last: u8, next: State) -> Result<State, ConstraintError> {
        if next == self.never {
            return Ok(next);
        }
        let key = (first, last, next);
        if let Some(&state) = self.ranges.get(&key) {
            return Ok(state);
        }
        let range = Transition { start: first, end: last, next };
        let state = self.builder.add_range(range).map_err(|e| too_large(&e))?;
        self.ranges.insert(key, state);
        Ok(state)
    }

    /// These bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8], next: State) -> Result<State, ConstraintError> {
        bytes.iter().rev().try_fold(next, |next, &byte| self.range(byte, byte, next))
    }

    /// A character in one of these ranges.
    pub(super) fn char_in(&mut self, ranges: &[(char, char)], next: State) -> Result<State, ConstraintError> {
        let mut ways = Vec::new();
        for &(first, last) in ranges {
            for sequence in Utf8Sequences::new(first, last) {
                let bytes = sequence.as_slice().iter().rev();
                ways.push(bytes.copied().try_fold(next, |next, range| self.range(range.start, range.end, next))?);
            }
        }
        self.one_of(ways)
    }

    /// Any of these ways.
    pub(super) fn one_of(&mut self, mut ways: Vec<State>) -> Result<State, ConstraintError> {
        ways.retain(|way| *way != self.never);
        ways.sort_unstable();
        ways.dedup();
        match ways[..] {
            [] => Ok(self.never),
            [way] => Ok(way),
            _ => self.builder.add_union(ways).map_err(|e| too_large(&e)),
        }
    }

    /// A state that is written before what it leads to is known.
    pub(super) fn ahead(&mut self) -> Result<State, ConstraintError> {
        self.builder.add_empty().map_err(|e| too_large(&e))
    }

    /// Says what a state written ahead leads to.
    pub(super) fn lead(&mut self, ahead: State, to: State) -> Result<(), ConstraintError> {
        self.builder.patch(ahead, to).map_err(|e| too_large(&e))
    }

    /// The automaton that begins with `start`.
    pub(super) fn finish(mut self, start: State) -> Result<NFA, ConstraintError> {
        self.builder.finish_pattern(start).map_err(|e| too_large(&e))?;
        self.builder.build(start, start).map_err(|e| too_large(&e))
    }
}

/// What `write` writes, any number of times.
pub(super) fn many<C: AsMut<Writer>>(
    context: &mut C,
    next: State,
    mut write: impl FnMut(&mut C, State) -> Result<State, ConstraintError>,
) -> Result<State, ConstraintError> {
    let again = context.as_mut().ahead()?;
    let once = write(context, again)?;
    let writer = context.as_mut();
    let state = writer.one_of(vec![once, next])?;
    writer.lead(again, state)?;
    Ok(state)
}

/// What `write` writes, `min` to `max` times.
pub(super) fn times<C: AsMut<Writer>>(
    context: &mut C,
    (min, max): (usize, Option<usize>),
    next: State,
    mut write: impl FnMut(&mut C, State) -> Result<State, ConstraintError>,
) -> Result<State, ConstraintError> {
    let (mut state, count) = match max {
        None => (many(context, next, &mut write)?, min),
        Some(max) if max < min => return Ok(context.as_mut().never()),
        Some(max) => (next, max),
    };
    for done in (0..count).rev() {
        let once = write(context, state)?;
        // Nothing, however often, is nothing.
        if once == state {
            break;
        }
        state = if done < min { once } else { context.as_mut().one_of(vec![once, next])? };
    }
    Ok(state)
}

fn too_large(_: &BuildError) -> ConstraintError {
    ConstraintError::TooLarge("it describes too many texts in too different ways")
}
