// One workgroup per chunk of WIDTH features.
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let first = (row * CHUNKS + group.x) * WIDTH;
    var squares = 0.0;
    for (var i = thread.index; i < WIDTH; i += THREADS) {
        let v = x[first + i];
        squares = fma(v, v, squares);
    }
    let factor = 1.0 / sqrt(workgroup_sum(squares, thread) / f32(WIDTH) + EPS);
    for (var i = thread.index; i < WIDTH; i += THREADS) {
        out[first + i] = norm[i] * (x[first + i] * factor);
    }
}
