//! A plan written by hand: an embedding of four features, whose rows are the hidden states, and a head over them.

use dlx_ir::EntryKind;
use dlx_runtime::wgpu::plan::{
    Access, Binding, CALL_WORDS, Dispatch, Entry, Feature, Kernel, Plan, Probe, Profile, Range, State, Variant,
};

/// Rows of the step, the head and the caches.
pub(crate) const ROWS: usize = 4;
/// Tokens.
pub(crate) const VOCAB: usize = 8;
/// Features of a hidden state.
pub(crate) const WIDTH: usize = 4;

const EMBED: &str = "
@group(0) @binding(0) var<uniform> scalars: array<vec4<u32>, 2>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read> pos: array<i32>;
@group(0) @binding(3) var<storage, read> embedding: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;
@compute @workgroup_size(4)
fn main(@builtin(workgroup_id) row: vec3<u32>, @builtin(local_invocation_id) c: vec3<u32>) {
    if row.x < scalars[0].x {
        x[row.x * 4 + c.x] = embedding[u32(ids[row.x]) * 4 + c.x] + f32(pos[row.x]);
    }
}";

const STORE: &str = "
@group(0) @binding(0) var<uniform> scalars: array<vec4<u32>, 2>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> hidden: array<f32>;
@compute @workgroup_size(16)
fn main(@builtin(local_invocation_id) i: vec3<u32>) {
    if i.x / 4 < scalars[0].x {
        hidden[i.x] = SCALE * x[i.x];
    }
}";

const LOGITS: &str = "
@group(0) @binding(0) var<storage, read> rows: array<u32>;
@group(0) @binding(1) var<storage, read> embedding: array<f32>;
@group(0) @binding(2) var<storage, read_write> hidden: array<f32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;
@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) r: vec3<u32>, @builtin(local_invocation_id) v: vec3<u32>) {
    var sum = 0.0;
    for (var c = 0u; c < 4; c++) {
        sum += hidden[rows[r.x] * 4 + c] * embedding[v.x * 4 + c];
    }
    logits[r.x * 8 + v.x] = sum;
}";

const STATS: &str = "
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> best: array<i32>;
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;
@compute @workgroup_size(4)
fn main(@builtin(local_invocation_id) r: vec3<u32>) {
    var top = -1e30;
    var second = -1e30;
    var sum = 0.0;
    var dot = 0.0;
    for (var v = 0u; v < 8; v++) {
        let l = logits[r.x * 8 + v];
        if l > top {
            second = top;
            top = l;
            best[r.x] = i32(v);
        } else {
            second = max(second, l);
        }
    }
    for (var v = 0u; v < 8; v++) {
        let l = logits[r.x * 8 + v] - top;
        sum += exp(l);
        dot += l * exp(l);
    }
    stats[r.x * 3] = 1.0 / sum;
    stats[r.x * 3 + 1] = (1.0 - exp(second - top)) / sum;
    stats[r.x * 3 + 2] = log(sum) - dot / sum;
}";

fn range(offset: u64, bytes: u64) -> Range {
    Range { offset, bytes }
}

/// The plan. Its weights section is [`weights`].
pub(crate) fn plan() -> Plan {
    use Access::{Read, ReadWrite, Uniform};
    let kernel = |role: &str, bindings: &[Access], shader: usize, groups: [u32; 3]| Kernel {
        role: role.into(),
        shape: String::new(),
        bindings: bindings.into(),
        variants: vec![Variant { needs: vec![], shader, groups }],
    };
    let (rows, width) = (ROWS as u64 * 4, ROWS as u64 * WIDTH as u64 * 4);
    let weight = Binding::Weight(range(64, VOCAB as u64 * WIDTH as u64 * 4));
    let call = CALL_WORDS as u64 * 4;
    let (scalars, ids, pos) = (range(0, call), range(2304, rows), range(2560, rows));
    let (head_scalars, head_rows) = (range(2816, call), range(5120, rows));
    let logits = range(256, rows * VOCAB as u64);
    let dispatch = |kernel, bindings: &[Binding]| Dispatch { kernel, node: 0, bindings: bindings.into() };
    let (input, arena) = (Binding::Input, Binding::Arena);
    let x = range(0, width);
    let entry = |name: &str, kind, inputs: &[Range], results: &[Range], dispatches: Vec<Dispatch>| Entry {
        name: name.into(),
        kind,
        rows: ROWS,
        inputs: inputs.into(),
        results: results.into(),
        dispatches,
        values: match kind {
            EntryKind::Step => vec![Probe { name: "x".into(), after: 1, value: x }],
            EntryKind::Head | EntryKind::Logits => Vec::new(),
        },
        first_layer: (kind == EntryKind::Step).then_some(0),
    };
    let mut store = kernel("store_rows", &[Uniform, ReadWrite, ReadWrite], 1, [1; 3]);
    store.variants.insert(0, Variant { needs: vec![Feature::Subgroups], shader: 2, groups: [1; 3] });
    Plan {
        profile: Profile::plain(),
        shaders: vec![
            EMBED.into(),
            STORE.replace("SCALE", "1.0"),
            STORE.replace("SCALE", "1.00"),
            LOGITS.into(),
            STATS.into(),
        ],
        kernels: vec![
            kernel("embed", &[Uniform, Read, Read, Read, ReadWrite], 0, [ROWS as u32, 1, 1]),
            store,
            kernel("logits", &[Read, Read, ReadWrite, ReadWrite], 3, [ROWS as u32, 1, 1]),
            kernel("head_stats", &[ReadWrite, ReadWrite, ReadWrite], 4, [1; 3]),
        ],
        inputs: 5376,
        arena: 512,
        outputs: 1024,
        states: vec![State { name: "hidden".into(), bytes: width, cache: false }],
        hidden: Some(0),
        entries: vec![
            entry(
                "step_4",
                EntryKind::Step,
                &[scalars, ids, pos],
                &[],
                vec![
                    dispatch(0, &[input(scalars), input(ids), input(pos), weight, arena(x)]),
                    dispatch(1, &[input(scalars), arena(x), Binding::State(0)]),
                ],
            ),
            entry(
                "head_4",
                EntryKind::Head,
                &[head_scalars, head_rows],
                &[range(0, rows), range(256, 3 * rows)],
                vec![
                    dispatch(2, &[input(head_rows), weight, Binding::State(0), arena(logits)]),
                    dispatch(
                        3,
                        &[arena(logits), Binding::Output(range(0, rows)), Binding::Output(range(256, 3 * rows))],
                    ),
                ],
            ),
            entry(
                "logits_4",
                EntryKind::Logits,
                &[head_scalars, head_rows],
                &[range(512, rows * VOCAB as u64)],
                vec![dispatch(
                    2,
                    &[input(head_rows), weight, Binding::State(0), Binding::Output(range(512, rows * VOCAB as u64))],
                )],
            ),
        ],
        max_seq: 16,
        prefix_unit: Some(1),
        vocab: VOCAB,
    }
}

/// The embedding, row-major.
pub(crate) fn embedding() -> Vec<f32> {
    (0..VOCAB * WIDTH).map(|i| ((i * 37 + 11) % 23) as f32 / 23.0 - 0.4).collect()
}

/// The weights section: the embedding behind 64 bytes of something else.
pub(crate) fn weights() -> Vec<u8> {
    [0; 64].into_iter().chain(embedding().iter().flat_map(|v| v.to_le_bytes())).collect()
}
