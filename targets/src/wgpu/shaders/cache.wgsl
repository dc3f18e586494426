{# How a word of a cache is made of one or two numbers. #}
{% if cache == "f16" %}
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
{% elif cache == "bf16" %}
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}
{% endif %}

fn word(a: f32, b: f32) -> u32 {
    return {{ "bitcast<u32>(a)" if cache == "f32" else "half_bits(a) | (half_bits(b) << 16u)" }};
}
