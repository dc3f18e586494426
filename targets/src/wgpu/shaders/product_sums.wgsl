{# Statements that compute `acc{weight}_{group}`, a vector of four rows each, valid in slice 0. In scope: `thread`, `slice`,
   `row_group` and `base`, the first word of the thread's tile. They begin and end the use of `pool`. Everything is
   unrolled by name, so that sums stay in registers on any driver; `sums` are its pairs of a weight and a group. #}
{% for w, g in sums %}
    var acc{{ w }}_{{ g }} = vec4<f32>();
{% endfor %}
    for (var step = 0u; step < STEPS; step++) {
        workgroupBarrier();
        for (var i = thread; i < STAGED; i += THREADS) {
{% if weight == "codes" %}
            let vector = min(step * STAGED + i, ROW_VECTORS - 1u);
{% for g in range(GROUPS) %}
            pool[i * GROUPS + {{ g }}u] = activations[min(row_group + {{ g }}u, ROW_GROUPS - 1u) * ROW_VECTORS + vector];
{% endfor %}
{% else %}
            let k = step * STAGED + i;
{% for g in range(GROUPS) %}
            pool[i * GROUPS + {{ g }}u] = four_rows((row_group + {{ g }}u) * 4u, k);
{% endfor %}
{% endif %}
        }
        workgroupBarrier();
{% include "product_codes.wgsl" if weight == "codes" else "product_float.wgsl" %}
    }
{% if SLICES > 1 %}
    workgroupBarrier();
    if (slice > 0u) {
        let to = (slice - 1u) * {{ sums | length }}u;
{% for w, g in sums %}
        pool[(to + {{ loop.index0 }}u) * COLUMNS + thread % COLUMNS] = bitcast<vec4<u32>>(acc{{ w }}_{{ g }});
{% endfor %}
    }
    workgroupBarrier();
    if (slice == 0u) {
        for (var other = 0u; other < SLICES - 1u; other++) {
            let from_slice = other * {{ sums | length }}u;
{% for w, g in sums %}
            acc{{ w }}_{{ g }} += bitcast<vec4<f32>>(pool[(from_slice + {{ loop.index0 }}u) * COLUMNS + thread % COLUMNS]);
{% endfor %}
        }
    }
{% endif %}
