//! An automaton over tokens: which of them may follow, and where each leads.
//!
//! Tokens that lead from one state to another are a set, and equal sets are one. A model's logits are so looked at once for each
//! set, however many states and edges share it. Invariant: state 0 is the first one; every edge leads to a state from which a
//! text can be completed, and a token is in at most one set of those that leave a state.

use std::collections::HashMap;
use std::sync::Arc;

use regex_syntax::utf8::Utf8Sequences;

use super::ConstraintError;
use super::bytes::ByteAutomaton;
use super::json::PLAIN;
use super::vocabulary::Vocabulary;

/// Nodes of the tries that are looked at: a second or less.
const LOOKS: usize = 1 << 26;
/// Ids in all sets together.
const IDS: usize = 1 << 22;
/// Edges.
const EDGES: usize = 1 << 19;
/// States in which an automaton may be within one character and still treat all characters alike.
const MOST_APART: usize = 4;

/// A way to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The state behind it.
    pub to: u32,
    /// The tokens that lead there, one of [`Automaton::set`].
    pub set: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Automaton {
    /// Where the edges of each state begin; one more than there are states.
    starts: Vec<u32>,
    edges: Vec<Edge>,
    /// Ids in ascending order.
    sets: Vec<Arc<[i32]>>,
    complete: Vec<bool>,
    /// Fewest tokens that complete a text.
    shortest: Vec<u32>,
}

impl Automaton {
    /// The texts of `bytes`, in tokens.
    pub(super) fn new(bytes: &ByteAutomaton, vocabulary: &Vocabulary) -> Result<Self, ConstraintError> {
        let mut making = Making::new(bytes, vocabulary);
        let mut starts = vec![0];
        let mut at = 0;
        while let Some(&state) = making.found.get(at) {
            making.leave(state)?;
            starts.push(number(making.edges.len())?);
            at += 1;
        }
        let complete = making.found.iter().map(|&state| bytes.is_complete(state)).collect();
        let Making { edges, sets, .. } = making;
        let shortest = vec![u32::MAX; at];
        Self { starts, edges, sets: sets.all, complete, shortest }.measured()
    }

    /// Finds the shortest completions, and takes away what leads nowhere.
    fn measured(mut self) -> Result<Self, ConstraintError> {
        let count = self.complete.len();
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); count];
        for state in 0..number(count)? {
            for edge in self.edges(state) {
                before[edge.to as usize].push(state);
            }
        }
        let mut near: Vec<usize> = (0..count).filter(|&state| self.complete[state]).collect();
        near.iter().for_each(|&state| self.shortest[state] = 0);
        for tokens in 1.. {
            let mut next = Vec::new();
            for &from in near.iter().flat_map(|&state| &before[state]) {
                let shortest = &mut self.shortest[from as usize];
                if *shortest == u32::MAX {
                    *shortest = tokens;
                    next.push(from as usize);
                }
            }
            if next.is_empty() {
                break;
            }
            near = next;
        }
        if self.shortest.first() == Some(&u32::MAX) {
            return Err(ConstraintError::Tokenizer("the model has no tokens for what is asked for"));
        }
        let (mut starts, mut edges) = (vec![0], Vec::new());
        for state in 0..number(count)? {
            edges.extend(self.edges(state).iter().filter(|edge| self.shortest[edge.to as usize] != u32::MAX));
            starts.push(number(edges.len())?);
        }
        (self.starts, self.edges) = (starts, edges);
        Ok(self)
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.complete.len()
    }

    /// How much memory it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let ids: usize = self.sets.iter().map(|set| set.len()).sum();
        self.complete.len() * 9 + self.edges.len() * size_of::<Edge>() + ids * 4
    }

    /// Whether there are no states, which never is so.
    pub fn is_empty(&self) -> bool {
        self.complete.is_empty()
    }

    /// The ways out of a state.
    pub fn edges(&self, state: u32) -> &[Edge] {
        let bound = |at: usize| self.starts.get(at).copied().unwrap_or(0) as usize;
        self.edges.get(bound(state as usize)..bound(state as usize + 1)).unwrap_or_default()
    }

    /// Number of edges.
    pub fn ways(&self) -> usize {
        self.edges.len()
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// The tokens of a set, ascending.
    pub fn set(&self, set: u32) -> &[i32] {
        self.sets.get(set as usize).map(|set| &**set).unwrap_or_default()
    }

    /// The state behind a token.
    pub fn step(&self, state: u32, id: i32) -> Option<u32> {
        let edge = self.edges(state).iter().find(|edge| self.set(edge.set).binary_search(&id).is_ok());
        edge.map(|edge| edge.to)
    }

    /// Whether the text may end in a state.
    pub fn is_complete(&self, state: u32) -> bool {
        self.complete.get(state as usize).copied().unwrap_or(false)
    }

    /// Fewest tokens that complete a text from a state.
    pub fn shortest(&self, state: u32) -> usize {
        self.shortest.get(state as usize).map_or(usize::MAX, |tokens| *tokens as usize)
    }
}

/// Sets of tokens, equal ones once.
#[derive(Default)]
struct Sets {
    all: Vec<Arc<[i32]>>,
    numbers: HashMap<Arc<[i32]>, u32>,
    ids: usize,
}

impl Sets {
    fn number(&mut self, set: &Arc<[i32]>) -> Result<u32, ConstraintError> {
        if let Some(&number) = self.numbers.get(set) {
            return Ok(number);
        }
        self.ids += set.len();
        if self.ids > IDS {
            return Err(ConstraintError::TooLarge("too many different sets of tokens may stand in its places"));
        }
        let new = number(self.all.len())?;
        self.all.push(Arc::clone(set));
        self.numbers.insert(Arc::clone(set), new);
        Ok(new)
    }
}

/// An automaton over tokens while it is made.
struct Making<'a> {
    bytes: &'a ByteAutomaton,
    vocabulary: &'a Vocabulary,
    /// States over bytes, in the order of their numbers.
    found: Vec<u32>,
    numbers: Vec<Option<u32>>,
    edges: Vec<Edge>,
    sets: Sets,
    /// Numbers of the sets of plain tokens by their length, and of all of them.
    lengths: Vec<Option<u32>>,
    all_plain: Option<u32>,
    looks: usize,
    /// The state that tokens lead to, and the tokens.
    reached: Vec<(u32, i32)>,
    /// Byte ranges of plain characters.
    plain: Vec<Vec<(u8, u8)>>,
    /// Where one of them leads, by state, as far as it was asked.
    behind: Vec<Option<Behind>>,
}

/// Where plain characters lead from a state.
#[derive(Clone, Copy)]
enum Behind {
    To(u32),
    Nowhere,
    /// Some lead elsewhere than others.
    Different,
}

impl<'a> Making<'a> {
    fn new(bytes: &'a ByteAutomaton, vocabulary: &'a Vocabulary) -> Self {
        let mut numbers = vec![None; bytes.len()];
        numbers[0] = Some(0);
        let sequences = PLAIN.iter().flat_map(|(first, last)| Utf8Sequences::new(*first, *last));
        let plain = sequences.map(|s| s.as_slice().iter().map(|range| (range.start, range.end)).collect()).collect();
        Self {
            bytes,
            vocabulary,
            found: vec![0],
            numbers,
            edges: Vec::new(),
            sets: Sets::default(),
            lengths: vec![None; vocabulary.lengths().len()],
            all_plain: None,
            looks: 0,
            reached: Vec::new(),
            plain,
            behind: vec![None; bytes.len()],
        }
    }

    /// Adds the edges that leave a state.
    fn leave(&mut self, state: u32) -> Result<(), ConstraintError> {
        let (bytes, vocabulary) = (self.bytes, self.vocabulary);
        let alike = self.alike(state);
        self.reached.clear();
        let reached = &mut self.reached;
        let mut found = |to: u32, ids: &[i32]| reached.extend(ids.iter().map(|id| (to, *id)));
        let step = |state: u32, byte: u8| bytes.step(state, byte);
        self.looks += vocabulary.other().walk(state, step, &mut found);
        if alike.is_none() {
            self.looks += vocabulary.plain().walk(state, step, &mut found);
        }
        if self.looks > LOOKS {
            return Err(ConstraintError::TooLarge("too many tokens may stand in too many places of it"));
        }
        for (set, to) in self.plain_sets(&alike.unwrap_or_default())? {
            self.edge(to, set)?;
        }
        let mut reached = std::mem::take(&mut self.reached);
        reached.sort_unstable();
        for same in reached.chunk_by(|a, b| a.0 == b.0) {
            let set = self.sets.number(&same.iter().map(|(_, id)| *id).collect())?;
            self.edge(same[0].0, set)?;
        }
        self.reached = reached;
        Ok(())
    }

    /// Where 1, 2, … plain characters lead from a state, as long as they lead somewhere; `None` where some lead elsewhere
    /// than others.
    fn alike(&mut self, state: u32) -> Option<Vec<u32>> {
        let lengths = self.lengths.len();
        let (mut at, mut states) = (state, Vec::new());
        while states.len() < lengths {
            let to = match self.behind_any(at) {
                Behind::To(to) => to,
                Behind::Nowhere => break,
                Behind::Different => return None,
            };
            states.push(to);
            if to == at {
                states.resize(lengths, to);
            }
            at = to;
        }
        Some(states)
    }

    /// Where every plain character leads from a state.
    fn behind_any(&mut self, state: u32) -> Behind {
        if let Some(Some(behind)) = self.behind.get(state as usize) {
            return *behind;
        }
        let mut all: Option<Option<u32>> = None;
        let mut behind = Behind::Nowhere;
        for ranges in &self.plain {
            let mut states = vec![Some(state)];
            for &(first, last) in ranges {
                let from = std::mem::take(&mut states);
                for (state, byte) in from.iter().flat_map(|&state| (first..=last).map(move |byte| (state, byte))) {
                    let to = state.and_then(|state| self.bytes.step(state, byte));
                    if !states.contains(&to) {
                        states.push(to);
                    }
                }
                if states.len() > MOST_APART {
                    break;
                }
            }
            let one = if let [to] = states[..] { Some(to) } else { None };
            if one.is_none() || all.is_some_and(|all| Some(all) != one) {
                behind = Behind::Different;
                break;
            }
            all = one;
            behind = one.flatten().map_or(Behind::Nowhere, Behind::To);
        }
        if let Some(known) = self.behind.get_mut(state as usize) {
            *known = Some(behind);
        }
        behind
    }

    /// The sets of plain tokens that lead to `alike`, which has a state for every length that leads somewhere.
    fn plain_sets(&mut self, alike: &[u32]) -> Result<Vec<(u32, u32)>, ConstraintError> {
        let vocabulary = self.vocabulary;
        let lengths = vocabulary.lengths();
        if alike.len() == lengths.len() && alike.iter().all(|to| *to == alike[0]) {
            let set = match self.all_plain {
                Some(set) => set,
                None => *self.all_plain.insert(self.sets.number(vocabulary.all_plain())?),
            };
            return Ok(if vocabulary.all_plain().is_empty() { Vec::new() } else { vec![(set, alike[0])] });
        }
        let mut sets = Vec::new();
        for (length, &to) in alike.iter().enumerate().filter(|(length, _)| !lengths[*length].is_empty()) {
            let set = match self.lengths[length] {
                Some(set) => set,
                None => *self.lengths[length].insert(self.sets.number(&lengths[length])?),
            };
            sets.push((set, to));
        }
        Ok(sets)
    }

    fn edge(&mut self, to: u32, set: u32) -> Result<(), ConstraintError> {
        if self.edges.len() == EDGES {
            return Err(ConstraintError::TooLarge("it has too many ways to go on"));
        }
        let known = &mut self.numbers[to as usize];
        let to = match *known {
            Some(number) => number,
            None => {
                let new = number(self.found.len())?;
                *known = Some(new);
                self.found.push(to);
                new
            }
        };
        self.edges.push(Edge { to, set });
        Ok(())
    }
}

fn number(n: usize) -> Result<u32, ConstraintError> {
    u32::try_from(n).map_err(|_| ConstraintError::TooLarge("it has too many states"))
}
