{# What `product_sums.wgsl` uses. #}
{% include "weight.wgsl" %}

var<workgroup> pool: array<vec4<u32>, POOL>;

{% if weight == "codes" %}
// Four codes of a column times those of four rows.
fn dots(sum: vec4<i32>, codes: u32, rows: vec4<u32>) -> vec4<i32> {
    return sum + vec4<i32>(
        dot4I8Packed(codes, rows.x),
        dot4I8Packed(codes, rows.y),
        dot4I8Packed(codes, rows.z),
        dot4I8Packed(codes, rows.w),
    );
}
{% else %}
fn row_value(row: u32, k: u32) -> f32 {
    return select(0.0, activations[min(row, ROWS - 1u) * K + min(k, K - 1u)], k < K);
}

fn four_rows(row: u32, k: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(vec4<f32>(
        row_value(row, k),
        row_value(row + 1u, k),
        row_value(row + 2u, k),
        row_value(row + 3u, k),
    ));
}
{% endif %}
