{% include "stats.wgsl" %}

{% include "product.wgsl" %}

var<workgroup> logits: array<f32, LOGITS>;
var<workgroup> parts: array<Stats, PARTS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_group = group.x * GROUPS;
    let chunk = group.y + group.z * GRID_Y;
    if (row_group * 4u >= call.live || chunk >= CHUNKS) {
        return;
    }
{% if books %}
    open_books(thread);
{% endif %}
    let column = thread % 16u;
    let slice = thread / COLUMNS;
    for (var pass_index = 0u; pass_index < PASSES; pass_index++) {
        let tile = (chunk * PASSES + pass_index) * SIDE;
        let base = min(tile + thread / 16u % SIDE, TILES - 1u) * TILE_WORDS;
{% include "product_sums.wgsl" %}
        if (slice == 0u) {
            let to = pass_index * COLUMNS + thread;
{% for g in range(GROUPS) %}
{% for c in "xyzw" %}
            logits[{{ g * 4 + loop.index0 }}u * CHUNK + to] = acc0_{{ g }}.{{ c }};
{% endfor %}
{% endfor %}
        }
    }
    workgroupBarrier();
    let first_id = chunk * CHUNK;
    let count = min(CHUNK, N - first_id);
    for (var row = thread / TEAM; row < ROWS_HERE; row += THREADS / TEAM) {
        var s = no_stats();
        for (var i = thread % TEAM; i < count; i += TEAM) {
            let z = logits[row * CHUNK + i];
            s.top = max(s.top, z);
            let id = FIRST_ID + first_id + i;
            if (id != BAN) {
                if (z > s.best) {
                    s.second = s.best;
                    s.best = z;
                    s.id = id;
                } else {
                    s.second = max(s.second, z);
                }
            }
        }
        for (var i = thread % TEAM; i < count; i += TEAM) {
            let d = max(logits[row * CHUNK + i] - s.top, FLOOR);
            let e = exp(d);
            s.sum += e;
            s.weighted += d * e;
        }
        parts[row * TEAM + thread % TEAM] = s;
    }
    workgroupBarrier();
    for (var row = thread; row < ROWS_HERE; row += THREADS) {
        var s = parts[row * TEAM];
        for (var i = 1u; i < TEAM; i++) {
            s = merged(s, parts[row * TEAM + i]);
        }
        let live_row = row_group * 4u + row;
        if (live_row < min(call.live, ROWS)) {
            let to = (live_row * ALL_CHUNKS + FIRST_CHUNK + chunk) * 6u;
            partials[to] = bitcast<u32>(s.top);
            partials[to + 1u] = bitcast<u32>(s.sum);
            partials[to + 2u] = bitcast<u32>(s.weighted);
            partials[to + 3u] = bitcast<u32>(s.best);
            partials[to + 4u] = bitcast<u32>(s.second);
            partials[to + 5u] = s.id;
        }
    }
}
