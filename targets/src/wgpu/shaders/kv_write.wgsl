{% include "cache.wgsl" %}

// A thread writes one word of both caches.
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.y >= call.live || id.x >= WORDS) {
        return;
    }
    var s = 0u;
    while (s < call.spans && call.span[s].end <= id.y) {
        s++;
    }
    if (s >= call.spans) {
        return;
    }
    let row = call.span[s].at_row + id.y - call.span[s].first;
    if (row >= MAX_SEQ) {
        return;
    }
    let to = (call.span[s].base + row) * WORDS + id.x;
    let first = (id.y * WORDS + id.x) * PER_WORD;
    k_cache[to] = word(k[first], k[first + PER_WORD - 1u]);
    v_cache[to] = word(v[first], v[first + PER_WORD - 1u]);
}
