//! All ways to fill a run of positions that a constraint allows, and what a model's rows say of them.
//!
//! A way is a path through layers of states, one layer before every position. The rows of a pass are one law for each position,
//! independent of the others; so the best path, the weight of all paths and each position's law given that the whole is
//! allowed come from sums along edges, without going through the paths. Invariant: a path is there if and only if what it
//! writes can be completed within the positions behind it. Sums are of logarithms, so no weight is too small to count.

use super::language::Language;
use crate::constrain::Edge;
use crate::cpu::exp;
use crate::cpu::{Kernels, Work};

/// What is known of a position.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell<'r> {
    /// It is decided.
    Token(i32),
    /// Logits of all tokens.
    Row(&'r [f32]),
}

/// A way from a state to one of the next layer.
#[derive(Clone, Copy, Debug)]
struct Step {
    to: u32,
    /// Which of the layer's sets; [`DECIDED`] where the position is.
    set: u32,
}

const DECIDED: u32 = u32::MAX;

/// What a row says of a set of tokens.
#[derive(Clone, Copy, Debug)]
struct Weighed {
    /// The set.
    set: u32,
    /// Its most likely token, the lowest of equals, and its logit.
    best: (f64, i32),
    /// Logarithm of the sum of its weights.
    sum: f64,
}

/// The states before a position, and the ways through it.
#[derive(Debug, Default)]
struct Layer {
    states: Vec<u32>,
    /// Where the steps of each state begin; one more than there are states.
    starts: Vec<usize>,
    /// In the order of the states that they leave.
    steps: Vec<Step>,
    sets: Vec<Weighed>,
    /// For each state: the best of what follows, and the logarithm of the sum over all that follows.
    best: Vec<f64>,
    after: Vec<f64>,
    /// The logarithm of the sum over all that leads to it.
    before: Vec<f64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lattice<'a> {
    language: &'a Language,
    cells: &'a [Cell<'a>],
    /// One more than there are cells.
    layers: Vec<Layer>,
    temperature: f32,
}

/// Memory that is kept from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Numbers by state, or by set.
    numbers: Vec<u32>,
    weights: Vec<f32>,
}

const NONE: u32 = u32::MAX;

impl<'a> Lattice<'a> {
    /// The ways from `state` through `cells` behind which `left` positions remain. `sums`: at which temperature weights are
    /// summed; without, only the best way is known. `None` when there is no way.
    pub(super) fn new(
        language: &'a Language,
        state: u32,
        cells: &'a [Cell<'a>],
        left: usize,
        sums: Option<f32>,
        room: &mut Room,
        kernels: &Kernels,
    ) -> Option<Self> {
        let mut layers = vec![Layer { states: vec![state], ..Layer::default() }];
        room.numbers.clear();
        room.numbers.resize(language.states().max(language.sets()), NONE);
        for (at, cell) in cells.iter().enumerate() {
            let mut next = Layer::default();
            let layer = layers.last_mut()?;
            layer.leave(language, cell, cells.len() - at - 1 + left, &mut next, &mut room.numbers);
            if let Cell::Row(row) = cell {
                layer.find_sets(&mut room.numbers);
                let weigh =
                    Weigh { language, sets: &mut layer.sets, row, temperature: sums, weights: &mut room.weights };
                kernels.run(weigh);
            }
            layers.push(next);
        }
        let mut lattice = Self { language, cells, layers, temperature: sums.unwrap_or(1.0) };
        lattice.sum(sums.is_some());
        (lattice.layers[0].best[0] > f64::NEG_INFINITY).then_some(lattice)
    }

    /// Sums along the steps: what follows from the end, what leads there from the beginning.
    fn sum(&mut self, sums: bool) {
        if let Some(last) = self.layers.last_mut() {
            last.best = vec![0.0; last.states.len()];
            last.after = last.best.clone();
        }
        for at in (0..self.cells.len()).rev() {
            let (head, tail) = self.layers.split_at_mut(at + 1);
            let (layer, next) = (&mut head[at], &tail[0]);
            layer.best = vec![f64::NEG_INFINITY; layer.states.len()];
            layer.after = layer.best.clone();
            for from in 0..layer.states.len() {
                let (mut most, mut all) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
                for step in layer.leaving(from) {
                    let (best, sum) = weights(&layer.sets, step.set);
                    most = most.max(best + next.best[step.to as usize]);
                    if sums {
                        all = add(all, sum + next.after[step.to as usize]);
                    }
                }
                (layer.best[from], layer.after[from]) = (most, all);
            }
        }
        if !sums {
            return;
        }
        self.layers[0].before = vec![0.0];
        for at in 0..self.cells.len() {
            let (head, tail) = self.layers.split_at_mut(at + 1);
            let (layer, next) = (&head[at], &mut tail[0]);
            next.before = vec![f64::NEG_INFINITY; next.states.len()];
            for (from, sum) in layer.before.iter().enumerate() {
                for step in layer.leaving(from) {
                    let before = &mut next.before[step.to as usize];
                    *before = add(*before, sum + weights(&layer.sets, step.set).1);
                }
            }
        }
    }

    /// The tokens of the best way: those with the largest sum of logits.
    pub(super) fn best(&self) -> Vec<i32> {
        let (mut state, mut tokens) = (0, Vec::with_capacity(self.cells.len()));
        for (at, cell) in self.cells.iter().enumerate() {
            let (layer, next) = (&self.layers[at], &self.layers[at + 1]);
            let mut best: Option<(f64, i32, u32)> = None;
            for step in layer.leaving(state) {
                let (weight, token) = match (cell, layer.sets.get(step.set as usize)) {
                    (Cell::Token(token), _) => (0.0, *token),
                    (Cell::Row(_), Some(set)) => set.best,
                    (Cell::Row(_), None) => continue,
                };
                let score = weight + next.best[step.to as usize];
                if best.is_none_or(|(top, first, _)| score > top || (score == top && token < first)) {
                    best = Some((score, token, step.to));
                }
            }
            let Some((_, token, to)) = best else { break };
            tokens.push(token);
            state = to as usize;
        }
        tokens
    }

    /// Tokens that `choose` chooses one by one from the left, from logits of their law given those before them: that of all ways
    /// which begin so. It is given the cell and the logits. `None` when it chooses none, or another one.
    pub(super) fn chosen(
        &self,
        row: &mut Vec<f32>,
        mut choose: impl FnMut(usize, &[f32]) -> Option<i32>,
    ) -> Option<Vec<i32>> {
        let (mut state, mut tokens) = (0, Vec::with_capacity(self.cells.len()));
        for (at, cell) in self.cells.iter().enumerate() {
            let (layer, next) = (&self.layers[at], &self.layers[at + 1]);
            let token = match cell {
                Cell::Token(token) => *token,
                Cell::Row(logits) => {
                    let steps = || layer.leaving(state).iter().map(|step| (step.set, next.after[step.to as usize]));
                    let most = steps().map(|(_, after)| after).fold(f64::NEG_INFINITY, f64::max);
                    row.clear();
                    row.resize(logits.len(), f32::NEG_INFINITY);
                    for (set, after) in steps() {
                        self.add(row, logits, self.layers[at].sets[set as usize].set, after - most);
                    }
                    choose(at, row)?
                }
            };
            let step = layer.leaving(state).iter().find(|step| match layer.sets.get(step.set as usize) {
                Some(set) => self.language.set(set.set).binary_search(&token).is_ok(),
                None => true,
            })?;
            tokens.push(token);
            state = step.to as usize;
        }
        Some(tokens)
    }

    /// Writes logits of a cell's law given that the whole is allowed, as far as the row says: -∞ where a token is not.
    pub(super) fn law(&self, at: usize, row: &mut Vec<f32>) {
        let (Some(Cell::Row(logits)), [layer, next]) = (self.cells.get(at), &self.layers[at..at + 2]) else { return };
        let mut ways = vec![f64::NEG_INFINITY; layer.sets.len()];
        for (from, before) in layer.before.iter().enumerate() {
            for step in layer.leaving(from) {
                let ways = &mut ways[step.set as usize];
                *ways = add(*ways, before + next.after[step.to as usize]);
            }
        }
        let whole = self.layers[0].after[0];
        row.clear();
        row.resize(logits.len(), f32::NEG_INFINITY);
        for (set, ways) in layer.sets.iter().zip(ways) {
            self.add(row, logits, set.set, ways - whole);
        }
    }

    /// Adds to a row of logits those tokens of a set, with the logarithm of the weight of what is around them.
    fn add(&self, row: &mut [f32], logits: &[f32], set: u32, around: f64) {
        if around == f64::NEG_INFINITY {
            return;
        }
        let shift = (around * f64::from(self.temperature)) as f32;
        for &id in self.language.set(set) {
            let Some((value, logit)) = usize::try_from(id).ok().and_then(|id| row.get_mut(id).zip(logits.get(id)))
            else {
                continue;
            };
            let new = logit + shift;
            *value = if *value == f32::NEG_INFINITY {
                new
            } else {
                let temperature = f64::from(self.temperature);
                (add(f64::from(*value) / temperature, f64::from(new) / temperature) * temperature) as f32
            };
        }
    }
}

impl Layer {
    /// Adds the steps through a cell behind which `left` positions remain, and the states of the next layer.
    fn leave(&mut self, language: &Language, cell: &Cell<'_>, left: usize, next: &mut Layer, numbers: &mut [u32]) {
        for &state in &self.states {
            self.starts.push(self.steps.len());
            let mut go = |edge: Edge, set: u32| {
                if language.shortest(edge.to) > left {
                    return;
                }
                let number = &mut numbers[edge.to as usize];
                if *number == NONE {
                    *number = next.states.len() as u32;
                    next.states.push(edge.to);
                }
                self.steps.push(Step { to: *number, set });
            };
            match cell {
                Cell::Token(token) => language.step(state, *token).into_iter().for_each(|edge| go(edge, DECIDED)),
                Cell::Row(_) => language.edges(state).for_each(|edge| go(edge, edge.set)),
            }
        }
        self.starts.push(self.steps.len());
        next.states.iter().for_each(|&state| numbers[state as usize] = NONE);
    }

    /// Numbers the sets of its steps.
    fn find_sets(&mut self, numbers: &mut [u32]) {
        for step in &mut self.steps {
            let number = &mut numbers[step.set as usize];
            if *number == NONE {
                *number = self.sets.len() as u32;
                self.sets.push(Weighed { set: step.set, best: (f64::NEG_INFINITY, 0), sum: f64::NEG_INFINITY });
            }
            step.set = *number;
        }
        self.sets.iter().for_each(|set| numbers[set.set as usize] = NONE);
    }

    /// The steps that leave a state.
    fn leaving(&self, state: usize) -> &[Step] {
        &self.steps[self.starts[state]..self.starts[state + 1]]
    }
}

/// The best logit of a set, and the logarithm of its sum; nothing where the position is decided.
fn weights(sets: &[Weighed], set: u32) -> (f64, f64) {
    sets.get(set as usize).map_or((0.0, 0.0), |set| (set.best.0, set.sum))
}

/// The logarithm of a sum whose parts have these logarithms.
fn add(a: f64, b: f64) -> f64 {
    let (most, least) = if a > b { (a, b) } else { (b, a) };
    // What is less than 1e-17 of the other changes nothing.
    if least - most < -40.0 || least == f64::NEG_INFINITY { most } else { most + libm::log1p(libm::exp(least - most)) }
}

/// Weighs the sets of a layer by a row.
struct Weigh<'a> {
    language: &'a Language,
    sets: &'a mut [Weighed],
    row: &'a [f32],
    temperature: Option<f32>,
    weights: &'a mut Vec<f32>,
}

impl Work for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { language, sets, row, temperature, weights } = self;
        let largest = row.iter().fold(f32::NEG_INFINITY, |most, &logit| if logit > most { logit } else { most });
        if let Some(temperature) = temperature {
            weights.clear();
            weights.extend(row.iter().map(|&logit| exp((logit - largest) / temperature)));
        }
        for weighed in sets {
            let ids = language.set(weighed.set);
            let mut best = (f32::NEG_INFINITY, 0);
            for &id in ids {
                let logit = row[id as usize];
                if logit > best.0 {
                    best = (logit, id);
                }
            }
            weighed.best = (f64::from(best.0), best.1);
            let Some(temperature) = temperature.map(f64::from) else { continue };
            let mut sum = 0.0;
            for &id in ids {
                sum += f64::from(weights[id as usize]);
            }
            let mut most = f64::from(largest);
            if sum < 1e-20 {
                // So little beside the row's best that single weights are lost: beside the set's best they are not.
                most = f64::from(best.0);
                sum = 0.0;
                for &id in ids {
                    sum += libm::exp((f64::from(row[id as usize]) - most) / temperature);
                }
            }
            weighed.sum = most / temperature + libm::log(sum);
        }
    }
}
