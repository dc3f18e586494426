{% set values = {
    "add": "a[i] + b[i]",
    "copy": "a[i]",
    "mul": "a[i] * b[i]",
    "scale": "a[i] * BY",
    "silu": "silu(a[i])",
    "silu_mul": "silu(a[i]) * b[i]",
} %}
{% include "silu.wgsl" %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.x + group.y * GRID_X) * 256u + thread;
    if (i < min(call.live, ROWS) * WIDTH) {
        out[i] = {{ values[op] }};
    }
}
