//! Predicts how long the entries of a CPU program take: counts of the program times limits of a machine.
//!
//! Invariant: nothing here has run the program. A product takes what its elements take on this machine at that number of
//! rows, from memory if an entry reads more than the caches hold; its rows are prepared first, and what stands behind it
//! (SwiGLU, a head's statistics) comes on top, as do the parallel regions. Attention takes its multiply-adds and something
//! per query row; everything else goes with the numbers that it makes.

use dlx_ir::{Cost, DType, EntryKind, Error, Graph, Mask, Module, Node, Op, Post, SpanRows, attended, matrices};

use super::limits::{Limits, Source};
use super::measure::FAR_WRITE;

/// What a call of a node has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Bytes of matrices that it reads.
    pub weight_bytes: u64,
    /// Bytes of caches that it reads or writes.
    pub cache_bytes: u64,
    /// Bytes of values that it reads and writes.
    pub value_bytes: u64,
    /// Multiplications and additions of matrix products and attention.
    pub operations: u64,
}

impl Work {
    /// Bytes of any kind.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes).saturating_add(self.value_bytes)
    }

    /// Operations per byte.
    pub fn intensity(&self) -> f64 {
        self.operations as f64 / self.bytes().max(1) as f64
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Work) {
        self.weight_bytes = self.weight_bytes.saturating_add(other.weight_bytes);
        self.cache_bytes = self.cache_bytes.saturating_add(other.cache_bytes);
        self.value_bytes = self.value_bytes.saturating_add(other.value_bytes);
        self.operations = self.operations.saturating_add(other.operations);
    }
}

/// Seconds that a call of a node is predicted to take, and what would remain of them if only one thing took time.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Estimate {
    /// Predicted.
    pub seconds: f64,
    /// Reading weights and caches.
    pub memory: f64,
    /// Computing, with everything in a cache.
    pub compute: f64,
    /// Parallel regions.
    pub overhead: f64,
}

impl Estimate {
    /// What takes longest.
    pub fn bound(&self) -> Bound {
        if self.overhead > self.memory.max(self.compute) {
            Bound::Overhead
        } else if self.memory > self.compute {
            Bound::Memory
        } else {
            Bound::Compute
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Estimate) {
        self.seconds += other.seconds;
        self.memory += other.memory;
        self.compute += other.compute;
        self.overhead += other.overhead;
    }
}

/// What bounds a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// Reading weights and caches.
    Memory,
    /// Arithmetic.
    Compute,
    /// Handing work to threads.
    Overhead,
}

impl Bound {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
            Bound::Overhead => "overhead",
        }
    }
}

/// A program, and sizes of it that every call depends on.
pub struct Program<'m> {
    /// The module.
    pub module: &'m Module,
    /// Its mask, if it has attention.
    pub mask: Option<Mask>,
    step_weights: u64,
    head_weights: u64,
    cache_row: u64,
}

/// A graph that runs a call: which rows of which spans.
#[derive(Clone, Copy)]
pub struct Call<'c> {
    /// The graph.
    pub graph: &'c Graph,
    /// How many rows.
    pub rows: usize,
    /// The spans of a step; nothing for heads.
    pub spans: &'c [SpanRows],
}

impl<'m> Program<'m> {
    /// The sizes of a program.
    ///
    /// # Errors
    /// When it lacks a kind of entry, or a size is not known.
    pub fn new(module: &'m Module) -> Result<Self, Error> {
        let sum = |kind: EntryKind, of: fn(&Cost) -> u64| {
            let nodes = graph_of(module, kind, 1).map(|g| (g, &g.nodes));
            let (graph, nodes) = nodes.ok_or_else(|| Error::new("program", format!("it has no {kind} entry")))?;
            let costs = nodes.iter().map(|n| cost(module, graph, n).map(|c| of(&c)));
            costs.sum::<Result<u64, Error>>()
        };
        let attends = |c: &Cost| if c.key_products > 0 { c.cache_bytes } else { 0 };
        let (step_weights, cache_row) = (sum(EntryKind::Step, |c| c.weight_bytes)?, sum(EntryKind::Step, attends)?);
        let mask = module.graphs.iter().flat_map(|g| &g.nodes).find_map(|n| mask_of(&n.op));
        Ok(Program { module, mask, step_weights, head_weights: sum(EntryKind::Head, |c| c.weight_bytes)?, cache_row })
    }

    /// The graph of a kind that runs that many rows: the smallest that holds them, else the largest.
    pub fn graph(&self, kind: EntryKind, rows: usize) -> Option<&'m Graph> {
        graph_of(self.module, kind, rows)
    }

    /// Bytes that a pass with these spans reads in a step and its head.
    pub fn working_set(&self, spans: &[SpanRows]) -> u64 {
        let rows: u64 = spans.iter().map(|s| self.attended_rows(s)).sum();
        self.step_weights.saturating_add(self.head_weights).saturating_add(self.cache_row.saturating_mul(rows))
    }

    /// Cache rows that the rows of a span attend, each counted once.
    fn attended_rows(&self, span: &SpanRows) -> u64 {
        let last = span.at.saturating_add(span.rows.len()).saturating_sub(1);
        let end = self.mask.map_or(0, |mask| mask.end(last).min(span.visible));
        end.saturating_sub(span.from) as u64
    }

    /// What a node of a call has to do.
    ///
    /// # Errors
    /// When a size is not known.
    pub fn work(&self, call: &Call<'_>, node: &Node) -> Result<Work, Error> {
        let cost = cost(self.module, call.graph, node)?;
        let rows = call.rows as u64;
        let attends: u64 = match mask_of(&node.op) {
            Some(mask) => call.spans.iter().map(|s| attended(mask, s)).sum(),
            None => 0,
        };
        let cache_rows =
            if cost.key_products > 0 { call.spans.iter().map(|s| self.attended_rows(s)).sum() } else { rows };
        Ok(Work {
            weight_bytes: cost.weight_bytes,
            cache_bytes: cost.cache_bytes.saturating_mul(cache_rows),
            value_bytes: cost.row_bytes.saturating_mul(rows),
            operations: cost.products(rows, attends).saturating_mul(2),
        })
    }

    /// How long a node of a call takes, when a pass reads `working_set` bytes again and again.
    ///
    /// # Errors
    /// When the machine's limits do not say it, or the node is none that CPU programs have.
    pub fn estimate(&self, limits: &Limits, call: &Call<'_>, node: &Node, working_set: u64) -> Result<Estimate, Error> {
        let place = |e: Error| Error::new(self.module.node_text(call.graph, node), e.to_string());
        let source = if working_set > limits.cache_bytes() { Source::Memory } else { Source::Cache };
        let (cost, work) = (cost(self.module, call.graph, node)?, self.work(call, node)?);
        let region = 1e-6 * limits.region_us;
        let memory = 1e-9 * (work.weight_bytes + work.cache_bytes) as f64 / limits.read_gbs(working_set);
        let values = |op: &str, numbers: u64| Ok(limits.value(op, call.rows)? * numbers as f64 * call.rows as f64);
        let estimate = match &node.op {
            Op::Linear { post: Post::SwiGlu, .. } => {
                self.products(limits, call, node, source).and_then(|p| Ok(p.with(values("swiglu", cost.row_values)?)))
            }
            Op::Linear { .. } => self.products(limits, call, node, source),
            Op::HeadStats { .. } => {
                let head = node.inputs.get(1).map(|head| self.module.operand_type(call.graph, *head));
                let logits = head.and_then(|ty| ty.dims.first()?.fixed()).unwrap_or(0) as u64;
                self.products(limits, call, node, source).and_then(|p| Ok(p.with(values("statistics", logits)?)))
            }
            Op::CachedAttention { head_dim, mask } => {
                self.attention(limits, call, node, *head_dim, *mask, source, &cost)
            }
            Op::KvWrite {} => {
                let op = if source == Source::Memory { FAR_WRITE } else { "kv_write" };
                values(op, cost.row_bytes / 4).map(Part::both)
            }
            Op::StoreRows {} | Op::TakeRows {} => values("scale", cost.row_bytes / 8).map(Part::both),
            op => values(op.name(), cost.row_values).map(Part::both),
        };
        let Part { seconds, compute, regions } = estimate.map_err(place)?;
        let overhead = regions * region;
        Ok(Estimate { seconds: seconds + overhead, memory, compute, overhead })
    }

    /// Products of a call's rows, after they have been prepared once for each form that a weight reads.
    fn products(&self, limits: &Limits, call: &Call<'_>, node: &Node, source: Source) -> Result<Part, Error> {
        let (mut part, mut forms) = (Part { regions: 2.0, ..Part::default() }, Vec::new());
        for &matrix in matrices(node).unwrap_or_default() {
            let ty = self.module.operand_type(call.graph, matrix);
            let [n, k] = ty.shape().as_deref().and_then(|s| <[usize; 2]>::try_from(s).ok()).unwrap_or_default();
            let elements = n as f64 * k as f64;
            part.seconds += elements * limits.element(ty.dtype, call.rows, source)?;
            part.compute += elements * limits.element(ty.dtype, call.rows, Source::Cache)?;
            let form = matches!(ty.dtype, DType::Quant(_));
            if !forms.contains(&form) {
                forms.push(form);
                part = part.with(limits.prepare(ty.dtype, call.rows)? * k as f64 * call.rows as f64);
            }
        }
        Ok(part)
    }

    #[allow(clippy::too_many_arguments, reason = "a node, its call and the machine")]
    fn attention(
        &self,
        limits: &Limits,
        call: &Call<'_>,
        node: &Node,
        head_dim: u32,
        mask: Mask,
        source: Source,
        cost: &Cost,
    ) -> Result<Part, Error> {
        let cache = node.inputs.get(1).and_then(|k| k.state()).map(|k| &self.module.states[k].ty);
        let unknown = || Error::new("attention", "its cache has no known shape");
        let cache = cache.ok_or_else(unknown)?;
        let kv_heads = cache.dims.get(1).and_then(|d| d.fixed()).filter(|h| *h > 0).ok_or_else(unknown)?;
        let heads = (cost.key_products / 2).checked_div(u64::from(head_dim)).unwrap_or(0);
        let mut part = Part::default();
        for span in call.spans {
            let pairs = span.rows.len() as f64 * heads as f64;
            let products = cost.key_products as f64 * attended(mask, span) as f64;
            let rows = span.rows.len() * (heads as usize / kv_heads).max(1);
            let seconds = |source| {
                let (product, row) = limits.attention(cache.dtype, rows, source)?;
                Ok::<_, Error>(products * product + pairs * row)
            };
            part.seconds += seconds(source)?;
            part.compute += seconds(Source::Cache)?;
            part.regions += 1.0;
        }
        Ok(part)
    }
}

/// Parts of an estimate before its regions have a time.
#[derive(Clone, Copy, Default)]
struct Part {
    seconds: f64,
    compute: f64,
    regions: f64,
}

impl Part {
    /// Work that takes as long wherever its operands come from.
    fn both(seconds: f64) -> Self {
        Part { seconds, compute: seconds, regions: 0.0 }
    }

    fn with(self, seconds: f64) -> Self {
        Part { seconds: self.seconds + seconds, compute: self.compute + seconds, ..self }
    }
}

fn mask_of(op: &Op) -> Option<Mask> {
    if let Op::CachedAttention { mask, .. } = op { Some(*mask) } else { None }
}

fn cost(module: &Module, graph: &Graph, node: &Node) -> Result<Cost, Error> {
    let unknown = || Error::new(module.node_text(graph, node), "its cost is not known: a size is a name, or too large");
    Cost::of(module, graph, node).ok_or_else(unknown)
}

fn graph_of(module: &Module, kind: EntryKind, rows: usize) -> Option<&Graph> {
    let size = |g: &Graph| dlx_ir::Entry::of(g).ok().filter(|e| e.kind == kind).map(|e| e.rows);
    let entries = || module.graphs.iter().filter_map(|g| Some((size(g)?, g)));
    let holds = entries().filter(|(size, _)| *size >= rows).min_by_key(|(size, _)| *size);
    holds.or_else(|| entries().max_by_key(|(size, _)| *size)).map(|(_, g)| g)
}

/// Every matrix in `weights` and every cache in `cache`, if given: the program that another compile would make. Only what
/// predictions read of it is right.
///
/// # Errors
/// When a matrix has no packed form in that format.
pub fn changed(module: &Module, weights: Option<DType>, cache: Option<DType>) -> Result<Module, Error> {
    let mut module = module.clone();
    let ids: Vec<_> = module.weights.iter().map(|(id, _)| id).collect();
    for id in ids {
        let weight = &mut module.weights[id];
        let shape = weight.ty.shape();
        let (Some(to), Some(&[n, k]), Some(dlx_ir::layout::N16)) =
            (weights, shape.as_deref(), weight.ty.layout.as_deref())
        else {
            continue;
        };
        let bytes = dlx_ir::layout::packed_bytes(to, n, k)
            .ok_or_else(|| Error::new(format!("@{}", weight.name), format!("cannot be stored as {to}")))?;
        weight.ty.dtype = to;
        if let dlx_ir::WeightDef::Stored { bytes: stored, .. } = &mut weight.def {
            *stored = bytes as u64;
        }
    }
    let ids: Vec<_> = module.states.iter().map(|(id, _)| id).collect();
    for id in ids {
        let state = &mut module.states[id];
        if let (Some(to), 3) = (cache, state.ty.dims.len()) {
            state.ty.dtype = to;
        }
    }
    Ok(module)
}

#[cfg(test)]
mod tests;
