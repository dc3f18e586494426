const FLOAT_BLOCK: u32 = 32u;

var<workgroup> pool: array<vec4<u32>, POOL>;

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
