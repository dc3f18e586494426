{% set width = "HEAD_DIM" %}
{% set folds = [] %}
{% include "norm.wgsl" if with_norm else "thread.wgsl" %}
{% macro input(i) %}
{{ "norm[" ~ i ~ "] * (x[first + " ~ i ~ "] * factor)" if with_norm else "x[first + " ~ i ~ "]" }}
{%- endmacro %}
// One workgroup per row and head; a thread rotates pairs half a head apart.
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let first = (row * HEADS + group.x) * HEAD_DIM;
{% if with_norm %}
    let factor = norm_factor(first, thread);
{% endif %}
    for (var i = thread.index; i < HALF; i += THREADS) {
        let a = {{ input("i") }};
        let b = {{ input("i + HALF") }};
        let c = table[row * HEAD_DIM + i];
        let s = table[row * HEAD_DIM + HALF + i];
        out[first + i] = a * c - b * s;
        out[first + i + HALF] = b * c + a * s;
    }
}
