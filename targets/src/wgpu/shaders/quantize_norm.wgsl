fn row_factor(row: u32, thread: Thread) -> f32 {
    var squares = 0.0;
    for (var k = thread.index; k < K; k += THREADS) {
        let v = x[row * K + k];
        squares = fma(v, v, squares);
    }
    return 1.0 / sqrt(workgroup_sum(squares, thread) / f32(K) + EPS);
}

fn input(row: u32, k: u32, factor: f32) -> f32 {
    let at = min(k, K - 1u);
    return select(0.0, norm[at] * (x[row * K + at] * factor), k < K);
}
