//! A constraint with its end: the text, then a stop token, then nothing but such tokens.
//!
//! Invariant: a stop token stands only where the text is complete. State and set numbers are those of the automaton, followed
//! by one state, behind the text, and two sets, the tokens that end it and those that may follow.

use std::sync::Arc;

use crate::constrain::{Constraint, Edge};

/// See the module.
#[derive(Debug)]
pub(super) struct Language {
    constraint: Arc<Constraint>,
    /// Tokens that end the text, ascending.
    stops: Vec<i32>,
    /// Tokens that may stand behind the end, ascending.
    behind: Vec<i32>,
    /// The state behind the text.
    ended: u32,
    /// The first set that is not the automaton's.
    first: u32,
}

impl Language {
    /// The texts of `constraint`, each with an end.
    pub(super) fn new(constraint: Arc<Constraint>, mut stops: Vec<i32>, padding: Option<i32>) -> Self {
        let automaton = constraint.automaton();
        // The automaton's own bounds keep both far below this.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (ended, first) = (number(automaton.len()), number(automaton.sets()));
        stops.sort_unstable();
        stops.dedup();
        let mut behind = stops.clone();
        behind.extend(padding);
        behind.sort_unstable();
        behind.dedup();
        Self { constraint, stops, behind, ended, first }
    }

    /// Number of states.
    pub(super) fn states(&self) -> usize {
        self.constraint.automaton().len() + 1
    }

    /// Number of sets.
    pub(super) fn sets(&self) -> usize {
        self.constraint.automaton().sets() + 2
    }

    /// The ways out of a state.
    pub(super) fn edges(&self, state: u32) -> impl Iterator<Item = Edge> + '_ {
        let automaton = self.constraint.automaton();
        let end = match state {
            state if state == self.ended => Some(self.first + 1),
            state if automaton.is_complete(state) => Some(self.first),
            _ => None,
        };
        automaton.edges(state).iter().copied().chain(end.map(|set| Edge { to: self.ended, set }))
    }

    /// The tokens of a set, ascending.
    pub(super) fn set(&self, set: u32) -> &[i32] {
        match set.checked_sub(self.first) {
            None => self.constraint.automaton().set(set),
            Some(0) => &self.stops,
            Some(_) => &self.behind,
        }
    }

    /// The way that a token leads.
    pub(super) fn step(&self, state: u32, id: i32) -> Option<Edge> {
        self.edges(state).find(|edge| self.set(edge.set).binary_search(&id).is_ok())
    }

    /// Fewest tokens that complete the text.
    pub(super) fn shortest(&self, state: u32) -> usize {
        if state == self.ended { 0 } else { self.constraint.automaton().shortest(state) }
    }
}
