// To the nearest, ties to even; `pack2x16float` may round as the device likes.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    // Below the smallest normal number, the value in units of 2^-24.
    let small = u32(round(bitcast<f32>(size) * 16777216.0));
    let normal = (size + ((size >> 13u) & 1u) - 0x37fff001u) >> 13u;
    let large = select(0x7c00u, 0x7e00u, size > 0x7f800000u);
    return sign | select(select(normal, small, size < 0x38800000u), large, size >= 0x47800000u);
}

fn word(a: f32, b: f32) -> u32 {
    return half_bits(a) | (half_bits(b) << 16u);
}
