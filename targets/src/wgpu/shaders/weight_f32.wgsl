fn word_of(base: u32, k: u32, column: u32) -> u32 {
    return base + k * 16u + column;
}

fn element(word: u32, column: u32) -> f32 {
    return bitcast<f32>(word);
}
