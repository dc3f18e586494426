    for (var i = thread.index; i < HEAD_DIM * PAIRS_HERE; i += THREADS) {
        let d = i % HEAD_DIM;
        let p = i / HEAD_DIM;
        let pair = first_pair + p;
        if (pair / PER < min(call.live, ROWS)) {
            let to = ((group.z * KV_HEADS + group.y) * PAIRS + pair) * (HEAD_DIM + 2u);
            out[to + d] = tile[d * GROUPS + p / 4u][p % 4u];
            if (d == 0u) {
                out[to + HEAD_DIM] = tops[p / 4u][p % 4u];
                out[to + HEAD_DIM + 1u] = totals[p / 4u][p % 4u];
            }
        }
    }
}
