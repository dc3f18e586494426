{# A block of the product with a float matrix. #}
        let first = (step * SLICES + slice) * FLOAT_BLOCK;
        let count = select(0u, min(FLOAT_BLOCK, K - first), first < K);
        for (var i = 0u; i < count; i++) {
{% for w in range(weights) %}
            let value{{ w }} = element(weight{{ w }}[word_of(base, first + i, column)], column);
{% endfor %}
{% for g in range(GROUPS) %}
            let act{{ g }} = bitcast<vec4<f32>>(pool[((slice * FLOAT_BLOCK + i) * GROUPS + {{ g }}u)]);
{% for w in range(weights) %}
            acc{{ w }}_{{ g }} = fma(act{{ g }}, vec4<f32>(value{{ w }}), acc{{ w }}_{{ g }});
{% endfor %}
{% endfor %}
        }
