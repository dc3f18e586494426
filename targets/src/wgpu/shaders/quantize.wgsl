{% set width = "K" %}
{% set folds = [] %}
{% include "norm.wgsl" if with_norm else "thread.wgsl" %}
fn input(first: u32, k: u32, factor: f32) -> f32 {
    let at = min(k, K - 1u);
    return select(0.0, {{ "norm[at] * (x[first + at] * factor)" if with_norm else "x[first + at]" }}, k < K);
}

var<workgroup> peaks: array<f32, THREADS>;
var<workgroup> sums: array<i32, THREADS>;

// Largest magnitude that counts as zero, since the reciprocal of its scale would overflow.
const TINY: f32 = 1e-30;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let first = row * K;
    let factor = {{ "norm_factor(first, thread)" if with_norm else "1.0" }};
    // Every thread takes four values, a team of 32 a block of 128.
    let block = group.x * (THREADS / 32u) + thread.index / 32u;
    let k = block * 128u + thread.index % 32u * 4u;
    let y = vec4<f32>(
        input(first, k, factor),
        input(first, k + 1u, factor),
        input(first, k + 2u, factor),
        input(first, k + 3u, factor),
    );
    let high = max(abs(y.xy), abs(y.zw));
    peaks[thread.index] = max(high.x, high.y);
    workgroupBarrier();
    let team = thread.index / 32u * 32u;
    var peak = 0.0;
    for (var i = 0u; i < 32u; i++) {
        peak = max(peak, peaks[team + i]);
    }
    let zero = peak < TINY;
    let scale = select(peak / 127.0, 0.0, zero);
    let inverse = select(127.0 / peak, 0.0, zero);
    let codes = vec4<i32>(round(y * inverse));
    sums[thread.index] = codes.x + codes.y + codes.z + codes.w;
    workgroupBarrier();
    if (block < BLOCKS) {
        let to = ((row / 4u * BLOCKS + block) * ACT_WORDS) * 4u + row % 4u;
        let word = (codes.x & 255) | ((codes.y & 255) << 8u) | ((codes.z & 255) << 16u) | (codes.w << 24u);
        quantized[to + thread.index % 32u * 4u] = bitcast<u32>(word);
        if (thread.index % 8u == 0u) {
            var sum = 0;
            for (var i = 0u; i < 8u; i++) {
                sum += sums[thread.index + i];
            }
            quantized[to + (32u + thread.index % 32u / 8u) * 4u] = bitcast<u32>(sum);
        }
        if (thread.index % 32u == 0u) {
            quantized[to + 36u * 4u] = bitcast<u32>(scale);
        }
    }
}
