//! From a program to its plan: graphs are lowered, memory is placed, kernels are written once and validated.

use std::collections::BTreeMap;

use dlx_ir::{DType, EntryKind, Error, Graph, Id, Module, Op, VerifiedModule, first_layer, hidden_state};
use dlx_runtime::wgpu::plan::{
    BIND_ALIGN, Binding, CALL_WORDS, Dispatch, Entry, Kernel, Plan, Probe, Profile, Range, State, Variant,
};

use super::Job;
use super::lower::{Arg, Step, lower};
use super::memory::{Places, place, value_bytes};
use super::source::{Source, check};

/// Plans a program whose weights are stored, for devices with at least the limits of `profile`.
///
/// # Errors
/// A graph that is not an entry, a node that no kernel runs, or something that exceeds a limit, with both numbers.
pub fn plan(module: &VerifiedModule, profile: &Profile) -> Result<Plan, Error> {
    let mut planner =
        Planner { module, profile, shaders: BTreeMap::new(), kernels: BTreeMap::new(), plan: empty(profile) };
    planner.states()?;
    planner.plan.hidden = hidden_state(module).map(Id::index);
    for graph in &module.graphs {
        let entry = planner.entry(graph)?;
        planner.plan.entries.push(entry);
    }
    let p = &mut planner.plan;
    for (what, bytes) in [("activations", p.arena), ("results", p.outputs)] {
        if bytes > profile.max_buffer {
            let what =
                format!("{what} need {bytes} bytes, and profile `{}` allows {}", profile.name, profile.max_buffer);
            return Err(Error::new("wgpu plan", what).help("compile with smaller --buckets, or for another --profile"));
        }
    }
    Ok(planner.plan)
}

fn empty(profile: &Profile) -> Plan {
    Plan {
        profile: profile.clone(),
        shaders: Vec::new(),
        kernels: Vec::new(),
        inputs: 0,
        arena: 0,
        outputs: 0,
        states: Vec::new(),
        hidden: None,
        entries: Vec::new(),
        max_seq: 0,
        prefix_unit: Some(1),
        vocab: 0,
    }
}

struct Planner<'m> {
    module: &'m Module,
    profile: &'m Profile,
    /// Shaders by their sources, kernels by what they are.
    shaders: BTreeMap<Source, usize>,
    kernels: BTreeMap<(Vec<usize>, [u32; 3]), usize>,
    plan: Plan,
}

impl Planner<'_> {
    fn states(&mut self) -> Result<(), Error> {
        for (_, s) in self.module.states.iter() {
            let place = || format!("state @{}", s.name);
            let help = "compile with --kv f16 or f32";
            let bytes =
                s.ty.bytes().ok_or_else(|| Error::new(place(), format!("{} is not kept on wgpu", s.ty)).help(help))?;
            let bytes = (bytes as u64).next_multiple_of(4);
            self.bindable(&place(), bytes, "compile with a smaller --max-seq, or for another --profile")?;
            let cache = s.ty.dims.len() == 3;
            self.plan.states.push(State { name: s.name.clone(), bytes, cache });
            if let (true, Some(rows)) = (cache, s.ty.dims[0].fixed()) {
                if self.plan.max_seq != 0 && self.plan.max_seq != rows {
                    return Err(Error::new(place(), "has another length than the caches before it"));
                }
                self.plan.max_seq = rows;
            }
        }
        for node in self.module.graphs.iter().flat_map(|g| &g.nodes) {
            if let Op::CachedAttention { mask, .. } = node.op {
                self.plan.prefix_unit = mask.prefix_unit();
            }
        }
        Ok(())
    }

    fn bindable(&self, place: &str, bytes: u64, help: &str) -> Result<(), Error> {
        let (limit, name) = (self.profile.max_binding, &self.profile.name);
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::new(place, format!("has {bytes} bytes, and profile `{name}` binds {limit}")).help(help))
    }

    fn entry(&mut self, graph: &Graph) -> Result<Entry, Error> {
        let place_of = || format!("graph @{}", graph.name);
        let entry = dlx_ir::Entry::of(graph).map_err(|e| Error::new(place_of(), e))?;
        let (kind, rows) = (entry.kind, entry.rows);
        let vectors = if kind == EntryKind::Step { 2 } else { 1 };
        if kind == EntryKind::Logits {
            let width = graph.results.first().and_then(|r| graph.values[*r].ty.dims.last()?.fixed());
            self.plan.vocab = width.unwrap_or(0);
        }
        let lowered = lower(self.module, graph, rows)?;
        let places = place(graph, &lowered.temporaries);
        self.plan.arena = self.plan.arena.max(places.bytes);
        let inputs = self.inputs(kind, rows, vectors);
        let mut at = 0;
        let results: Vec<Range> = graph.results.iter().map(|r| packed(&mut at, value_bytes(graph, *r))).collect();
        self.plan.outputs = self.plan.outputs.max(at);
        let mut dispatches = Vec::with_capacity(lowered.steps.len());
        for Step { job, node, args } in lowered.steps {
            let text = || format!("graph @{}: {}", graph.name, self.module.node_text(graph, &graph.nodes[node]));
            let mut bindings = vec![Binding::Input(inputs[0])];
            for arg in args {
                let binding = bound(graph, arg, &inputs, &results, &places);
                let binding = binding.ok_or_else(|| Error::new(text(), "reads a parameter that it cannot"))?;
                if let Binding::Arena(r) | Binding::Output(r) | Binding::Weight(r) = binding {
                    let weight = matches!(binding, Binding::Weight(_));
                    let help = if weight {
                        "run the shard-weights pass with this limit, or compile for another --profile"
                    } else {
                        "compile with smaller --buckets, or for another --profile"
                    };
                    let what = if weight { "a weight or shard of" } else { "a value of" };
                    self.bindable(&format!("{}: {what} it", text()), r.bytes, help)?;
                }
                bindings.push(binding);
            }
            let kernel = self.kernel(job).map_err(|e| Error::new(text(), e).help("compile for another --profile"))?;
            dispatches.push(Dispatch { kernel, node, bindings });
        }
        let (mut values, mut first) = (Vec::new(), None);
        if kind == EntryKind::Step {
            values = probes(graph, &dispatches, &places);
            let layer = first_layer(graph).map(|(_, v)| &graph.values[v].name);
            first = values.iter().position(|p| Some(&p.name) == layer);
        }
        Ok(Entry { name: graph.name.clone(), kind, rows, inputs, results, dispatches, values, first_layer: first })
    }

    /// Ranges of an entry's parameters; those of one kind share bytes, and kinds do not.
    fn inputs(&mut self, kind: EntryKind, rows: usize, vectors: usize) -> Vec<Range> {
        let entries = || self.module.graphs.iter().filter_map(|g| dlx_ir::Entry::of(g).ok());
        let largest = |kind| {
            let rows = entries().filter(|e| e.kind == kind).map(|e| e.rows).max().unwrap_or(0) as u64;
            (4 * rows).next_multiple_of(BIND_ALIGN)
        };
        let [step, head, logits] = EntryKind::ALL.map(largest);
        let call_bytes = 4 * CALL_WORDS as u64;
        let call = call_bytes.next_multiple_of(BIND_ALIGN);
        let mut at = match kind {
            EntryKind::Step => 0,
            EntryKind::Head => call + 2 * step,
            EntryKind::Logits => 2 * call + 2 * step + head,
        };
        self.plan.inputs = 3 * call + 2 * step + head + logits;
        let mut ranges = vec![packed(&mut at, call_bytes)];
        ranges.extend((0..vectors).map(|_| packed(&mut at, 4 * rows as u64)));
        ranges
    }

    /// The kernel of a job, written when first needed.
    fn kernel(&mut self, job: Job) -> Result<usize, String> {
        let limit = self.profile.max_workgroups;
        let groups = job.groups.map(|g| u32::try_from(g).unwrap_or(u32::MAX));
        if let Some(g) = groups.iter().find(|g| **g > limit) {
            return Err(format!("a kernel needs {g} workgroups, and profile `{}` allows {limit}", self.profile.name));
        }
        let storage = job.bindings.len() - 1;
        if storage > self.profile.max_storage_buffers as usize {
            let limit = self.profile.max_storage_buffers;
            return Err(format!(
                "a kernel binds {storage} buffers, and profile `{}` allows {limit}",
                self.profile.name
            ));
        }
        let mut variants = Vec::with_capacity(job.variants.len());
        for (features, source) in job.variants {
            let shader = match self.shaders.get(&source) {
                Some(index) => *index,
                None => {
                    let text = source.text()?;
                    check(&text, features, self.profile)?;
                    self.plan.shaders.push(text);
                    self.shaders.insert(source, self.plan.shaders.len() - 1);
                    self.plan.shaders.len() - 1
                }
            };
            variants.push(Variant { needs: features.to_vec(), shader, groups });
        }
        let key = (variants.iter().map(|v| v.shader).collect(), groups);
        let next = self.plan.kernels.len();
        let index = *self.kernels.entry(key).or_insert(next);
        if index == next {
            let kernel = Kernel { role: job.role.into(), shape: job.shape, bindings: job.bindings, variants };
            self.plan.kernels.push(kernel);
        }
        Ok(index)
    }
}

/// The next aligned range of a buffer.
fn packed(at: &mut u64, bytes: u64) -> Range {
    let range = Range { offset: *at, bytes };
    *at = (*at + bytes).next_multiple_of(BIND_ALIGN);
    range
}

fn bound(graph: &Graph, arg: Arg, inputs: &[Range], results: &[Range], places: &Places) -> Option<Binding> {
    Some(match arg {
        Arg::Weight(range) => Binding::Weight(range),
        Arg::State(s) => Binding::State(s.index()),
        Arg::Temporary(t) => Binding::Arena(places.temporaries[t]),
        Arg::Value(v) => match places.values[v.index()] {
            Some(range) => Binding::Arena(range),
            None => match graph.results.iter().position(|r| *r == v) {
                Some(i) => Binding::Output(results[i]),
                None => {
                    let param = graph.params.iter().position(|p| *p == v)?;
                    Binding::Input(*inputs.get(1 + param)?)
                }
            },
        },
    })
}

/// Where the f32 values of a graph can be seen, in order.
fn probes(graph: &Graph, dispatches: &[Dispatch], places: &Places) -> Vec<Probe> {
    let (mut probes, mut after) = (Vec::new(), 0);
    for (i, node) in graph.nodes.iter().enumerate() {
        after += dispatches[after..].iter().take_while(|d| d.node == i).count();
        for out in node.outputs.iter().filter(|o| graph.values[**o].ty.dtype == DType::F32) {
            let name = graph.values[*out].name.clone();
            probes.extend(places.values[out.index()].map(|value| Probe { name, after, value }));
        }
    }
    probes
}
