// A thread writes one word of both caches.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = call.at_row + id.y;
    if (id.y >= call.live || row >= min(call.end_row, MAX_SEQ) || id.x >= WORDS) {
        return;
    }
    let to = row * WORDS + id.x;
    let first = (id.y * WORDS + id.x) * PER_WORD;
    k_cache[to] = word(k[first], k[first + PER_WORD - 1u]);
    v_cache[to] = word(v[first], v[first + PER_WORD - 1u]);
}
