//! Takes out of a module what nothing reads.

use crate::arena::{Arena, Id, StateId, WeightId};
use crate::module::{Module, Operand, WeightDef};

impl Module {
    /// Removes weights that no node and no kept weight reads. Returns how many there were.
    pub fn drop_unread_weights(&mut self) -> usize {
        let mut live = self.weights.side_table(false);
        for w in self.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs).filter_map(|i| i.weight()) {
            live[w] = true;
        }
        for (id, w) in self.weights.iter().rev() {
            if let (true, WeightDef::Expr(_, inputs)) = (live[id], &w.def) {
                inputs.iter().for_each(|i| live[*i] = true);
            }
        }
        let old = std::mem::take(&mut self.weights);
        let mut map: Vec<Option<WeightId>> = Vec::with_capacity(old.len());
        let mut kept = Arena::default();
        for (id, w) in old.iter() {
            map.push(live[id].then(|| {
                let mut w = w.clone();
                if let WeightDef::Expr(_, inputs) = &mut w.def {
                    inputs.iter_mut().for_each(|i| *i = map[i.index()].expect("inputs of live weights are live"));
                }
                kept.push(w)
            }));
        }
        let removed = old.len() - kept.len();
        self.weights = kept;
        for input in self.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
            if let Operand::Weight(w) = input {
                *w = map[w.index()].expect("read weights are live");
            }
        }
        removed
    }

    /// Removes states that no node names. Returns how many there were.
    pub fn drop_unused_states(&mut self) -> usize {
        let mut live = self.states.side_table(false);
        for s in self.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs).filter_map(|i| i.state()) {
            live[s] = true;
        }
        let old = std::mem::take(&mut self.states);
        let map: Vec<Option<StateId>> =
            old.iter().map(|(id, s)| live[id].then(|| self.states.push(s.clone()))).collect();
        for input in self.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
            if let Operand::State(s) = input {
                *s = map[s.index()].expect("used states are live");
            }
        }
        old.len() - self.states.len()
    }
}
