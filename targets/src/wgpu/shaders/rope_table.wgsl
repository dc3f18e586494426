// Multiples of a quarter turn are taken off in three parts, whose products with the count are exact or nearly so; built-in
// sines are not precise enough for large angles, nor good to more than 2^-11 on some devices.
const QUARTER_HIGH: f32 = 1.5703125;
const QUARTER_MIDDLE: f32 = 4.837512969970703125e-4;
const QUARTER_LOW: f32 = 7.549789948768648e-8;
const QUARTERS_PER_RADIAN: f32 = 0.63661977236758134;
const FREQUENCIES = array<f32, HALF>({{ frequencies | join(", ") }});

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    let i = id.x;
    if (row >= call.live || i >= HALF) {
        return;
    }
    var frequencies = FREQUENCIES;
    let angle = f32(positions[row]) * frequencies[i];
    let turns = round(angle * QUARTERS_PER_RADIAN);
    let r = ((angle - turns * QUARTER_HIGH) - turns * QUARTER_MIDDLE) - turns * QUARTER_LOW;
    let z = r * r;
    let s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r;
    let c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0;
    let quadrant = u32(i32(turns)) & 3u;
    let swap = (quadrant & 1u) == 1u;
    let cosine = select(c, s, swap);
    let sine = select(s, c, swap);
    table[row * HALF * 2u + i] = select(cosine, -cosine, quadrant == 1u || quadrant == 2u);
    table[row * HALF * 2u + HALF + i] = select(sine, -sine, quadrant >= 2u);
}
