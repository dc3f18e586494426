//! Ops with states: the same calls on an evaluator, which keeps them, and on burn tensors that are kept here.

use burn::tensor::{FloatDType, Tensor as Burn, TensorData};
use dlx_ir::{DType, Evaluator, MAX_SPANS, Mask, SPAN_FIELDS, SpanRows, Tensor, parse};

use crate::cases::{Rng, of_ints};
use crate::compare::{Within, Worst, compare};
use crate::ops::{attend, sees};
use crate::value::{Value, device, float_type, padded};

/// Sequences that the caches hold.
const SLOTS: usize = 3;
/// Rows of a slot.
const ROWS: usize = 12;
/// Rows of a step.
const STEP: usize = 7;

/// Sizes and rules of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// What a row of the cache holds.
    pub dtype: DType,
    /// Which rows a row may attend.
    pub mask: Mask,
}

/// Calls of a cache: spans of different lengths, in one slot and in several, from the first row and from later ones,
/// with rows that belong to nobody.
fn steps() -> Vec<Vec<SpanRows>> {
    let span = |rows, slot, at, from, visible| SpanRows { rows, slot, at, from, visible };
    vec![
        vec![span(0..4, 0, 0, 0, 4)],
        vec![span(0..4, 1, 0, 0, 4), span(4..7, 2, 0, 0, 3)],
        vec![span(0..2, 0, 4, 0, 6), span(2..3, 2, 3, 1, 4), span(3..6, 1, 4, 0, 7)],
        // A row is written again, and attended by one that stands behind what is visible to it.
        vec![span(0..1, 0, 5, 2, 6)],
        vec![span(0..7, 0, 5, 0, 12)],
        vec![span(0..3, 1, 0, 0, 7)],
        vec![],
    ]
}

/// Every cache that is tried.
pub fn caches() -> Vec<Cache> {
    let mut all = Vec::new();
    for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 8), (3, 1, 16)] {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::CACHE_Q8] {
            for mask in [Mask::Full, Mask::Causal, Mask::BlockCausal(4), Mask::BlockCausal(3)] {
                all.push(Cache { heads, kv_heads, head_dim, dtype, mask });
            }
        }
    }
    all
}

/// What a cache holds of rows of features.
fn held(x: Burn<2>, cache: Cache) -> Burn<2> {
    let [n, width] = x.dims();
    if let Some(ty) = float_type(cache.dtype) {
        return x.cast(ty).cast(FloatDType::F64);
    }
    // q8: signed codes up to 127 and a scale for each row and head.
    let heads: Burn<3> = x.reshape([n, width / cache.head_dim, cache.head_dim]);
    let scale = heads.clone().abs().max_dim(2).div_scalar(127.0).clamp_min(1e-30);
    ((heads / scale.clone()).round() * scale).reshape([n, width])
}

fn matrix(x: &Tensor) -> Result<Burn<2>, String> {
    let data = x.floats()?.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    Ok(Burn::from_data(TensorData::new(data, [x.shape[0], x.shape[1]]), (&device(), FloatDType::F64.into())))
}

/// Rows as heads: `[1, heads, rows, head_dim]`.
fn split(x: Burn<2>, head_dim: usize) -> Burn<4> {
    let [n, width] = x.dims();
    x.reshape([1, n, width / head_dim, head_dim]).swap_dims(1, 2)
}

/// `cached_attention` over caches `[slots · rows, features]`.
fn attended(q: Burn<2>, k: &Burn<2>, v: &Burn<2>, spans: &[SpanRows], cache: Cache) -> Burn<2> {
    let mut out = q.zeros_like();
    let (features, hd) = (q.dims()[1], cache.head_dim);
    for s in spans {
        let (n, first, seen) = (s.rows.len(), s.slot * ROWS + s.from, s.visible - s.from);
        let part = |x: &Burn<2>| split(x.clone().narrow(0, first, seen), hd);
        // Masks count from the slot's first row, so the hidden rows in front are cut off after that.
        let allowed = sees(cache.mask, s.at, n, s.visible).reshape([1, 1, n, s.visible]).narrow(3, s.from, seen);
        let scaled = |scores: Burn<4>| {
            let hidden = allowed.clone().bool_not().expand(scores.dims());
            scores.div_scalar((hd as f64).sqrt()).mask_fill(hidden, f64::NEG_INFINITY)
        };
        let rows = attend(split(q.clone().narrow(0, s.rows.start, n), hd), part(k), part(v), scaled);
        let rows: Burn<2> = rows.swap_dims(1, 2).reshape([n, features]);
        out = out.slice_assign([s.rows.clone(), 0..features], rows);
    }
    out
}

fn table(spans: &[SpanRows]) -> Tensor {
    let mut fields: Vec<i64> = spans.iter().flat_map(SpanRows::fields).map(|n| n as i64).collect();
    fields.resize(MAX_SPANS * SPAN_FIELDS, 0);
    of_ints(DType::I32, &[MAX_SPANS, SPAN_FIELDS], fields)
}

/// What `kv_write` leaves in a cache, and what `cached_attention` makes of it: the worst of each, and how many were compared.
///
/// # Errors
/// What the evaluator says, or where it differs.
pub fn check_cache(cache: Cache, rng: &mut Rng) -> Result<[(Worst, usize); 2], String> {
    let Cache { heads, kv_heads, head_dim, dtype, mask } = cache;
    let (features, width) = (heads * head_dim, kv_heads * head_dim);
    let text = format!(
        "module @states {{
            state @k: {dtype}[{ROWS}, {kv_heads}, {head_dim}]
            state @v: {dtype}[{ROWS}, {kv_heads}, {head_dim}]
            graph @step(%q: f32[{STEP}, {features}], %k: f32[{STEP}, {width}], %v: f32[{STEP}, {width}], %spans: i32[64, 5]) -> (f32[{STEP}, {features}]) {{
                kv_write %k, %v, @k, @v, %spans
                %a = cached_attention %q, @k, @v, %spans {{head_dim={head_dim}, mask={mask}}}: f32[{STEP}, {features}]
                return %a
            }}
            graph @read(%q: f32[1, {width}], %spans: i32[64, 5]) -> (f32[1, {width}], f32[1, {width}]) {{
                %k = cached_attention %q, @v, @k, %spans {{head_dim={head_dim}, mask=full}}: f32[1, {width}]
                %v = cached_attention %q, @k, @v, %spans {{head_dim={head_dim}, mask=full}}: f32[1, {width}]
                return %k, %v
            }}
        }}"
    );
    let module = parse(&text).map_err(|e| e.to_string())?;
    let no_weights = |_: &str| Err::<Vec<f32>, _>("no weights".to_owned());
    let mut evaluator = Evaluator::new(&module, &no_weights, SLOTS);
    let zeros = || Burn::<2>::zeros([SLOTS * ROWS, width], (&device(), FloatDType::F64.into()));
    let (mut k_held, mut v_held) = (zeros(), zeros());
    let mut worst = [(Worst::default(), 0); 2];
    for spans in steps() {
        let args = [features, width, width].map(|width| rng.floats(&[STEP, width], -2.0, 2.0));
        let [q, k, v] = [matrix(&args[0])?, matrix(&args[1])?, matrix(&args[2])?];
        for s in &spans {
            let to = s.slot * ROWS + s.at..s.slot * ROWS + s.at + s.rows.len();
            let new = |x: &Burn<2>| held(x.clone().narrow(0, s.rows.start, s.rows.len()), cache);
            k_held = k_held.slice_assign([to.clone(), 0..width], new(&k));
            v_held = v_held.slice_assign([to, 0..width], new(&v));
        }
        let args = [&args[..], &[table(&spans)]].concat();
        let got = evaluator.run("step", &args, &mut |_, _| {}).map_err(|e| e.to_string())?;
        let rows = attended(q, &k_held, &v_held, &spans, cache);
        let oracle = Value::Float(rows.reshape(padded(&[STEP, features])));
        // Scores are rounded to f32 before they become weights.
        let found =
            compare(&got[0], &oracle, Within::Largest(2e-6)).map_err(|e| format!("{cache:?}, {spans:?}: {e}"))?;
        worst[1] = (worst[1].0.and(found), worst[1].1 + 1);
    }
    // A row that attends nothing but one row is that row; so is a key, where keys stand in the place of values.
    for row in 0..SLOTS * ROWS {
        let (slot, at) = (row / ROWS, row % ROWS);
        let one = SpanRows { rows: 0..1, slot, at: 0, from: at, visible: at + 1 };
        let args = [rng.floats(&[1, width], -1.0, 1.0), table(&[one])];
        let got = evaluator.run("read", &args, &mut |_, _| {}).map_err(|e| e.to_string())?;
        for (got, held) in got.iter().zip([&k_held, &v_held]) {
            let oracle = Value::Float(held.clone().narrow(0, row, 1).reshape(padded(&[1, width])));
            // A scale of q8 is rounded to f32 and so is its product with a code.
            let found =
                compare(got, &oracle, Within::Element(2e-7)).map_err(|e| format!("{cache:?}, row {row}: {e}"))?;
            worst[0] = (worst[0].0.and(found), worst[0].1 + 1);
        }
    }
    Ok(worst)
}

/// `store_rows`, then `take_rows`, in a state of a type.
///
/// # Errors
/// What the evaluator says, or where it differs.
pub fn check_rows(dtype: DType, rng: &mut Rng) -> Result<(Worst, usize), String> {
    let (rows, width, picked) = (9, 5, 6);
    let text = |stored: usize| {
        format!(
            "graph @step_{stored}(%x: f32[{stored}, {width}], %r: i32[{picked}]) -> (f32[{picked}, {width}]) {{
                store_rows %x, @h
                %y = take_rows @h, %r: f32[{picked}, {width}]
                return %y
            }}"
        )
    };
    let sizes = [9, 1, 4];
    let graphs = sizes.map(text).join("\n");
    let module = parse(&format!("module @rows {{ state @h: {dtype}[{rows}, {width}] {graphs} }}"));
    let module = module.map_err(|e| e.to_string())?;
    let no_weights = |_: &str| Err::<Vec<f32>, _>("no weights".to_owned());
    let mut evaluator = Evaluator::new(&module, &no_weights, 1);
    let ty = float_type(dtype).ok_or("burn lacks the type")?;
    let mut state = Burn::<2>::zeros([rows, width], (&device(), FloatDType::F64.into()));
    let mut worst = (Worst::default(), 0);
    for stored in sizes {
        let x = rng.floats(&[stored, width], -2.0, 2.0);
        let r = rng.wholes(DType::I32, &[picked], 0, rows as i64 - 1);
        state = state.slice_assign([0..stored, 0..width], matrix(&x)?.cast(ty).cast(FloatDType::F64));
        let index = crate::value::Operand::new(&r).int()?.reshape([picked]);
        let oracle = Value::Float(state.clone().select(0, index).reshape(padded(&[picked, width])));
        let got = evaluator.run(&format!("step_{stored}"), &[x, r], &mut |_, _| {}).map_err(|e| e.to_string())?;
        worst = (worst.0.and(compare(&got[0], &oracle, Within::Exact)?), worst.1 + 1);
    }
    Ok(worst)
}
