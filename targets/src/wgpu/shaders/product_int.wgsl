const ACT_WORDS: u32 = 37u;

var<workgroup> pool: array<vec4<u32>, POOL>;

// Four codes of a column times those of four rows.
fn dots(sum: vec4<i32>, codes: u32, rows: vec4<u32>) -> vec4<i32> {
    return sum + vec4<i32>(
        dot4I8Packed(codes, rows.x),
        dot4I8Packed(codes, rows.y),
        dot4I8Packed(codes, rows.z),
        dot4I8Packed(codes, rows.w),
    );
}

fn half_of(word: u32, column: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, (column & 1u) == 1u);
}
