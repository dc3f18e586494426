{% include "product.wgsl" %}

{% if post == "swiglu" %}
{% include "silu.wgsl" %}

{% endif %}
fn store(row: u32, n: u32{% for w in range(weights) %}, sum{{ w }}: f32{% endfor %}) {
    if (row < min(call.live, ROWS)) {
        let at = row * STRIDE + FIRST + n;
{% for w in range(weights) %}
        let value{{ w }} = sum{{ w }}{{ " + bias" ~ w ~ "[FIRST + n]" if bias }};
{% endfor %}
        out[at] = {{ {"store": "value0", "add": "residual[at] + value0", "swiglu": "silu(value0) * value1"}[post] }};
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row_group = group.x * GROUPS;
    let tile = (group.y + group.z * GRID_Y) * SIDE;
    if (row_group * 4u >= call.live || tile >= TILES) {
        return;
    }
{% if books %}
    open_books(thread);
{% endif %}
    let column = thread % 16u;
    let slice = thread / COLUMNS;
    let base = min(tile + thread / 16u % SIDE, TILES - 1u) * TILE_WORDS;
{% include "product_sums.wgsl" %}
    if (slice == 0u && tile * 16u + thread < N) {
{% for g in range(GROUPS) %}
{% for c in "xyzw" %}
        store((row_group + {{ g }}u) * 4u + {{ loop.index0 }}u, tile * 16u + thread
            {%- for w in range(weights) %}, acc{{ w }}_{{ g }}.{{ c }}{% endfor %});
{% endfor %}
{% endfor %}
    }
}
