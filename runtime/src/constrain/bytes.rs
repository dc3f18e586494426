//! An automaton over bytes in which every state has at most one way to go with a byte.
//!
//! Invariant: every state can be reached, and a text can be completed from each of them.

use regex_automata::Anchored;
use regex_automata::MatchKind;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson::NFA;
use regex_automata::util::primitives::StateID;
use std::collections::HashMap;

use super::ConstraintError;

/// Most memory of the automaton in bytes, and of what making it needs besides.
const MAX_BYTES: usize = 16 << 20;

/// No state.
const NONE: u32 = u32::MAX;

/// See the module. State 0 is the first one.
pub(super) struct ByteAutomaton {
    /// Which bytes are treated alike.
    classes: [u8; 256],
    /// Number of classes.
    width: usize,
    /// By state and class: the next state, or [`NONE`].
    next: Vec<u32>,
    complete: Vec<bool>,
}

impl ByteAutomaton {
    /// The same language, decided byte by byte.
    ///
    /// # Errors
    /// [`ConstraintError::TooLarge`]; [`ConstraintError::Empty`] when there is no text in it.
    pub(super) fn new(nfa: &NFA) -> Result<Self, ConstraintError> {
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            // Longer texts count as much as shorter ones.
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_BYTES));
        let dfa = dense::Builder::new().configure(config).build_from_nfa(nfa);
        let dfa = dfa.map_err(|_| ConstraintError::TooLarge("too many things have to be kept apart in it"))?;
        let start = dfa.universal_start_state(Anchored::Yes).ok_or(ConstraintError::Empty)?;
        let mut classes = [0; 256];
        let mut representatives: Vec<u8> = Vec::new();
        for byte in 0..=u8::MAX {
            let class = dfa.byte_classes().get(byte);
            classes[usize::from(byte)] = class;
            if usize::from(class) == representatives.len() {
                representatives.push(byte);
            }
        }
        let width = representatives.len();
        let mut found: Vec<StateID> = vec![start];
        let mut numbers: HashMap<StateID, u32> = HashMap::from([(start, 0)]);
        let (mut next, mut complete) = (Vec::new(), Vec::new());
        let mut at = 0;
        while let Some(&state) = found.get(at) {
            complete.push(dfa.is_match_state(dfa.next_eoi_state(state)));
            for &byte in &representatives {
                let to = dfa.next_state(state, byte);
                if dfa.is_dead_state(to) {
                    next.push(NONE);
                    continue;
                }
                let number =
                    u32::try_from(found.len()).map_err(|_| ConstraintError::TooLarge("it has too many states"))?;
                next.push(*numbers.entry(to).or_insert_with(|| {
                    found.push(to);
                    number
                }));
            }
            at += 1;
        }
        Self { classes, width, next, complete }.trimmed()
    }

    /// Without the states from which no text can be completed.
    fn trimmed(mut self) -> Result<Self, ConstraintError> {
        let count = self.complete.len();
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); count];
        for (state, row) in (0..).zip(self.next.chunks_exact(self.width)) {
            for &to in row.iter().filter(|to| **to != NONE) {
                before[to as usize].push(state);
            }
        }
        let mut live = self.complete.clone();
        let mut open: Vec<usize> = (0..count).filter(|&state| live[state]).collect();
        while let Some(state) = open.pop() {
            for &from in &before[state] {
                if !std::mem::replace(&mut live[from as usize], true) {
                    open.push(from as usize);
                }
            }
        }
        if !live.first().is_some_and(|live| *live) {
            return Err(ConstraintError::Empty);
        }
        self.next.iter_mut().for_each(|to| {
            if *to != NONE && !live[*to as usize] {
                *to = NONE;
            }
        });
        Ok(self)
    }

    /// Number of states, some of which nothing leads to.
    pub(super) fn len(&self) -> usize {
        self.complete.len()
    }

    /// The state behind a byte.
    pub(super) fn step(&self, state: u32, byte: u8) -> Option<u32> {
        let class = usize::from(self.classes[usize::from(byte)]);
        let to = self.next.get(state as usize * self.width + class).copied()?;
        (to != NONE).then_some(to)
    }

    /// Whether the text may end in this state.
    pub(super) fn is_complete(&self, state: u32) -> bool {
        self.complete.get(state as usize).copied().unwrap_or(false)
    }
}
