//! Checks of a plan: nothing in it is trusted.
//!
//! Invariant: after [`Plan::check`] every index names something, every bound range lies in its buffer at an aligned
//! offset and within the profile's limits, no dispatch binds bytes twice for writing, and the buffers are no larger than
//! what the entries use and the profile allows. What a shader does with its bindings is the device's business, whose
//! front end validates it and clamps every access.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Access, BIND_ALIGN, Binding, CALL_WORDS, Dispatch, Entry, Kernel, Plan, Profile, Range, Variant};
use crate::artifact::ALIGN;
use dlx_ir::{DType, EntryKind, Graph, Id, Module, Node, Op, Operand, WeightDef, hidden_state};

/// Most bindings of a kernel; far above what any has, far below what a device would choke on.
const MAX_BINDINGS: usize = 64;
/// Most workgroups of a dispatch: a few for each row and each tile of the largest vocabularies.
const MAX_GROUPS: u64 = 1 << 24;
/// Largest buffer that is not one of weights.
const MAX_BYTES: u64 = 1 << 40;

impl Plan {
    /// Checks a plan against itself and a weights section of `weights` bytes.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn check(&self, weights: u64) -> Result<(), String> {
        self.check_profile()?;
        for (i, kernel) in self.kernels.iter().enumerate() {
            self.check_kernel(kernel).map_err(|e| format!("kernel {i} ({} {}): {e}", kernel.role, kernel.shape))?;
        }
        let limit = self.profile.max_buffer.min(MAX_BYTES);
        let buffers = [("input", self.inputs), ("activation", self.arena), ("output", self.outputs)];
        let states = self.states.iter().map(|s| (s.name.as_str(), s.bytes));
        for (name, bytes) in buffers.into_iter().chain(states) {
            if bytes % 4 != 0 || bytes > limit {
                return Err(format!("the {name} buffer of {bytes} bytes is above {limit} or no multiple of 4"));
            }
        }
        if let Some(s) = self.states.iter().find(|s| s.bytes == 0 || s.bytes > self.profile.max_binding) {
            return Err(format!("state {} of {} bytes cannot be bound", s.name, s.bytes));
        }
        if self.hidden.is_some_and(|h| h >= self.states.len()) {
            return Err("its hidden rows are in a state that it does not have".into());
        }
        if self.vocab < 2 || i32::try_from(self.vocab).is_err() || i32::try_from(self.max_seq).is_err() {
            return Err(format!("it has {} cache rows and a vocabulary of {}", self.max_seq, self.vocab));
        }
        let row = 4 * self.max_seq as u64;
        if let Some(s) = self.states.iter().find(|s| s.cache && (row == 0 || s.bytes % row != 0)) {
            return Err(format!("the {} bytes of cache {} are no {} rows", s.bytes, s.name, self.max_seq));
        }
        if self.prefix_unit == Some(0) {
            return Err("a prefix of no rows is no unit".into());
        }
        let mut used = BTreeSet::new();
        for entry in &self.entries {
            self.check_entry(entry, weights, &mut used).map_err(|e| format!("entry {}: {e}", entry.name))?;
        }
        for kind in EntryKind::ALL {
            let rows: Vec<_> = self.entries.iter().filter(|e| e.kind == kind).map(|e| e.rows).collect();
            if rows.len() != rows.iter().collect::<BTreeSet<_>>().len() {
                return Err(format!("two {kind} entries have the same number of rows"));
            }
        }
        // A step and the head that follows it are one submit: their parameters are there at the same time.
        let (steps, heads): (Vec<_>, Vec<_>) = self.entries.iter().partition(|e| e.kind == EntryKind::Step);
        let of = |entries: &[&Entry]| entries.iter().flat_map(|e| e.inputs.clone()).collect::<BTreeSet<Range>>();
        let heads = of(&heads);
        if of(&steps).iter().any(|s| heads.iter().any(|h| overlap(*s, *h))) {
            return Err("the parameters of a step are also those of a head".into());
        }
        if !self.entries.iter().any(|e| e.kind == EntryKind::Step) {
            return Err("it has no step entry".into());
        }
        let ranges: Vec<Range> = used.into_iter().collect();
        match ranges.windows(2).find(|w| w[0].offset + w[0].bytes > w[1].offset) {
            Some(w) => Err(format!("weights {:?} and {:?} overlap", w[0], w[1])),
            None => Ok(()),
        }
    }

    /// Checks a plan against the verified program that it was made from: the same entries over the same states, and every
    /// dispatch with weights and states of its own node.
    ///
    /// # Errors
    /// The first thing that the two say differently.
    pub fn check_program(&self, module: &Module) -> Result<(), String> {
        let states = module.states.iter().map(|(_, s)| {
            let bytes = s.ty.bytes().and_then(|b| u64::try_from(b).ok()?.checked_next_multiple_of(4));
            (s.name.as_str(), bytes.unwrap_or(0), s.ty.dims.len() == 3)
        });
        if !states.eq(self.states.iter().map(|s| (s.name.as_str(), s.bytes, s.cache))) {
            return Err("its states are not those of the program".into());
        }
        if hidden_state(module).map(Id::index) != self.hidden {
            return Err("its hidden rows are not in the state of the program's".into());
        }
        let caches = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 3);
        if caches.map(|(_, s)| s.ty.dims[0].fixed()).any(|rows| rows != Some(self.max_seq)) {
            return Err(format!("it has {} cache rows, unlike the program", self.max_seq));
        }
        let unit = |op: &Op| if let Op::CachedAttention { mask, .. } = op { Some(mask.prefix_unit()) } else { None };
        let mut units = module.graphs.iter().flat_map(|g| &g.nodes).filter_map(|n| unit(&n.op));
        if units.any(|unit| unit != self.prefix_unit) {
            return Err("its mask is not that of the program".into());
        }
        if self.entries.len() != module.graphs.len() {
            return Err(format!("it has {} entries, the program {}", self.entries.len(), module.graphs.len()));
        }
        for (entry, graph) in self.entries.iter().zip(&module.graphs) {
            self.check_graph(entry, module, graph).map_err(|e| format!("entry {}: {e}", entry.name))?;
        }
        Ok(())
    }

    fn check_graph(&self, entry: &Entry, module: &Module, graph: &Graph) -> Result<(), String> {
        let found = dlx_ir::Entry::of(graph).map_err(|e| format!("graph @{} {e}", graph.name))?;
        let kind = found.kind;
        if entry.name != graph.name || (entry.kind, entry.rows) != (kind, found.rows) {
            return Err(format!("graph @{} of the program is another", graph.name));
        }
        let dim = |v: &dlx_ir::ValueId, i: usize| graph.values[*v].ty.dims.get(i).and_then(|d| d.fixed());
        let vocab = graph.results.first().and_then(|r| dim(r, 1));
        if kind == EntryKind::Logits && vocab != Some(self.vocab) {
            return Err(format!("a vocabulary of {}, unlike the program", self.vocab));
        }
        if let Some((_, v)) = graph.values.iter().find(|(_, v)| v.ty.dims.len() > 2) {
            return Err(format!("%{} of the program is {}, not rows", v.name, v.ty));
        }
        let repeats = |n: &&Node| {
            let alike = |i: &Operand| n.outputs.iter().all(|o| graph.values[*o].ty == *module.operand_type(graph, *i));
            matches!(n.op, Op::Add {} | Op::Mul {}) && !n.inputs.iter().all(alike)
        };
        if let Some(node) = graph.nodes.iter().find(repeats) {
            return Err(format!("{}: an operand is not of the result's type", module.node_text(graph, node)));
        }
        for (i, dispatch) in entry.dispatches.iter().enumerate() {
            let node = graph.nodes.get(dispatch.node);
            let inputs = node.map(|n| &n.inputs[..]).ok_or_else(|| format!("dispatch {i}: there is no such node"))?;
            for binding in &dispatch.bindings {
                let own = match binding {
                    Binding::Weight(r) => {
                        inputs.iter().filter_map(|o| o.weight()).any(|w| match module.weights[w].def {
                            WeightDef::Stored { offset, bytes, .. } => {
                                r.offset >= offset
                                    && r.offset.checked_add(r.bytes) <= offset.checked_add(bytes.next_multiple_of(4))
                            }
                            WeightDef::Source | WeightDef::Literal(_) | WeightDef::Expr(..) => false,
                        })
                    }
                    Binding::State(s) => inputs.iter().filter_map(|o| o.state()).any(|state| state.index() == *s),
                    Binding::Input(_) | Binding::Arena(_) | Binding::Output(_) => true,
                };
                if !own {
                    return Err(format!("dispatch {i}: {binding:?} is no operand of its node"));
                }
            }
        }
        if kind == EntryKind::Step {
            check_values(entry, graph)?;
        }
        Ok(())
    }

    fn check_profile(&self) -> Result<(), String> {
        let Profile { max_binding, max_buffer, max_invocations, max_workgroups, .. } = self.profile;
        let sane = (BIND_ALIGN..=max_buffer).contains(&max_binding) && max_invocations > 0 && max_workgroups > 0;
        if sane { Ok(()) } else { Err(format!("the limits of profile {} make no sense", self.profile.name)) }
    }

    fn check_kernel(&self, kernel: &Kernel) -> Result<(), String> {
        if kernel.bindings.len() > MAX_BINDINGS {
            return Err(format!("{} bindings are too many", kernel.bindings.len()));
        }
        let storage = kernel.bindings.iter().filter(|a| **a != Access::Uniform).count();
        if u32::try_from(storage).map_or(true, |n| n > self.profile.max_storage_buffers) {
            return Err(format!("{storage} storage buffers exceed {}", self.profile.max_storage_buffers));
        }
        match kernel.variants.last() {
            Some(Variant { needs, .. }) if needs.is_empty() => {}
            _ => return Err("there is no variant that runs everywhere".into()),
        }
        for variant in &kernel.variants {
            if variant.shader >= self.shaders.len() {
                return Err(format!("there is no shader {}", variant.shader));
            }
            if variant.groups.iter().any(|g| *g == 0 || *g > self.profile.max_workgroups) {
                return Err(format!("{:?} workgroups exceed {}", variant.groups, self.profile.max_workgroups));
            }
            let all = variant.groups.iter().map(|g| u64::from(*g)).try_fold(1, u64::checked_mul);
            if all.is_none_or(|all| all > MAX_GROUPS) {
                return Err(format!("{:?} workgroups are more than {MAX_GROUPS}", variant.groups));
            }
        }
        Ok(())
    }

    fn check_entry(&self, entry: &Entry, weights: u64, used: &mut BTreeSet<Range>) -> Result<(), String> {
        let rows = u64::try_from(entry.rows).map_err(|_| "too many rows")?;
        if rows == 0 || i32::try_from(rows).is_err() {
            return Err(format!("it has {rows} rows"));
        }
        let call = 4 * CALL_WORDS as u64;
        let (inputs, results): (Vec<u64>, Vec<u64>) = match entry.kind {
            EntryKind::Step => (vec![call, 4 * rows, 4 * rows], vec![]),
            EntryKind::Head => (vec![call, 4 * rows], vec![4 * rows, 12 * rows]),
            EntryKind::Logits => (vec![call, 4 * rows], vec![rows.saturating_mul(4 * self.vocab as u64)]),
        };
        places(&entry.inputs, &inputs, self.inputs).map_err(|e| format!("parameters: {e}"))?;
        places(&entry.results, &results, self.outputs).map_err(|e| format!("results: {e}"))?;
        let mut ran = 0;
        for probe in &entry.values {
            let Range { offset, bytes } = probe.value;
            let row = bytes / rows;
            let fits = offset % 4 == 0 && row > 0 && row % 4 == 0 && row * rows == bytes;
            let ran_before = std::mem::replace(&mut ran, probe.after);
            if !fits || !inside(probe.value, self.arena) || !(ran_before..=entry.dispatches.len()).contains(&ran) {
                return Err(format!("its value %{} is not one", probe.name));
            }
        }
        if entry.first_layer.is_some_and(|first| first >= entry.values.len()) {
            return Err("the value of its self-test is not one".into());
        }
        for (i, dispatch) in entry.dispatches.iter().enumerate() {
            self.check_dispatch(dispatch, weights, used).map_err(|e| format!("dispatch {i}: {e}"))?;
        }
        Ok(())
    }

    fn check_dispatch(&self, dispatch: &Dispatch, weights: u64, used: &mut BTreeSet<Range>) -> Result<(), String> {
        let kernel =
            self.kernels.get(dispatch.kernel).ok_or_else(|| format!("there is no kernel {}", dispatch.kernel))?;
        if kernel.bindings.len() != dispatch.bindings.len() {
            return Err(format!("{} bindings where {} are wanted", dispatch.bindings.len(), kernel.bindings.len()));
        }
        let mut written: BTreeMap<u8, Vec<Range>> = BTreeMap::new();
        for (i, (binding, access)) in dispatch.bindings.iter().zip(&kernel.bindings).enumerate() {
            let wrong = |what: &str| Err(format!("binding {i} ({binding:?} as {access:?}): {what}"));
            let (range, size, allowed, align) = match *binding {
                Binding::Input(r) => (r, self.inputs, *access != Access::ReadWrite, BIND_ALIGN),
                Binding::Arena(r) => (r, self.arena, *access == Access::ReadWrite, BIND_ALIGN),
                Binding::Output(r) => (r, self.outputs, *access == Access::ReadWrite, BIND_ALIGN),
                Binding::Weight(r) => (r, weights, *access == Access::Read, ALIGN as u64),
                Binding::State(s) => match self.states.get(s) {
                    Some(state) => {
                        (Range { offset: 0, bytes: state.bytes }, state.bytes, *access == Access::ReadWrite, BIND_ALIGN)
                    }
                    None => return wrong("there is no such state"),
                },
            };
            if !allowed {
                return wrong("it may not be used so");
            }
            if range.bytes == 0 || range.bytes % 4 != 0 || range.offset % align != 0 || !inside(range, size) {
                return wrong("it lies outside its buffer, or not on a boundary");
            }
            // A uniform buffer holds no more than this on any device.
            let most = if *access == Access::Uniform { 16 << 10 } else { self.profile.max_binding };
            if range.bytes > most {
                return wrong(&format!("it is larger than {most} bytes"));
            }
            match *binding {
                Binding::Weight(r) => drop(used.insert(r)),
                Binding::Arena(r) => written.entry(0).or_default().push(r),
                Binding::Output(r) => written.entry(1).or_default().push(r),
                // States by number, as ranges of one byte.
                Binding::State(s) => written.entry(2).or_default().push(Range { offset: s as u64, bytes: 1 }),
                Binding::Input(_) => {}
            }
        }
        for ranges in written.values_mut() {
            ranges.sort_unstable();
            if ranges.windows(2).any(|w| w[0].offset + w[0].bytes > w[1].offset) {
                return Err("it binds the same bytes twice".into());
            }
        }
        Ok(())
    }
}

/// Whether the values of a step are those that the nodes of its graph compute, each as soon as its node has run.
fn check_values(entry: &Entry, graph: &Graph) -> Result<(), String> {
    let (mut probes, mut after) = (entry.values.iter(), 0);
    for (i, node) in graph.nodes.iter().enumerate() {
        after += entry.dispatches[after..].iter().take_while(|d| d.node == i).count();
        for value in node.outputs.iter().map(|o| &graph.values[*o]).filter(|v| v.ty.dtype == DType::F32) {
            let found = probes.next().map(|p| (p.name.as_str(), p.after, usize::try_from(p.value.bytes).ok()));
            if found != Some((value.name.as_str(), after, value.ty.bytes())) {
                return Err(format!("%{} of the program is not where its plan looks for it", value.name));
            }
        }
    }
    match probes.next() {
        Some(probe) => Err(format!("%{} is no value of the program", probe.name)),
        None => Ok(()),
    }
}

/// Whether ranges have the sizes wanted and lie apart in a buffer.
fn places(ranges: &[Range], wanted: &[u64], size: u64) -> Result<(), String> {
    if ranges.len() != wanted.len() {
        return Err(format!("{} ranges where {} are wanted", ranges.len(), wanted.len()));
    }
    for (range, wanted) in ranges.iter().zip(wanted) {
        if range.bytes < *wanted || range.bytes % 4 != 0 || range.offset % BIND_ALIGN != 0 || !inside(*range, size) {
            return Err(format!("{range:?} does not hold {wanted} bytes of a buffer of {size}"));
        }
    }
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|w| w[0].offset + w[0].bytes > w[1].offset) {
        Some(w) => Err(format!("{:?} and {:?} overlap", w[0], w[1])),
        None => Ok(()),
    }
}

/// Whether two ranges that lie in a buffer share bytes.
fn overlap(a: Range, b: Range) -> bool {
    a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

fn inside(range: Range, size: u64) -> bool {
    range.offset.checked_add(range.bytes).is_some_and(|end| end <= size)
}

#[cfg(test)]
mod tests;
