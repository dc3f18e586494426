fn word_of(base: u32, k: u32, column: u32) -> u32 {
    return base + k * 8u + column / 2u;
}

fn element(word: u32, column: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, (column & 1u) == 1u);
}
