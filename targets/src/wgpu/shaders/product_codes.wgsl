{# A block of the product with codes: exact sums over a quarter of the block, then the scales of the group. #}
        let block = step * SLICES + slice;
        if (block < BLOCKS) {
            let first = base + block * BLOCK_WORDS;
            let staged = slice * ACT_WORDS * GROUPS;
{% for g in range(GROUPS) %}
            let unit{{ g }} = bitcast<vec4<f32>>(pool[staged + 36u * GROUPS + {{ g }}u]);
            var ones{{ g }} = vec4<i32>();
{% for w in range(weights) %}
            var sum{{ w }}_{{ g }} = vec4<i32>();
{% endfor %}
{% endfor %}
            for (var quarter = 0u; quarter < 4u; quarter++) {
                let at = first + quarter * {{ bits * 16 }}u + column;
{% for w in range(weights) %}
{% for v in range(bits) %}
                let word{{ w }}_{{ v }} = weight{{ w }}[at + {{ v * 16 }}u];
{% endfor %}
{% if books %}
                let levels{{ w }} = weight{{ w }}[first + LEVELS_AT + column / 2u];
{% for j in range(2) %}
                let level{{ w }}_{{ j }} = level_of(levels{{ w }}, column, quarter * 2u + {{ j }}u);
{% endfor %}
{% endif %}
{% for j in range(8) %}
{% if books %}
                let code{{ w }}_{{ j }} =
                    numbers((word{{ w }}_{{ j // 2 }} >> {{ j % 2 * 4 }}u) & 0x0f0f0f0fu, level{{ w }}_{{ j // 4 }});
{% elif bits == 8 %}
                let code{{ w }}_{{ j }} = word{{ w }}_{{ j }} ^ 0x80808080u;
{% else %}
                let code{{ w }}_{{ j }} = (word{{ w }}_{{ j // 2 }} >> {{ j % 2 * 4 }}u) & 0x0f0f0f0fu;
{% endif %}
{% endfor %}
{% endfor %}
                let from_act = staged + quarter * 8u * GROUPS;
{% for j in range(8) %}
{% for g in range(GROUPS) %}
                let act{{ j }}_{{ g }} = pool[from_act + {{ j * GROUPS + g }}u];
{% for w in range(weights) %}
                sum{{ w }}_{{ g }} = dots(sum{{ w }}_{{ g }}, code{{ w }}_{{ j }}, act{{ j }}_{{ g }});
{% endfor %}
{% endfor %}
{% endfor %}
{% for g in range(GROUPS) %}
                ones{{ g }} += bitcast<vec4<i32>>(pool[staged + (32u + quarter) * GROUPS + {{ g }}u]);
{% endfor %}
                if ((quarter + 1u) % (WEIGHT_GROUP / 32u) == 0u) {
                    let entry = first + CODE_WORDS + quarter / (WEIGHT_GROUP / 32u) * 8u + column / 2u;
{% for w in range(weights) %}
                    let scale{{ w }} = half_of(weight{{ w }}[entry], column);
{% if minimums %}
                    let low{{ w }} = half_of(weight{{ w }}[entry + TABLE_WORDS], column);
{% endif %}
{% for g in range(GROUPS) %}
                    acc{{ w }}_{{ g }} = fma(
                        vec4<f32>(sum{{ w }}_{{ g }} + CORRECTION * ones{{ g }}),
                        scale{{ w }} * unit{{ g }},
                        acc{{ w }}_{{ g }},
                    );
{% if minimums %}
                    acc{{ w }}_{{ g }} = fma(vec4<f32>(ones{{ g }}), low{{ w }} * unit{{ g }}, acc{{ w }}_{{ g }});
{% endif %}
                    sum{{ w }}_{{ g }} = vec4<i32>();
{% endfor %}
{% endfor %}
{% for g in range(GROUPS) %}
                    ones{{ g }} = vec4<i32>();
{% endfor %}
                }
            }
        }
