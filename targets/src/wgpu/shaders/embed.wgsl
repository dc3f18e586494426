@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    let k = id.x;
    if (row >= call.live || k >= K) {
        return;
    }
    // An id of another shard wraps around to a large number.
    let token = u32(ids[row]) - FIRST_ID;
    if (token < N) {
        out[row * K + k] = weight(token / 16u * TILE_WORDS, token % 16u, k);
    }
}
