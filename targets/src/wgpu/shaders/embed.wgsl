{% include "weight.wgsl" %}

fn number(base: u32, column: u32, k: u32) -> f32 {
{% if weight == "codes" %}
    let block = base + k / 128u * BLOCK_WORDS;
    let entry = block + CODE_WORDS + k % 128u / WEIGHT_GROUP * 8u + column / 2u;
    let word = weight0[block + k % 128u / {{ 32 // bits }}u * 16u + column];
{% if bits == 4 %}
    // The low nibbles are the first four of eight.
    let code = (word >> (k % 4u * 8u + select(0u, 4u, k % 8u >= 4u))) & 15u;
{% else %}
    let code = (word >> (k % 4u * 8u)) & 255u;
{% endif %}
{% if books %}
    let place = code | (level_of(weight0[block + LEVELS_AT + column / 2u], column, k % 128u / 16u) << 4u);
    var books = BOOKS;
    let number = f32(extractBits(bitcast<i32>(books[place / 4u]), place % 4u * 8u, 8u));
{% else %}
    let number = f32(code) - ZERO;
{% endif %}
    let low = {{ "half_of(weight0[entry + TABLE_WORDS], column)" if minimums else "0.0" }};
    return fma(half_of(weight0[entry], column), number, low);
{% else %}
    return element(weight0[word_of(base, k, column)], column);
{% endif %}
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    let k = id.x;
    if (row >= call.live || k >= K) {
        return;
    }
    // An id of another shard wraps around to a large number.
    let token = u32(ids[row]) - FIRST_ID;
    if (token < N) {
        out[row * K + k] = number(token / 16u * TILE_WORDS, token % 16u, k);
    }
}
