const LOWEST: f32 = -3.4028234e38;

// Four pairs of a row and a head to a vector: queries first, then the weighted values.
var<workgroup> tile: array<vec4<f32>, TILE_VECTORS>;
var<workgroup> weights: array<vec4<f32>, WEIGHT_VECTORS>;
var<workgroup> tops: array<vec4<f32>, GROUPS>;
var<workgroup> totals: array<vec4<f32>, GROUPS>;

// One past the last key that a pair may attend.
fn key_end(pair: u32) -> u32 {
    let row = pair / PER;
    let i = call.at_row + row;
    return select(0u, min(min(call.visible, MAX_SEQ), mask_end(i)), row < min(call.live, ROWS));
}

fn key_ends(pair: u32) -> vec4<u32> {
    return vec4<u32>(key_end(pair), key_end(pair + 1u), key_end(pair + 2u), key_end(pair + 3u));
}

fn query(pair: u32, kv_head: u32, d: u32) -> f32 {
    let row = min(pair / PER, ROWS - 1u);
    return q[(row * HEADS + kv_head * PER + pair % PER) * HEAD_DIM + d] * SCALE;
}

fn queries(pair: u32, kv_head: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(
        query(pair, kv_head, d),
        query(pair + 1u, kv_head, d),
        query(pair + 2u, kv_head, d),
        query(pair + 3u, kv_head, d),
    );
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let first_pair = group.x * PAIRS_HERE;
    if (first_pair / PER >= call.live) {
        return;
    }
    for (var i = thread.index; i < TILE_VECTORS; i += THREADS) {
        let d = i % HEAD_DIM;
        let g = i / HEAD_DIM;
        tile[d * GROUPS + g] = queries(first_pair + g * 4u, group.y, d);
    }
