fn weight(base: u32, column: u32, k: u32) -> f32 {
    let block = base + k / 128u * BLOCK_WORDS;
    let entry = block + CODE_WORDS + k % 128u / GROUP * 8u + column / 2u;
    let word = weight0[block + k % 128u / PER_WORD * 16u + column];
    // The low nibbles are the first four of eight.
    let shift = k % 4u * 8u + select(0u, 4u, PER_WORD == 8u && k % 8u >= 4u);
    let code = f32((word >> shift) & CODE_MASK) - ZERO;
    return fma(half_of(weight0[entry], column), code, low(entry, column));
}

fn half_of(word: u32, column: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, (column & 1u) == 1u);
}
