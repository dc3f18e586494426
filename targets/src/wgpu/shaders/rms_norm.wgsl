{% set width = "WIDTH" %}
{% include "norm.wgsl" %}
// One workgroup per chunk of WIDTH features.
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let first = (row * CHUNKS + group.x) * WIDTH;
    let factor = norm_factor(first, thread);
    for (var i = thread.index; i < WIDTH; i += THREADS) {
        out[first + i] = norm[i] * (x[first + i] * factor);
    }
}
