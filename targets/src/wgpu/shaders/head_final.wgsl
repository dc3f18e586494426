{% include "stats.wgsl" %}

var<workgroup> parts: array<Stats, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    if (row >= call.live) {
        return;
    }
    var s = no_stats();
    for (var i = thread; i < CHUNKS; i += THREADS) {
        let at = (row * CHUNKS + i) * 6u;
        s = merged(s, Stats(
            bitcast<f32>(partials[at]),
            bitcast<f32>(partials[at + 1u]),
            bitcast<f32>(partials[at + 2u]),
            bitcast<f32>(partials[at + 3u]),
            bitcast<f32>(partials[at + 4u]),
            partials[at + 5u],
        ));
    }
    parts[thread] = s;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            parts[thread] = merged(parts[thread], parts[thread + half]);
        }
    }
    if (thread == 0u) {
        s = parts[0];
        let probability = exp(max(s.best - s.top, FLOOR)) / s.sum;
        let second = exp(max(s.second - s.top, FLOOR)) / s.sum;
        // A row without a single number has no best token; the first that is allowed keeps the id valid.
        best[row] = i32(select(s.id, FIRST_ALLOWED, s.id == NOBODY));
        stats[row * 3u] = probability;
        stats[row * 3u + 1u] = probability - second;
        stats[row * 3u + 2u] = max(log(s.sum) - s.weighted / s.sum, 0.0);
    }
}
