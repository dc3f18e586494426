//! The plan of a wgpu program: everything that the device is told, decided at compile time.
//!
//! The runtime creates buffers, pipelines and bind groups from it and encodes its dispatches; it generates nothing. The
//! program beside it (`program:wgpu`, IR text) is for people and tools; the plan is what runs.
//!
//! Buffers: `inputs` (what a call brings: ids, positions, spans, row numbers), `arena` (activations), `outputs` (what is
//! read back), one per state, and the weights, in as many buffers as the device's limits ask for. Offsets of bindings are
//! multiples of [`BIND_ALIGN`]. Parts of the arena that one dispatch binds do not overlap.
//!
//! Invariant: nothing in a plan is trusted. [`Plan::check`] refuses indices and ranges that do not fit; the WGSL is
//! validated again by the device's own front end, which also clamps every access.

use std::collections::BTreeSet;

use dlx_ir::{EntryKind, MAX_SPANS};
use serde::{Deserialize, Serialize};

/// Alignment of every bound range: WebGPU's default `min_storage_buffer_offset_alignment`.
pub const BIND_ALIGN: u64 = 256;

/// Words of the first input range of every entry, as little-endian `u32`: the number of live rows, the number of spans, two
/// unused words, and [`SPAN_WORDS`] for each span of a step. Head and logits entries have only the live rows.
pub const CALL_WORDS: usize = 4 + MAX_SPANS * SPAN_WORDS;
/// Words of a span: its first row of the step and the one behind its last, the first cache row of its slot, `at`, `from` and
/// `visible` counted from there, and two unused ones.
pub const SPAN_WORDS: usize = 8;

/// A compiled program for one device profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Limits that it was compiled for; a device must have at least these.
    pub profile: Profile,
    /// WGSL modules, each once. Every one has a single entry point `main`.
    pub shaders: Vec<String>,
    /// Pipelines.
    pub kernels: Vec<Kernel>,
    /// Bytes of the input buffer.
    pub inputs: u64,
    /// Bytes of the activations.
    pub arena: u64,
    /// Bytes of the buffer that results are read back from.
    pub outputs: u64,
    /// States, zeroed when a session begins.
    pub states: Vec<State>,
    /// Which of them keeps the hidden rows of the last step, if steps keep any.
    pub hidden: Option<usize>,
    /// Entries, in the order of the program's graphs.
    pub entries: Vec<Entry>,
    /// Rows of the KV caches.
    pub max_seq: usize,
    /// Rows in whose multiples a prefix of a slot does not depend on what follows it; absent when there are none.
    pub prefix_unit: Option<usize>,
    /// Width of the logits.
    pub vocab: usize,
}

/// What a plan asks of a device: the names and meanings of WebGPU's limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name in `--profile`.
    pub name: String,
    /// `max_storage_buffer_binding_size`.
    pub max_binding: u64,
    /// `max_buffer_size`.
    pub max_buffer: u64,
    /// `max_compute_invocations_per_workgroup`.
    pub max_invocations: u32,
    /// `max_compute_workgroup_storage_size`, in bytes.
    pub max_workgroup_storage: u32,
    /// `max_compute_workgroups_per_dimension`.
    pub max_workgroups: u32,
    /// `max_storage_buffers_per_shader_stage`.
    pub max_storage_buffers: u32,
}

impl Profile {
    /// WebGPU's default limits, which every device has.
    #[must_use]
    pub fn plain() -> Self {
        Profile {
            name: "plain".into(),
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            max_invocations: 256,
            max_workgroup_storage: 16 << 10,
            max_workgroups: 65_535,
            max_storage_buffers: 8,
        }
    }
}

/// A pipeline: one job, in one or more variants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What it does, such as `linear`; variants of a role are replaced together when one of them is wrong.
    pub role: String,
    /// What it is for, such as `q4g32[6144, 2048] x 4`, for people.
    pub shape: String,
    /// How each binding is used, in order (group 0, binding i).
    pub bindings: Vec<Access>,
    /// Fastest first; the last one needs no feature.
    pub variants: Vec<Variant>,
}

/// One implementation of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Features that the device must have.
    pub needs: Vec<Feature>,
    /// Index into [`Plan::shaders`].
    pub shader: usize,
    /// Workgroups per dimension.
    pub groups: [u32; 3],
}

/// An optional device feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// `f16` in shaders.
    F16,
    /// Subgroup operations.
    Subgroups,
}

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`; all parts of the arena, the states and the outputs are bound so.
    ReadWrite,
}

/// A buffer that lives as long as a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Name in the program.
    pub name: String,
    /// Size; for a cache, that of a slot.
    pub bytes: u64,
    /// Whether it is a cache, of which every sequence has a slot.
    pub cache: bool,
}

/// A compiled graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the graph, such as `step_4`.
    pub name: String,
    /// What it is.
    #[serde(with = "kind_name")]
    pub kind: EntryKind,
    /// Rows of its bucket.
    pub rows: usize,
    /// Where its parameters go in the input buffer: the words of the call, then ids and positions (step) or row numbers (head, logits),
    /// all 32 bits wide.
    pub inputs: Vec<Range>,
    /// Where its results lie in the output buffer: none, or best ids `i32[R]` and `f32[R, 3]`, or logits `f32[R, vocab]`.
    pub results: Vec<Range>,
    /// What runs, in order.
    pub dispatches: Vec<Dispatch>,
    /// Step entries: every f32 value that a node computes, in order, for those who look inside.
    pub values: Vec<Probe>,
    /// Which of them is the first layer's output, for the self-test.
    pub first_layer: Option<usize>,
}

/// A kind of entry is written as its name.
mod kind_name {
    use dlx_ir::EntryKind;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(kind: &EntryKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EntryKind, D::Error> {
        let name = String::deserialize(deserializer)?;
        let kind = EntryKind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| D::Error::custom(format!("there is no entry of kind `{name}`")))
    }
}

/// A value to look at in the middle of an entry. Later ones may take its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Name in the program.
    pub name: String,
    /// Dispatches to run before.
    pub after: usize,
    /// Where it lies in the arena, row-major `f32`.
    pub value: Range,
}

/// One kernel on its operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispatch {
    /// Index into [`Plan::kernels`].
    pub kernel: usize,
    /// Number of the node of the graph that it belongs to.
    pub node: usize,
    /// One per entry of [`Kernel::bindings`].
    pub bindings: Vec<Binding>,
}

/// What is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Part of the input buffer.
    Input(Range),
    /// Part of the arena.
    Arena(Range),
    /// Part of the output buffer.
    Output(Range),
    /// A whole state, by index.
    State(usize),
    /// Part of the artifact's weights section, at a multiple of 64 bytes: a weight or a shard of one.
    Weight(Range),
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length, a multiple of 4.
    pub bytes: u64,
}

/// What a plan amounts to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Pipelines.
    pub kernels: usize,
    /// Their variants together.
    pub variants: usize,
    /// Shader modules.
    pub shaders: usize,
    /// Dispatches of each entry.
    pub dispatches: Vec<(String, usize)>,
    /// Weights, or shards of weights, that are bound.
    pub weights: usize,
    /// Their bytes.
    pub weight_bytes: u64,
    /// Bytes of the states.
    pub states: u64,
    /// Bytes of the activations.
    pub arena: u64,
    /// Bytes of the results of the largest call.
    pub outputs: u64,
}

/// Bytes per write into a staging buffer, and of writes in flight before the host waits for the device.
pub const UPLOAD_CHUNK: usize = 4 << 20;
/// See [`UPLOAD_CHUNK`].
pub const UPLOAD_IN_FLIGHT: usize = 64 << 20;

impl Plan {
    /// Bytes of the weights on the device.
    pub fn device_weights(&self) -> u64 {
        self.weights().iter().map(|r| r.bytes.saturating_add(BIND_ALIGN)).fold(0, u64::saturating_add)
    }

    /// Bytes of the buffer that results, and values that are looked at, are read through.
    pub fn read_back(&self) -> u64 {
        let values = self.entries.iter().flat_map(|e| &e.values).map(|p| p.value.bytes);
        let hidden = self.hidden.and_then(|h| self.states.get(h)).map(|h| h.bytes);
        values.chain(hidden).fold(self.outputs, u64::max)
    }

    /// Numbers for people.
    pub fn summary(&self) -> Summary {
        let weights = self.weights();
        Summary {
            kernels: self.kernels.len(),
            variants: self.kernels.iter().map(|k| k.variants.len()).sum(),
            shaders: self.shaders.len(),
            dispatches: self.entries.iter().map(|e| (e.name.clone(), e.dispatches.len())).collect(),
            weights: weights.len(),
            weight_bytes: weights.iter().map(|r| r.bytes).sum(),
            states: self.states.iter().map(|s| s.bytes).sum(),
            arena: self.arena,
            outputs: self.outputs,
        }
    }

    /// Every range of the weights section that is bound, once, in file order.
    pub fn weights(&self) -> BTreeSet<Range> {
        let bindings = self.entries.iter().flat_map(|e| &e.dispatches).flat_map(|d| &d.bindings);
        bindings.filter_map(|b| if let Binding::Weight(r) = b { Some(*r) } else { None }).collect()
    }
}
