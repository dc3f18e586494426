{# Everything over pairs is unrolled by name, so that sums stay in registers on any driver. #}
{% set folds = ["max", "sum"] %}
{% set type = "vec4<f32>" %}
{% include "thread.wgsl" %}
// One past the last key that a row of its span may attend.
fn mask_end(row: u32) -> u32 {
{% if mask == "full" %}
    return 0xffffffffu;
{% elif mask == "causal" %}
    return row + 1u;
{% else %}
    return (row / MASK_BLOCK + 1u) * MASK_BLOCK;
{% endif %}
}

// The features in an element of the cache.
{% if f16 %}
fn unpacked(element: vec4<f16>) -> vec4<f32> {
    return vec4<f32>(element);
}
{% elif cache == "f16" %}
fn unpacked(element: u32) -> vec2<f32> {
    return unpack2x16float(element);
}
{% elif cache == "bf16" %}
fn unpacked(element: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>(element << 16u, element & 0xffff0000u));
}
{% else %}
fn unpacked(element: u32) -> f32 {
    return bitcast<f32>(element);
}
{% endif %}

const LOWEST: f32 = -3.4028234e38;

// Four pairs of a row and a head to a vector: queries first, then the weighted values.
var<workgroup> tile: array<vec4<f32>, TILE_VECTORS>;
var<workgroup> weights: array<vec4<f32>, WEIGHT_VECTORS>;
var<workgroup> tops: array<vec4<f32>, GROUPS>;
var<workgroup> totals: array<vec4<f32>, GROUPS>;

// One past the last key that a pair may attend, if its row is one of the span's.
fn key_end(pair: u32, span: Span) -> u32 {
    let row = pair / PER;
    let i = span.at_row + row - span.first;
    let end = span.base + min(min(span.visible, MAX_SEQ), mask_end(i));
    return select(0u, end, row >= span.first && row < min(span.end, ROWS));
}

fn key_ends(pair: u32, span: Span) -> vec4<u32> {
    return vec4<u32>(key_end(pair, span), key_end(pair + 1u, span), key_end(pair + 2u, span), key_end(pair + 3u, span));
}

fn query(pair: u32, kv_head: u32, d: u32) -> f32 {
    let row = min(pair / PER, ROWS - 1u);
    return q[(row * HEADS + kv_head * PER + pair % PER) * HEAD_DIM + d] * SCALE;
}

fn queries(pair: u32, kv_head: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(
        query(pair, kv_head, d),
        query(pair + 1u, kv_head, d),
        query(pair + 2u, kv_head, d),
        query(pair + 3u, kv_head, d),
    );
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let first_pair = group.x * PAIRS_HERE;
    if (first_pair / PER >= call.live) {
        return;
    }
    for (var i = thread.index; i < TILE_VECTORS; i += THREADS) {
        let d = i % HEAD_DIM;
        let g = i / HEAD_DIM;
        tile[d * GROUPS + g] = queries(first_pair + g * 4u, group.y, d);
    }
{% for g in range(GROUPS) %}
    var top{{ g }} = vec4<f32>(LOWEST);
    var total{{ g }} = vec4<f32>();
    var even{{ g }} = vec4<f32>();
    var odd{{ g }} = vec4<f32>();
{% endfor %}
    let slice = thread.index / (HEAD_DIM / 2u);
    let features = thread.index % (HEAD_DIM / 2u);
    workgroupBarrier();
    // The rows of a workgroup may belong to several spans; a pair sees no key of another span than its own.
    for (var s = 0u; s < call.spans; s++) {
        let span = call.span[s];
        if (span.end * PER <= first_pair || span.first * PER >= first_pair + PAIRS_HERE) {
            continue;
        }
        var all_ends = vec4<u32>();
{% for g in range(GROUPS) %}
        let ends{{ g }} = key_ends(first_pair + {{ g * 4 }}u, span);
        all_ends = max(all_ends, ends{{ g }});
{% endfor %}
        let stop = max(max(all_ends.x, all_ends.y), max(all_ends.z, all_ends.w));
        let origin = span.base + span.from_row;
        let rounds = (max(stop, origin) - origin + THREADS - 1u) / THREADS;
        let here = (rounds + SPLITS - 1u) / SPLITS * THREADS;
        let begin = origin + group.z * here;
        let end = min(stop, begin + here);
        for (var first = begin; first < end; first += THREADS) {
            // A thread takes a key.
            let key = first + thread.index;
{% for g in range(GROUPS) %}
            var score{{ g }} = vec4<f32>();
{% endfor %}
            if (key < end) {
                let at = (key * KV_HEADS + group.y) * (HEAD_DIM / LOAD);
                for (var c = 0u; c < HEAD_DIM / LOAD; c++) {
                    let part = k_cache[at + c];
{% for element in elements %}
                    let numbers{{ loop.index0 }} = unpacked(part{{ element }});
{% endfor %}
{% for i in range(LOAD) %}
{% set number = "numbers" ~ i // per_element ~ ("." ~ "xyzw"[i % per_element] if per_element > 1) %}
{% for g in range(GROUPS) %}
                    score{{ g }} = fma(vec4<f32>({{ number }}), tile[(c * LOAD + {{ i }}u) * GROUPS + {{ g }}u], score{{ g }});
{% endfor %}
{% endfor %}
                }
            }
{% for g in range(GROUPS) %}
            let seen{{ g }} = vec4<u32>(key) < min(ends{{ g }}, vec4<u32>(end));
            let high{{ g }} = max(top{{ g }}, workgroup_max(select(vec4<f32>(LOWEST), score{{ g }}, seen{{ g }}), thread));
            let shrink{{ g }} = exp(top{{ g }} - high{{ g }});
            let weight{{ g }} = select(vec4<f32>(), exp(score{{ g }} - high{{ g }}), seen{{ g }});
            total{{ g }} = fma(total{{ g }}, shrink{{ g }}, workgroup_sum(weight{{ g }}, thread));
            top{{ g }} = high{{ g }};
            even{{ g }} *= shrink{{ g }};
            odd{{ g }} *= shrink{{ g }};
{% endfor %}
{% for g in range(GROUPS) %}
            weights[thread.index * GROUPS + {{ g }}u] = weight{{ g }};
{% endfor %}
            workgroupBarrier();
            // Then it takes two features of the values.
            if (slice < SLICES) {
                let count = min(THREADS, end - first);
                for (var i = slice; i < count; i += SLICES) {
{% if f16 %}
                    let at = ((first + i) * KV_HEADS + group.y) * (HEAD_DIM / 2u) + features;
                    let value = vec2<f32>(v_cache[at]);
{% elif per_element == 2 %}
                    let at = ((first + i) * KV_HEADS + group.y) * (HEAD_DIM / 2u) + features;
                    let value = unpacked(v_cache[at]);
{% else %}
                    let at = ((first + i) * KV_HEADS + group.y) * HEAD_DIM + features * 2u;
                    let value = vec2<f32>(unpacked(v_cache[at]), unpacked(v_cache[at + 1u]));
{% endif %}
{% for g in range(GROUPS) %}
                    let share{{ g }} = weights[i * GROUPS + {{ g }}u];
                    even{{ g }} = fma(share{{ g }}, vec4<f32>(value.x), even{{ g }});
                    odd{{ g }} = fma(share{{ g }}, vec4<f32>(value.y), odd{{ g }});
{% endfor %}
                }
            }
        }
    }
    if (thread.index == 0u) {
{% for g in range(GROUPS) %}
        tops[{{ g }}] = top{{ g }};
        totals[{{ g }}] = total{{ g }};
{% endfor %}
    }
    workgroupBarrier();
    for (var turn = 0u; turn < SLICES; turn++) {
        if (slice == turn) {
{% for g in range(GROUPS) %}
{% for name in ["even", "odd"] %}
{% set at = "(features * 2u + " ~ loop.index0 ~ "u) * GROUPS + " ~ g ~ "u" %}
            tile[{{ at }}] = select(tile[{{ at }}], vec4<f32>(), turn == 0u) + {{ name }}{{ g }};
{% endfor %}
{% endfor %}
        }
        workgroupBarrier();
    }
    for (var i = thread.index; i < HEAD_DIM * PAIRS_HERE; i += THREADS) {
        let d = i % HEAD_DIM;
        let p = i / HEAD_DIM;
        let pair = first_pair + p;
        let row = pair / PER;
        if (row < min(call.live, ROWS)) {
            let sum = tile[d * GROUPS + p / 4u][p % 4u];
            let total = totals[p / 4u][p % 4u];
{% if SPLITS > 1 %}
            let to = ((group.z * KV_HEADS + group.y) * PAIRS + pair) * (HEAD_DIM + 2u);
            out[to + d] = sum;
            if (d == 0u) {
                out[to + HEAD_DIM] = tops[p / 4u][p % 4u];
                out[to + HEAD_DIM + 1u] = total;
            }
{% else %}
            let inverse = select(0.0, 1.0 / total, total > 0.0);
            let head = group.y * PER + pair % PER;
            out[(row * HEADS + head) * HEAD_DIM + d] = sum * inverse;
{% endif %}
        }
    }
}
