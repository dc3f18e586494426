{# What `product_sums.wgsl` uses. #}
{% include "weight.wgsl" %}

var<workgroup> pool: array<vec4<u32>, POOL>;

{% if books %}
var<workgroup> book: array<u32, 16>;

// To be called by all threads, ahead of a barrier.
fn open_books(thread: u32) {
    if (thread == 0u) {
{% for word in books %}
        book[{{ loop.index0 }}] = {{ word }}u;
{% endfor %}
    }
}

fn numbers(codes: u32, level: u32) -> u32 {
    let places = codes | (level * 0x10101010u);
    let words = vec4<u32>(
        book[(places >> 2u) & 15u],
        book[(places >> 10u) & 15u],
        book[(places >> 18u) & 15u],
        book[(places >> 26u) & 15u],
    );
    let shifts = (vec4<u32>(places, places >> 8u, places >> 16u, places >> 24u) & vec4<u32>(3u)) * 8u;
    let bytes = (words >> shifts) & vec4<u32>(255u);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}

{% endif %}
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
