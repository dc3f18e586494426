fn word_of(base: u32, k: u32, column: u32) -> u32 {
    return base + k * 8u + column / 2u;
}

fn element(word: u32, column: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (column & 1u) == 1u));
}
