//! The wgpu executor: buffers, pipelines and bind groups of a plan, and the encoding of its dispatches.
//!
//! A step is recorded and submitted lazily: the head or the logits that follow join its submit, so a denoising step costs
//! one. A step without either (prefill, commit) goes out before the next one. What a call moves between host and device
//! is counted.
//!
//! Invariant: everything that a plan can get wrong has been refused by [`Plan::check`]; nothing is generated here.

use std::collections::BTreeMap;
use std::ops::Range as Slice;
use std::sync::mpsc;

use super::device::{Adapter, Device, LoadError};
use super::pipelines::Pipelines;
use super::plan::{Binding, Entry, Plan, Range};
use super::replaced::Replaced;
use super::weights::Weights;
use crate::exec::{CacheRow, ExecError, Executor, Limits, RowStats, See, Span, rows_of};
use crate::mapped::Mapped;
use crate::memory::Budget;
use dlx_ir::EntryKind;

/// How to load a plan.
#[derive(Clone, Debug, Default)]
pub struct WgpuOptions {
    /// Number or part of the name of an adapter, as in [`super::adapters`]; the only one if not given.
    pub device: Option<String>,
}

/// What has passed between host and device since the executor was loaded, weights left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Bytes written to the device.
    pub bytes_up: u64,
    /// Bytes read back.
    pub bytes_down: u64,
    /// Kernels launched.
    pub dispatches: u64,
    /// Command buffers submitted.
    pub submits: u64,
}

/// Runs a plan.
pub struct WgpuExecutor {
    pub(super) device: Device,
    pub(super) plan: Plan,
    pub(super) pipelines: Pipelines,
    buffers: Buffers,
    /// Bind groups of each entry's dispatches.
    groups: Vec<Vec<wgpu::BindGroup>>,
    step_rows: Vec<usize>,
    /// Sequences that the caches hold.
    slots: usize,
    /// Rows of the last step.
    pub(super) live: usize,
    /// A step that has been recorded and not submitted.
    pending: Option<wgpu::CommandEncoder>,
    counters: Counters,
    pub(super) replaced: Vec<Replaced>,
    /// Memory that it may take, if that is limited.
    budget: Option<Budget>,
}

struct Buffers {
    inputs: wgpu::Buffer,
    arena: wgpu::Buffer,
    outputs: wgpu::Buffer,
    states: Vec<wgpu::Buffer>,
    /// Where results are read.
    staging: wgpu::Buffer,
    weights: Weights,
}

/// Takes the results of one head call and which of the rows asked for they belong to.
type Done<'d> = &'d mut dyn FnMut(&[u8], Slice<usize>);

impl WgpuExecutor {
    /// Checks a plan, opens the device and loads the weights, which lie in `file` at `section`.
    ///
    /// # Errors
    /// A broken plan, no device or one that cannot run it, or not enough device memory.
    pub fn new(plan: Plan, file: &Mapped, section: Slice<usize>, options: &WgpuOptions) -> Result<Self, LoadError> {
        plan.check(section.len() as u64).map_err(LoadError::Plan)?;
        let device = Device::open(options.device.as_deref(), &plan.profile)?;
        let (pipelines, replaced) = Pipelines::new(&device, &plan)?;
        let buffers = Buffers::new(&device, &plan, file, section)?;
        let groups = device.guarded("bind groups", || bind(&device, &plan, &pipelines, &buffers))?;
        let groups = groups.ok_or_else(|| LoadError::Plan("a binding names nothing".into()))?;
        let steps = plan.entries.iter().filter(|e| e.kind == EntryKind::Step);
        let mut step_rows: Vec<usize> = steps.map(|e| e.rows).collect();
        step_rows.sort_unstable();
        Ok(WgpuExecutor {
            device,
            plan,
            pipelines,
            buffers,
            groups,
            step_rows,
            slots: 1,
            live: 0,
            pending: None,
            counters: Counters::default(),
            replaced,
            budget: None,
        })
    }

    /// From now on takes no more memory than a limit allows.
    pub(crate) fn set_budget(&mut self, budget: Budget) {
        self.budget = Some(budget);
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &Adapter {
        &self.device.adapter
    }

    /// The plan that runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What has been moved and launched so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Kernels that do not run in their fastest variant, and why.
    pub fn replaced(&self) -> &[Replaced] {
        &self.replaced
    }

    /// Submits a step that is still pending and waits until the device is idle.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(&mut self) -> Result<(), ExecError> {
        self.flush();
        self.device.wait()
    }

    pub(super) fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    pub(super) fn entry(&self, kind: EntryKind, at_least: usize) -> Option<usize> {
        let fits = self.plan.entries.iter().enumerate().filter(|(_, e)| e.kind == kind && e.rows >= at_least);
        fits.min_by_key(|(_, e)| e.rows).map(|(i, _)| i)
    }

    pub(super) fn limits(&self) -> Limits<'_> {
        let Plan { max_seq, vocab, .. } = self.plan;
        Limits { buckets: &self.step_rows, max_seq, slots: self.slots, vocab }
    }

    /// Writes a step's parameters and records its first `dispatches` dispatches.
    pub(super) fn record_step(&mut self, entry: usize, spans: &[Span<'_>], dispatches: usize) -> Result<(), ExecError> {
        self.device.fault()?;
        // Its parameters would overwrite those of a step that has not been submitted.
        self.flush();
        let rows = spans.iter().map(|s| s.ids.len()).sum();
        let mut call = vec![rows, spans.len(), 0, 0];
        let mut first = 0;
        for &Span { slot, ids, at, from, visible, .. } in spans {
            let end = first + ids.len();
            call.extend([first, end, slot * self.plan.max_seq, at, from, visible, 0, 0]);
            first = end;
        }
        self.write(entry, 0, &call.into_iter().map(word).collect::<Vec<_>>());
        let ids = spans.iter().flat_map(|s| s.ids).map(|v| v.to_le_bytes());
        self.write(entry, 1, &ids.collect::<Vec<_>>());
        let pos = spans.iter().flat_map(|s| s.pos).map(|v| v.to_le_bytes());
        self.write(entry, 2, &pos.collect::<Vec<_>>());
        self.live = rows;
        self.encode(entry, 0..dispatches);
        Ok(())
    }

    /// Overwrites the start of a state.
    pub(super) fn write_state(&mut self, state: usize, bytes: &[u8]) {
        self.flush();
        self.device.queue.write_buffer(&self.buffers.states[state], 0, bytes);
        self.counters.bytes_up += bytes.len() as u64;
    }

    fn write(&mut self, entry: usize, input: usize, words: &[[u8; 4]]) {
        let range = self.plan.entries[entry].inputs[input];
        let bytes = words.as_flattened();
        self.device.queue.write_buffer(&self.buffers.inputs, range.offset, bytes);
        self.counters.bytes_up += bytes.len() as u64;
    }

    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let device = &self.device.device;
        self.pending.get_or_insert_with(|| device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()))
    }

    /// Records some dispatches of an entry.
    pub(super) fn encode(&mut self, entry: usize, part: Slice<usize>) {
        self.encoder();
        let Some(encoder) = &mut self.pending else { return };
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let dispatches = self.plan.entries[entry].dispatches.iter().zip(&self.groups[entry]);
        let dispatches = dispatches.take(part.end).skip(part.start);
        for (dispatch, group) in dispatches {
            let pipeline = self.pipelines.get(&self.plan, dispatch.kernel);
            let (pipeline, [x, y, z]) = pipeline.expect("the plan was checked and its variants compiled");
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(x, y, z);
            self.counters.dispatches += 1;
        }
    }

    /// Submits what is pending.
    fn flush(&mut self) {
        if let Some(encoder) = self.pending.take() {
            self.device.queue.submit([encoder.finish()]);
            self.counters.submits += 1;
        }
    }

    /// Copies ranges of a buffer to the host, behind what is pending, and submits both.
    pub(super) fn read(&mut self, from: Source, ranges: &[Range]) -> Result<Vec<u8>, ExecError> {
        let total: u64 = ranges.iter().map(|r| r.bytes).sum();
        let staging = self.buffers.staging.clone();
        let source = match from {
            Source::Arena => self.buffers.arena.clone(),
            Source::Outputs => self.buffers.outputs.clone(),
            Source::State(state) => self.buffers.states[state].clone(),
        };
        let encoder = self.encoder();
        let mut at = 0;
        for range in ranges {
            encoder.copy_buffer_to_buffer(&source, range.offset, &staging, at, range.bytes);
            at += range.bytes;
        }
        self.flush();
        let (sender, receiver) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, ..total, move |outcome| drop(sender.send(outcome)));
        self.device.wait()?;
        let lost = |what: String| ExecError::Device(format!("results cannot be read: {what}"));
        receiver.recv().map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
        let bytes = staging.get_mapped_range(..total).map_err(|e| lost(e.to_string()))?.to_vec();
        staging.unmap();
        self.counters.bytes_down += total;
        Ok(bytes)
    }

    /// Runs a head entry over `rows` in chunks of its largest bucket; `done` takes each chunk's results.
    fn run_head(&mut self, kind: EntryKind, rows: &[usize], done: Done<'_>) -> Result<(), ExecError> {
        rows_of(rows, self.live)?;
        let largest = self.plan.entries.iter().filter(|e| e.kind == kind).map(|e| e.rows).max();
        let largest = largest.ok_or(ExecError::NoEntry(kind.name()))?;
        let largest = self.budget.as_ref().map_or(largest, |b| largest.min(b.logits_rows));
        for (i, chunk) in rows.chunks(largest).enumerate() {
            self.device.fault()?;
            let entry = self.entry(kind, chunk.len()).ok_or(ExecError::NoEntry(kind.name()))?;
            self.write(entry, 0, &[chunk.len(), 0, 0, 0].map(word));
            self.write(entry, 1, &chunk.iter().copied().map(word).collect::<Vec<_>>());
            self.encode(entry, 0..usize::MAX);
            let Entry { rows: bucket, results, .. } = &self.plan.entries[entry];
            // Rows that fill up the bucket stay where they are.
            let (bucket, live) = (*bucket as u64, chunk.len() as u64);
            let row_bytes: &[u64] = if kind == EntryKind::Head { &[4, 12] } else { &[4 * self.plan.vocab as u64] };
            debug_assert!(live <= bucket);
            let ranges: Vec<Range> =
                results.iter().zip(row_bytes).map(|(r, b)| Range { offset: r.offset, bytes: b * live }).collect();
            let bytes = self.read(Source::Outputs, &ranges)?;
            done(&bytes, i * largest..i * largest + chunk.len());
        }
        Ok(())
    }
}

/// A buffer that can be read.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Arena,
    Outputs,
    State(usize),
}

impl Executor for WgpuExecutor {
    fn max_seq(&self) -> usize {
        self.plan.max_seq
    }

    fn vocab(&self) -> usize {
        self.plan.vocab
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
        if slots <= self.slots {
            return Ok(());
        }
        let caches = || self.plan.states.iter().filter(|s| s.cache).map(|s| s.bytes);
        if let Some(budget) = &self.budget {
            // The old caches go when the new ones are there.
            let kept = caches().sum::<u64>().saturating_mul(self.slots as u64);
            budget.admit(slots, kept).map_err(ExecError::Limit)?;
        }
        let largest = caches().max().unwrap_or(0);
        let most = self.plan.profile.max_binding.checked_div(largest).unwrap_or(u64::MAX);
        if slots as u64 > most {
            let name = &self.plan.profile.name;
            return Err(ExecError::Shape(format!(
                "profile `{name}` holds {most} sequences at a time, not {slots}; compile with a smaller --max-seq, or for \
                 another --profile"
            )));
        }
        self.flush();
        let memory = |e: LoadError| ExecError::OutOfMemory(e.to_string());
        self.buffers.states = states(&self.device, &self.plan, slots).map_err(memory)?;
        let bound =
            self.device.guarded("bind groups", || bind(&self.device, &self.plan, &self.pipelines, &self.buffers));
        self.groups = bound.map_err(memory)?.ok_or(ExecError::NoEntry("binding"))?;
        (self.slots, self.live) = (slots, 0);
        Ok(())
    }

    fn copy_unit(&self) -> Option<usize> {
        self.plan.prefix_unit
    }

    fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) -> Result<(), ExecError> {
        self.limits().check_copy(self.plan.prefix_unit, self.copy_unit(), [from, to], rows)?;
        if from == to || rows == 0 {
            return Ok(());
        }
        self.encoder();
        for (state, buffer) in self.plan.states.iter().zip(&self.buffers.states).filter(|(s, _)| s.cache) {
            let Some(encoder) = &mut self.pending else { continue };
            let row = state.bytes / self.plan.max_seq as u64;
            let (bytes, place) = (row * rows as u64, |at: CacheRow| at.slot as u64 * state.bytes + at.row as u64 * row);
            // A buffer is not copied to itself.
            let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let between = self.device.buffer("copy of cache rows", bytes, usage);
            let between = between.map_err(|e| ExecError::OutOfMemory(e.to_string()))?;
            encoder.copy_buffer_to_buffer(buffer, place(from), &between, 0, bytes);
            encoder.copy_buffer_to_buffer(&between, 0, buffer, place(to), bytes);
        }
        self.flush();
        Ok(())
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        let bucket = self.limits().bucket_of(spans)?;
        let entry = self.entry(EntryKind::Step, bucket).ok_or(ExecError::NoEntry("step"))?;
        self.record_step(entry, spans, usize::MAX)
    }

    fn observe(&mut self, spans: &[Span<'_>], see: See<'_>) -> Result<bool, ExecError> {
        self.observe_step(spans, see)?;
        Ok(true)
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        if rows.len() != out.len() {
            return Err(ExecError::Shape(format!("{} rows, but room for {}", rows.len(), out.len())));
        }
        self.run_head(EntryKind::Head, rows, &mut |bytes, span| {
            let (best, numbers) = bytes.split_at(4 * span.len());
            let best = best.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b));
            let numbers = floats(numbers);
            for ((o, best), n) in out[span].iter_mut().zip(best).zip(numbers.chunks_exact(3)) {
                *o = RowStats { best, prob: n[0], margin: n[1], entropy: n[2] };
            }
        })
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        let vocab = self.plan.vocab;
        if rows.len().checked_mul(vocab) != Some(out.len()) {
            return Err(ExecError::Shape(format!("{} rows of {vocab} do not fit {}", rows.len(), out.len())));
        }
        self.run_head(EntryKind::Logits, rows, &mut |bytes, span| {
            let values = out[span.start * vocab..span.end * vocab].iter_mut();
            values.zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        })
    }
}

impl Buffers {
    fn new(device: &Device, plan: &Plan, file: &Mapped, section: Slice<usize>) -> Result<Self, LoadError> {
        use wgpu::BufferUsages as Use;
        let states = states(device, plan, 1)?;
        Ok(Buffers {
            inputs: device.buffer("inputs", plan.inputs, Use::STORAGE | Use::UNIFORM | Use::COPY_DST)?,
            arena: device.buffer("activations", plan.arena, Use::STORAGE | Use::COPY_SRC)?,
            outputs: device.buffer("results", plan.outputs, Use::STORAGE | Use::COPY_SRC)?,
            staging: device.buffer("read back", plan.read_back(), Use::MAP_READ | Use::COPY_DST)?,
            states,
            weights: Weights::upload(device, plan, file, section)?,
        })
    }

    fn resource(&self, binding: &Binding) -> Option<wgpu::BindingResource<'_>> {
        let (buffer, offset, bytes) = match *binding {
            Binding::Input(r) => (&self.inputs, r.offset, r.bytes),
            Binding::Arena(r) => (&self.arena, r.offset, r.bytes),
            Binding::Output(r) => (&self.outputs, r.offset, r.bytes),
            Binding::State(s) => {
                let state = self.states.get(s)?;
                (state, 0, state.size())
            }
            Binding::Weight(r) => {
                let (buffer, offset) = self.weights.find(r)?;
                (buffer, offset, r.bytes)
            }
        };
        let size = wgpu::BufferSize::new(bytes);
        Some(wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size }))
    }
}

/// Buffers of the states, with that many slots of the caches.
fn states(device: &Device, plan: &Plan, slots: usize) -> Result<Vec<wgpu::Buffer>, LoadError> {
    use wgpu::BufferUsages as Use;
    let usage = Use::STORAGE | Use::COPY_DST | Use::COPY_SRC;
    let bytes = |s: &super::plan::State| if s.cache { s.bytes.saturating_mul(slots as u64) } else { s.bytes };
    plan.states.iter().map(|state| device.buffer(&state.name, bytes(state), usage)).collect()
}

/// Bind groups of every dispatch; equal ones are shared.
fn bind(device: &Device, plan: &Plan, pipelines: &Pipelines, buffers: &Buffers) -> Option<Vec<Vec<wgpu::BindGroup>>> {
    let mut made: BTreeMap<(&[super::plan::Access], &[Binding]), wgpu::BindGroup> = BTreeMap::new();
    let mut all = Vec::with_capacity(plan.entries.len());
    for entry in &plan.entries {
        let mut groups = Vec::with_capacity(entry.dispatches.len());
        for dispatch in &entry.dispatches {
            let access = &plan.kernels[dispatch.kernel].bindings[..];
            let key = (access, &dispatch.bindings[..]);
            if let Some(group) = made.get(&key) {
                groups.push(group.clone());
                continue;
            }
            let mut entries = Vec::with_capacity(access.len());
            for (resource, binding) in dispatch.bindings.iter().map(|b| buffers.resource(b)).zip(0..) {
                entries.push(wgpu::BindGroupEntry { binding, resource: resource? });
            }
            let layout = pipelines.group_layout(access)?;
            let group = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            let group = device.device.create_bind_group(&group);
            made.insert(key, group.clone());
            groups.push(group);
        }
        all.push(groups);
    }
    Some(all)
}

fn word(value: usize) -> [u8; 4] {
    u32::try_from(value).expect("rows and cache sizes were checked to fit").to_le_bytes()
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
