    for (var i = thread.index; i < HEAD_DIM * PAIRS_HERE; i += THREADS) {
        let d = i % HEAD_DIM;
        let p = i / HEAD_DIM;
        let pair = first_pair + p;
        let row = pair / PER;
        if (row < min(call.live, ROWS)) {
            let total = totals[p / 4u][p % 4u];
            let inverse = select(0.0, 1.0 / total, total > 0.0);
            let head = group.y * PER + pair % PER;
            out[(row * HEADS + head) * HEAD_DIM + d] = tile[d * GROUPS + p / 4u][p % 4u] * inverse;
        }
    }
}
