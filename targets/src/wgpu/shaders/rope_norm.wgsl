fn head_factor(first: u32, thread: Thread) -> f32 {
    var squares = 0.0;
    for (var i = thread.index; i < HEAD_DIM; i += THREADS) {
        let v = x[first + i];
        squares = fma(v, v, squares);
    }
    return 1.0 / sqrt(workgroup_sum(squares, thread) / f32(HEAD_DIM) + EPS);
}

fn input(first: u32, i: u32, factor: f32) -> f32 {
    return norm[i] * (x[first + i] * factor);
}
