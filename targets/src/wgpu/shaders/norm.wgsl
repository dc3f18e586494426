{# What the norm multiplies `width` numbers of `x` with. #}
{% set folds = ["sum"] %}
{% set type = "f32" %}
{% include "thread.wgsl" %}
fn norm_factor(first: u32, thread: Thread) -> f32 {
    var squares = 0.0;
    for (var i = thread.index; i < {{ width }}; i += THREADS) {
        let v = x[first + i];
        squares = fma(v, v, squares);
    }
    return 1.0 / sqrt(workgroup_sum(squares, thread) / f32({{ width }}) + EPS);
}

