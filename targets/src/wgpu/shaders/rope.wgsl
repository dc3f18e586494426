// One workgroup per row and head; a thread rotates pairs half a head apart.
@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, thread: Thread) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let first = (row * HEADS + group.x) * HEAD_DIM;
    let factor = head_factor(first, thread);
    for (var i = thread.index; i < HALF; i += THREADS) {
        let a = input(first, i, factor);
        let b = input(first, i + HALF, factor);
        let c = table[row * HEAD_DIM + i];
        let s = table[row * HEAD_DIM + HALF + i];
        out[first + i] = a * c - b * s;
        out[first + i + HALF] = b * c + a * s;
    }
}
