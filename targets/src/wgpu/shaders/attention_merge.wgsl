// One workgroup per row and head puts the parts of its keys together.
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.y;
    if (row >= call.live) {
        return;
    }
    let head = group.x;
    let pair = row * PER + head % PER;
    let first = (head / PER * PAIRS + pair) * (HEAD_DIM + 2u);
    var top = parts[first + HEAD_DIM];
    for (var s = 1u; s < SPLITS; s++) {
        top = max(top, parts[first + s * SPLIT_WORDS + HEAD_DIM]);
    }
    var total = 0.0;
    for (var s = 0u; s < SPLITS; s++) {
        let at = first + s * SPLIT_WORDS + HEAD_DIM;
        total += parts[at + 1u] * exp(parts[at] - top);
    }
    let inverse = select(0.0, 1.0 / total, total > 0.0);
    for (var d = thread; d < HEAD_DIM; d += 64u) {
        var sum = 0.0;
        for (var s = 0u; s < SPLITS; s++) {
            let at = first + s * SPLIT_WORDS;
            sum = fma(parts[at + d], exp(parts[at + HEAD_DIM] - top), sum);
        }
        out[(row * HEADS + head) * HEAD_DIM + d] = sum * inverse;
    }
}
