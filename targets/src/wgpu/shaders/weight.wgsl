{# How numbers are read from a packed weight: of a float matrix by its elements, of codes by their scales and minimums. #}
{% if weight in ["f16", "codes"] %}
fn half_of(word: u32, column: u32) -> f32 {
    let both = unpack2x16float(word);
    return select(both.x, both.y, (column & 1u) == 1u);
}
{% endif %}
{% if books %}
// Numbers of the codebooks, four to a word.
const BOOKS: array<u32, 16> = array<u32, 16>({% for word in books %}{{ word }}u, {% endfor %});

// Two bits for each of eight runs of sixteen k.
fn level_of(word: u32, column: u32, run: u32) -> u32 {
    return (word >> ((column & 1u) * 16u + run * 2u)) & 3u;
}
{% endif %}
{% if weight != "codes" %}

fn word_of(base: u32, k: u32, column: u32) -> u32 {
    return base + {{ "k * 16u + column" if weight == "f32" else "k * 8u + column / 2u" }};
}

fn element(word: u32, column: u32) -> f32 {
{% if weight == "f16" %}
    return half_of(word, column);
{% elif weight == "bf16" %}
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (column & 1u) == 1u));
{% else %}
    return bitcast<f32>(word);
{% endif %}
}
{% endif %}
