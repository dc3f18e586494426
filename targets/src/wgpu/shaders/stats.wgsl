// Smaller differences to the greatest logit contribute nothing.
const FLOOR: f32 = -100.0;
const LOWEST: f32 = -3.4028234e38;
const NOBODY: u32 = 0xffffffffu;

struct Stats {
    top: f32,
    // Sum of e^(z - top), and of (z - top) times that.
    sum: f32,
    weighted: f32,
    // Greatest and second greatest logit that may be chosen.
    best: f32,
    second: f32,
    id: u32,
}

fn no_stats() -> Stats {
    return Stats(LOWEST, 0.0, 0.0, LOWEST, LOWEST, NOBODY);
}

fn merged(a: Stats, b: Stats) -> Stats {
    var s: Stats;
    s.top = max(a.top, b.top);
    let da = max(a.top - s.top, FLOOR);
    let db = max(b.top - s.top, FLOOR);
    let ea = exp(da);
    let eb = exp(db);
    s.sum = a.sum * ea + b.sum * eb;
    s.weighted = ea * (a.weighted + da * a.sum) + eb * (b.weighted + db * b.sum);
    if (b.best > a.best || (b.best == a.best && b.id < a.id)) {
        s.best = b.best;
        s.id = b.id;
        s.second = max(a.best, b.second);
    } else {
        s.best = a.best;
        s.id = a.id;
        s.second = max(a.second, b.best);
    }
    return s;
}
