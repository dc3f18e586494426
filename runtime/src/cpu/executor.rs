//! The CPU executor: runs a verified program over packed weights, states and one arena.
//!
//! Invariant: everything that a kernel asserts has been checked by `ir::verify` or in [`CpuExecutor::new`], so no
//! program that loads can panic or read outside its buffers; slots that are live together are disjoint (verified).
//! Nothing is allocated inside a step.
//!
//! A call with fewer rows than its bucket computes only those: all other ops work row by row, and attention reads the
//! caches, whose rows at and above `visible` are nobody's business.
#![allow(unsafe_code, reason = "values of one arena are read and written as disjoint slices")]

use super::ahead::Ahead;
use super::arena::{Arena, Scratch, Slot, StateBuffer};
use super::error::{LoadError, bad};
use super::program::{Code, Instr, Loc, Weights};
use super::{
    AttentionShape, Ctx, Epilogue, Input, Isa, Kernels, MAX_WEIGHTS, Norm, Pool, add, attention, embed, head_stats,
    kernels, kv_write, linear, memory, mul, proof, rms_norm, rope, rope_table, scale, silu,
};
use crate::exec::{
    CacheRow, ExecError, Executor, HIDDEN, Limits, ReadRow, RowStats, See, Span, common_multiple, rows_of,
};
use crate::mapped::Mapped;
use crate::memory::Budget;
use dlx_ir::{Cost, EntryKind, Graph, Id, MAX_SPANS, Op, Post, SpanRows, VerifiedModule, hidden_state};
use std::ops::Range;
use std::sync::Arc;

/// How to load a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Number of threads; 0 takes as many as there are cores.
    pub threads: usize,
    /// Instruction set; `None` takes `DLX_ISA` or the best that the CPU has.
    pub isa: Option<Isa>,
}

/// Runs a program on the CPU.
pub struct CpuExecutor {
    kernels: &'static Kernels,
    pool: Pool,
    weights: Weights,
    pub(super) entries: Vec<Code>,
    step_rows: Vec<usize>,
    arena: Arena,
    pub(super) states: Vec<StateBuffer>,
    /// Which of them keeps the hidden rows of the last step.
    pub(super) hidden: Option<usize>,
    scratch: Scratch,
    stats: Vec<RowStats>,
    max_seq: usize,
    vocab: usize,
    /// Rows in whose multiples a prefix can be copied to another slot.
    prefix_unit: Option<usize>,
    slots: usize,
    /// Spans of the last step.
    spans: Vec<SpanRows>,
    /// Rows of the last step.
    pub(super) live: usize,
    /// Memory that it may take, if that is limited.
    budget: Option<Budget>,
}

/// A node that has just run.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its op.
    pub op: &'a Op,
    /// Name of its first result; empty for an op without.
    pub name: &'a str,
    /// Live rows of its first result if that is f32; else empty.
    pub value: &'a [f32],
    /// Its further results, which are f32, by name.
    pub others: &'a [(&'a str, &'a [f32])],
    /// What it costs.
    pub cost: Cost,
}

/// Sees every node as it has run.
pub type Observe<'o> = &'o mut dyn FnMut(Seen<'_>);

/// Takes the results of one head call: the threads, where the results are, and which of the rows asked for they belong to.
type Done<'d> = &'d mut dyn FnMut(Ctx<'_>, &Arena, &[Slot], Range<usize>);

impl CpuExecutor {
    /// Loads a program whose weights are `stored` in `file` from byte `base` on.
    ///
    /// # Errors
    /// A program that this executor cannot run, weights outside the file, or buffers that do not fit memory.
    pub fn new(
        module: &VerifiedModule,
        file: Arc<Mapped>,
        section: Range<usize>,
        options: CpuOptions,
    ) -> Result<Self, LoadError> {
        let isa = options.isa.map_or_else(Isa::from_env, Ok).map_err(LoadError::Isa)?;
        let kernels = kernels(isa).map_err(LoadError::Isa)?;
        let pool = Pool::new(options.threads);
        let pool = pool.map_err(|e| LoadError::Threads { threads: options.threads, reason: e.to_string() })?;
        proof::weights(module).map_err(bad)?;
        let weights = Weights::load(module, file, section)?;
        let mut entries = Vec::with_capacity(module.graphs.len());
        for graph in &module.graphs {
            entries.push(Code::load(module, graph).map_err(|e| bad(format!("graph @{}: {e}", graph.name)))?);
        }
        proof::program(module).map_err(bad)?;
        let caches = module.states.iter().map(|(_, s)| s).filter(|s| s.ty.dims.len() == 3);
        let mut max_seq: Vec<usize> = caches.filter_map(|s| s.ty.dims[0].fixed()).collect();
        max_seq.dedup();
        let [max_seq] = max_seq[..] else { return Err(bad("it needs KV caches of one length".into())) };
        let mut states = Vec::with_capacity(module.states.len());
        for (_, s) in module.states.iter() {
            states.push(StateBuffer::new(s)?);
        }
        let arena_bytes = module.graphs.iter().map(Graph::arena_bytes).max().unwrap_or(0);
        let arena = Arena::new(usize::try_from(arena_bytes).unwrap_or(usize::MAX))?;
        let vocab = entries.iter().find(|e| e.entry.kind == EntryKind::Logits).map(|e| e.results[0].width);
        let vocab = vocab.ok_or_else(|| bad("it has no logits entry".into()))?;
        let mut step_rows: Vec<usize> =
            entries.iter().filter(|e| e.entry.kind == EntryKind::Step).map(|e| e.entry.rows).collect();
        step_rows.sort_unstable();
        if step_rows.is_empty() {
            return Err(bad("it has no step entry".into()));
        }
        let largest = step_rows.last().copied().unwrap_or(0);
        if states.iter().any(|s: &StateBuffer| s.is_rows() && s.rows() < largest) {
            return Err(bad("its hidden states have fewer rows than its largest step".into()));
        }
        if let Some(head) = entries.iter().find(|e| e.entry.kind != EntryKind::Step && e.entry.rows > largest) {
            return Err(bad(format!("a head of {} rows, but its largest step has {largest}", head.entry.rows)));
        }
        let code = entries.iter().flat_map(|e: &Code| &e.code);
        let mut tables = code.filter(|i| matches!(i.op, Op::Embed {})).filter_map(|i| weights.matrix(i.inputs[1]));
        if vocab < 2 || tables.any(|t| t.n() < vocab) {
            return Err(bad("its embedding has fewer rows than its logits".into()));
        }
        let attends = entries.iter().flat_map(|e| &e.code).find_map(|i| match i.op {
            Op::CachedAttention { mask, .. } => Some(mask.prefix_unit()),
            _ => None,
        });
        let mut executor = CpuExecutor {
            kernels,
            pool,
            weights,
            entries,
            step_rows,
            arena,
            states,
            hidden: hidden_state(module).map(Id::index),
            scratch: Scratch::new(0)?,
            stats: Vec::new(),
            max_seq,
            vocab,
            // Without attention no row depends on another.
            prefix_unit: attends.unwrap_or(Some(1)),
            slots: 1,
            spans: Vec::with_capacity(MAX_SPANS),
            live: 0,
            budget: None,
        };
        let words = memory::scratch_words(module, executor.threads())?;
        executor.reserve_scratch(words)?;
        Ok(executor)
    }

    /// From now on takes no more memory than a limit allows.
    pub(crate) fn set_budget(&mut self, budget: Budget) {
        self.budget = Some(budget);
    }

    /// From now on lets the pages of weights go as soon as a node has read them: for a few passes over a file that is not to
    /// stay in memory.
    pub fn pass_weights(&mut self) {
        self.weights.passing = true;
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The executor's threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes that the session has reserved besides the mapped weights: those of the states, and those of arena and scratch.
    pub fn session_bytes(&self) -> (usize, usize) {
        (self.states.iter().map(StateBuffer::len).sum(), self.arena.len() + self.scratch.len())
    }

    /// As [`Executor::head`], and shows every value to `observe`.
    ///
    /// # Errors
    /// As [`Executor::head`].
    pub fn head_observed(
        &mut self,
        rows: &[usize],
        out: &mut [RowStats],
        observe: Observe<'_>,
    ) -> Result<(), ExecError> {
        if rows.len() != out.len() {
            return Err(ExecError::Shape(format!("{} rows, but room for {}", rows.len(), out.len())));
        }
        self.run_head(EntryKind::Head, rows, observe, &mut |_, arena, results, range| {
            let best = arena.ints(results[0], range.len());
            let numbers = arena.floats(results[1], range.len());
            for ((o, &best), n) in out[range].iter_mut().zip(best).zip(numbers.chunks_exact(3)) {
                *o = RowStats { best, prob: n[0], margin: n[1], entropy: n[2] };
            }
        })
    }

    /// As [`Executor::logits`], and shows every value to `observe`.
    ///
    /// # Errors
    /// As [`Executor::logits`].
    pub fn logits_observed(&mut self, rows: &[usize], out: &mut [f32], observe: Observe<'_>) -> Result<(), ExecError> {
        let vocab = self.vocab;
        if rows.len().checked_mul(vocab) != Some(out.len()) {
            return Err(ExecError::Shape(format!("{} rows of {vocab} do not fit {}", rows.len(), out.len())));
        }
        self.run_head(EntryKind::Logits, rows, observe, &mut |_, arena, results, range| {
            let logits = arena.floats(results[0], range.len());
            out[range.start * vocab..range.end * vocab].copy_from_slice(logits);
        })
    }

    /// As [`Executor::step`], but stops before node `nodes` of the entry and shows every value to `observe`.
    ///
    /// # Errors
    /// As [`Executor::step`].
    pub fn step_observed(&mut self, spans: &[Span<'_>], nodes: usize, observe: Observe<'_>) -> Result<(), ExecError> {
        let bucket = self.limits().bucket_of(spans)?;
        self.weights.file.intact().map_err(|e| ExecError::File(e.to_string()))?;
        let entry = self.entry(EntryKind::Step, bucket).expect("buckets come from the entries");
        let &[ids, pos, _] = &self.entries[entry].params[..] else { unreachable!("an entry was checked") };
        self.spans.clear();
        self.live = 0;
        for span in spans {
            let rows = self.live..self.live + span.ids.len();
            self.arena.write(ids, rows.start, span.ids);
            self.arena.write(pos, rows.start, span.pos);
            self.live = rows.end;
            let &Span { slot, at, from, visible, .. } = span;
            self.spans.push(SpanRows { rows, slot, at, from, visible });
        }
        self.run(entry, self.live, nodes, observe);
        Ok(())
    }

    fn limits(&self) -> Limits<'_> {
        Limits { buckets: &self.step_rows, max_seq: self.max_seq, slots: self.slots, vocab: self.vocab }
    }

    fn entry(&self, kind: EntryKind, at_least: usize) -> Option<usize> {
        let fits = self.entries.iter().enumerate().filter(|(_, e)| e.entry.kind == kind && e.entry.rows >= at_least);
        fits.min_by_key(|(_, e)| e.entry.rows).map(|(i, _)| i)
    }

    fn reserve_scratch(&mut self, words: usize) -> Result<(), LoadError> {
        let rows =
            self.entries.iter().filter(|e| e.entry.kind == EntryKind::Head).map(|e| e.entry.rows).max().unwrap_or(0);
        let memory = |_| LoadError::Memory { what: "head statistics".into(), bytes: rows * size_of::<RowStats>() };
        self.stats.try_reserve_exact(rows).map_err(memory)?;
        self.stats.resize(rows, RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 });
        self.scratch = Scratch::new(words)?;
        Ok(())
    }

    /// Runs an entry. States and scratch stay where they are, so that a panic in a kernel or in `observe` costs at most the
    /// rows that were being written.
    fn run(&mut self, entry: usize, live: usize, nodes: usize, observe: Observe<'_>) {
        let CpuExecutor { kernels, pool, weights, entries, arena, states, scratch, stats, spans, .. } = self;
        let machine = Machine { ctx: Ctx { kernels, pool }, weights, arena, spans, live };
        let code = &entries[entry].code[..nodes.min(entries[entry].code.len())];
        let mut ahead = Ahead::new(weights, code);
        for (at, instr) in code.iter().enumerate() {
            ahead.before(at);
            machine.execute(instr, states, scratch.words_mut(), stats);
            let value = instr.outputs.first().filter(|o| o.float).map_or(&[][..], |o| machine.floats(*o));
            let mut others = [("", &[][..]); MAX_WEIGHTS - 1];
            let further = instr.others.iter().zip(instr.outputs.iter().skip(1));
            further.zip(&mut others).for_each(|((name, o), to)| *to = (name, machine.floats(*o)));
            let others = &others[..instr.others.len()];
            observe(Seen { op: &instr.op, name: &instr.name, value, others, cost: instr.cost });
            ahead.behind(at);
        }
    }

    /// Runs a head entry over `rows` in chunks of its largest bucket; `done` takes each chunk's range and results.
    fn run_head(
        &mut self,
        kind: EntryKind,
        rows: &[usize],
        observe: Observe<'_>,
        done: Done<'_>,
    ) -> Result<(), ExecError> {
        rows_of(rows, self.live)?;
        let largest = self.entries.iter().filter(|e| e.entry.kind == kind).map(|e| e.entry.rows).max();
        let largest = largest.ok_or(ExecError::NoEntry(kind.name()))?;
        let limited = if kind == EntryKind::Logits { self.logits_rows() } else { usize::MAX };
        let largest = largest.min(limited);
        for (i, chunk) in rows.chunks(largest).enumerate() {
            let entry = self.entry(kind, chunk.len()).expect("the largest entry holds a chunk");
            let param = self.entries[entry].params[0];
            for (i, row) in chunk.iter().enumerate() {
                self.arena.write(param, i, &[i32::try_from(*row).expect("rows of a step fit i32")]);
            }
            self.run(entry, chunk.len(), usize::MAX, observe);
            let first = i * largest;
            let ctx = Ctx { kernels: self.kernels, pool: &self.pool };
            done(ctx, &self.arena, &self.entries[entry].results, first..first + chunk.len());
        }
        Ok(())
    }
}

impl Executor for CpuExecutor {
    fn max_seq(&self) -> usize {
        self.max_seq
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        &self.step_rows
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn logits_rows(&self) -> usize {
        self.budget.as_ref().map_or(usize::MAX, |b| b.logits_rows)
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        if slots > self.slots {
            if let Some(budget) = &self.budget {
                budget.admit(slots, 0).map_err(ExecError::Limit)?;
            }
            let states: Result<_, _> = self.states.iter().map(|s| s.with_slots(slots)).collect();
            self.states = states.map_err(|e: LoadError| ExecError::OutOfMemory(e.to_string()))?;
            self.slots = slots;
            self.live = 0;
        }
        Ok(())
    }

    fn copy_unit(&self) -> Option<usize> {
        let tiles = self.states.iter().filter(|s| !s.is_rows()).map(|s| s.kv_shape().interleaved());
        tiles.max().map_or(self.prefix_unit, |tile| common_multiple(self.prefix_unit?, tile))
    }

    fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) -> Result<(), ExecError> {
        self.limits().check_copy(self.prefix_unit, self.copy_unit(), [from, to], rows)?;
        self.states.iter_mut().filter(|s| !s.is_rows()).for_each(|s| s.copy_rows(from, to, rows));
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        self.step_observed(spans, usize::MAX, &mut |_| {})
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        self.head_observed(rows, out, &mut |_| {})
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        self.logits_observed(rows, out, &mut |_| {})
    }

    fn readers(&self) -> usize {
        self.threads()
    }

    fn read_logits(&mut self, rows: &[usize], _: &mut Vec<f32>, read: ReadRow<'_>) -> Result<(), ExecError> {
        let vocab = self.vocab;
        self.run_head(EntryKind::Logits, rows, &mut |_| {}, &mut |ctx, arena, results, range| {
            let logits = arena.floats(results[0], range.len());
            ctx.parallel(range.len(), 1, |reader, part| {
                for i in part {
                    read(reader, range.start + i, &logits[i * vocab..][..vocab]);
                }
            });
        })
    }

    fn observe(&mut self, spans: &[Span<'_>], see: See<'_>) -> Result<bool, ExecError> {
        self.step_observed(spans, usize::MAX, &mut |seen| {
            if !seen.value.is_empty() {
                see(seen.name, seen.value);
            }
            seen.others.iter().for_each(|(name, value)| see(name, value));
        })?;
        if let Some(hidden) = self.hidden.map(|s| &self.states[s]) {
            see(HIDDEN, &hidden.floats()[..self.live * hidden.width()]);
        }
        Ok(true)
    }
}

/// What one run needs besides the states.
struct Machine<'a> {
    ctx: Ctx<'a>,
    weights: &'a Weights,
    arena: &'a Arena,
    spans: &'a [SpanRows],
    live: usize,
}

impl Machine<'_> {
    fn floats(&self, slot: Slot) -> &[f32] {
        self.arena.floats(slot, self.live)
    }

    fn input(&self, loc: Loc) -> &[f32] {
        match loc {
            Loc::Slot(slot) => self.floats(slot),
            Loc::Weight(w) => self.weights.vector(w),
            Loc::State(_) => unreachable!("the verifier checks operand kinds"),
        }
    }

    /// The live rows of a result.
    #[allow(clippy::mut_from_ref, reason = "slots in use are disjoint, as the comment inside says")]
    fn output(&self, slot: Slot) -> &mut [f32] {
        // SAFETY: the verifier has checked that a result overlaps no value that is live when it is written, except one
        // that the op may take over; `first_operand` and the residual then hand the operand over as "in place".
        unsafe { self.arena.floats_mut(slot, self.live) }
    }

    /// The first operand of an op that may work in place.
    fn first_operand(&self, instr: &Instr) -> Input<'_> {
        match instr.inputs[0] {
            Loc::Slot(slot) if slot.offset == instr.outputs[0].offset => Input::InPlace,
            loc => Input::From(self.input(loc)),
        }
    }

    fn ints(&self, loc: Loc) -> &[i32] {
        let Loc::Slot(slot) = loc else { unreachable!("the verifier checks operand kinds") };
        self.arena.ints(slot, self.live)
    }

    fn norm(&self, eps: Option<f32>, loc: Option<&Loc>) -> Option<Norm<'_>> {
        Some(Norm { weight: self.input(*loc?), eps: eps? })
    }

    fn execute(&self, instr: &Instr, states: &mut [StateBuffer], scratch: &mut [u32], stats: &mut [RowStats]) {
        let ctx = &self.ctx;
        let inputs = &instr.inputs[..];
        match &instr.op {
            Op::Add {} => add(ctx, self.first_operand(instr), self.input(inputs[1]), self.output(instr.outputs[0])),
            Op::Mul {} => mul(ctx, self.first_operand(instr), self.input(inputs[1]), self.output(instr.outputs[0])),
            Op::Scale { by } => scale(ctx, self.first_operand(instr), *by, self.output(instr.outputs[0])),
            Op::Silu {} => silu(ctx, self.first_operand(instr), self.output(instr.outputs[0])),
            Op::Embed {} => {
                let table = self.weights.matrix(inputs[1]).expect("checked at load");
                embed(ctx, self.ints(inputs[0]), &table, self.output(instr.outputs[0]));
            }
            Op::RmsNorm { eps } => {
                let norm = Norm { weight: self.input(inputs[1]), eps: *eps };
                rms_norm(ctx, Input::From(self.input(inputs[0])), norm, self.output(instr.outputs[0]));
            }
            Op::RopeTable { theta, head_dim } => {
                rope_table(ctx, self.ints(inputs[0]), *head_dim as usize, *theta, self.output(instr.outputs[0]));
            }
            Op::Rope { head_dim, norm } => {
                let (x, table) = (self.first_operand(instr), self.input(inputs[1]));
                let norm = self.norm(*norm, inputs.get(2));
                rope(ctx, x, table, *head_dim as usize, norm, self.output(instr.outputs[0]));
            }
            Op::Linear { n, bias, norm, post } => self.linear(instr, *n as usize, *bias, *norm, *post, scratch),
            Op::HeadStats { norm, ban } => {
                let head = self.weights.matrix(inputs[1]).expect("checked at load");
                let norm = self.norm(*norm, inputs.get(2));
                let stats = &mut stats[..self.live];
                head_stats(ctx, self.input(inputs[0]), norm, &head, ban.map(|b| b as usize), stats, scratch);
                // SAFETY: results do not overlap each other or what is live (verified), and nothing else is borrowed.
                let best = unsafe { self.arena.ints_mut(instr.outputs[0], self.live) };
                let numbers = self.output(instr.outputs[1]);
                for ((s, b), n) in stats.iter().zip(best).zip(numbers.chunks_exact_mut(3)) {
                    *b = s.best;
                    n.copy_from_slice(&[s.prob, s.margin, s.entropy]);
                }
            }
            Op::KvWrite {} => {
                let (Loc::State(k), Loc::State(v)) = (inputs[2], inputs[3]) else {
                    unreachable!("the verifier checks operand kinds")
                };
                let shape = states[k].kv_shape();
                let [k_state, v_state] = states.get_disjoint_mut([k, v]).expect("checked at load");
                let (keys, values) = (self.input(inputs[0]), self.input(inputs[1]));
                for SpanRows { rows, slot, at, .. } in self.spans {
                    let part = rows_of_width(rows, shape.kv_heads * shape.head_dim);
                    let (keys, values) = (&keys[part.clone()], &values[part]);
                    kv_write(ctx, shape, keys, values, *at, k_state.slot_mut(*slot), v_state.slot_mut(*slot));
                }
            }
            Op::CachedAttention { mask, .. } => {
                let (Loc::State(k), Loc::State(v)) = (inputs[1], inputs[2]) else {
                    unreachable!("the verifier checks operand kinds")
                };
                let (kv, slot) = (states[k].kv_shape(), instr.outputs[0]);
                let (q, out, heads) = (self.input(inputs[0]), self.output(slot), slot.width / kv.head_dim);
                for &SpanRows { ref rows, slot: s, at, from, visible } in self.spans {
                    let part = rows_of_width(rows, slot.width);
                    let shape = AttentionShape { kv, heads, mask: *mask, at, from, visible };
                    let (k, v) = (states[k].slot(s), states[v].slot(s));
                    attention(ctx, shape, &q[part.clone()], k, v, &mut out[part], scratch);
                }
            }
            Op::StoreRows {} => {
                let Loc::State(s) = inputs[1] else { unreachable!("the verifier checks operand kinds") };
                let x = self.input(inputs[0]);
                states[s].floats_mut()[..x.len()].copy_from_slice(x);
            }
            Op::TakeRows {} => {
                let Loc::State(s) = inputs[0] else { unreachable!("the verifier checks operand kinds") };
                let out = instr.outputs[0];
                let rows = self.ints(inputs[1]);
                let from = states[s].floats();
                for (row, o) in rows.iter().zip(self.output(out).chunks_exact_mut(out.width)) {
                    let row = usize::try_from(*row).expect("rows were checked before the head");
                    o.copy_from_slice(&from[row * out.width..][..out.width]);
                }
            }
            other => unreachable!("{} was refused at load", other.name()),
        }
    }

    fn linear(&self, instr: &Instr, n: usize, bias: bool, norm: Option<f32>, post: Post, scratch: &mut [u32]) {
        let (x, rest) = instr.inputs.split_first().expect("verified");
        let (weights, rest) = rest.split_at(n);
        let (biases, rest) = rest.split_at(if bias { n } else { 0 });
        let matrix = |i: usize| self.weights.matrix(weights[i.min(n - 1)]).expect("checked at load");
        let weights = [matrix(0), matrix(1), matrix(2)];
        let vector = |i: usize| biases.get(i).map(|b| self.input(*b));
        let biases = [vector(0), vector(1), vector(2)];
        let epilogue = match (post, rest.last()) {
            (Post::SwiGlu, _) => Epilogue::SwiGlu,
            (Post::Add, Some(Loc::Slot(r))) if r.offset == instr.outputs[0].offset => Epilogue::AddInPlace,
            (Post::Add, Some(r)) => Epilogue::Add(self.input(*r)),
            _ => Epilogue::Store,
        };
        let norm = self.norm(norm, rest.first());
        let out = |i: usize| instr.outputs.get(i).map_or(&mut [][..], |o| self.output(*o));
        let mut outs = [out(0), out(1), out(2)];
        let (x, outs) = (self.input(*x), &mut outs[..instr.outputs.len()]);
        linear(
            &self.ctx,
            x,
            self.live,
            norm,
            &weights[..n],
            &biases[..if bias { n } else { 0 }],
            epilogue,
            outs,
            scratch,
        );
    }
}

/// Where the elements of some rows lie.
fn rows_of_width(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}
