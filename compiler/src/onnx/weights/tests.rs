//! Recipes give the numbers that the operators define, whichever way they are turned and sliced.

mod cases;

use std::borrow::Cow;
use std::sync::Arc;

use dlx_ir::quant::{dequantize_row, zero_point};
use dlx_ir::{Evaluator, parse};

use super::*;
use crate::onnx::elem::ElemType;
use crate::onnx::tensor::RawTensor;
use cases::{CASES, Case};

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("there is no case {name}"))
}

/// Bytes at an odd address, as they may lie in a file.
fn unaligned(bytes: &[u8]) -> Cow<'static, [u8]> {
    let mut all = vec![0xa5];
    all.extend_from_slice(bytes);
    Cow::Borrowed(&Box::leak(all.into_boxed_slice())[1..])
}

fn tensor(elem: ElemType, dims: &[usize], bytes: &[u8]) -> Arc<RawTensor<'static>> {
    Arc::new(RawTensor { elem, dims: dims.into(), bytes: unaligned(bytes) })
}

fn f32s(dims: &[usize], x: &[f32]) -> Arc<RawTensor<'static>> {
    tensor(ElemType::Float, dims, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.as_bytes().as_chunks::<2>().0.iter().map(|[a, b]| digit(*a) << 4 | digit(*b)).collect()
}

fn all(recipe: &Recipe<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; recipe.len() * recipe.width()];
    recipe.read(0..recipe.len(), &mut out).unwrap();
    out
}

fn turned(x: &[f32], n: usize, k: usize) -> Vec<f32> {
    (0..k).flat_map(|c| (0..n).map(move |r| x[r * k + c])).collect()
}

/// What the codes of a recipe stand for.
fn by_codes(recipe: &Recipe<'_>) -> Vec<f32> {
    let DType::Quant(format) = recipe.ty().dtype else { panic!("{}", recipe.ty()) };
    let (n, k) = (recipe.len(), recipe.width());
    let tables = n * format.groups(k);
    let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; tables]);
    let mut mins = vec![0.0; if format.has_min() { tables } else { 0 }];
    let out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
    recipe.read_codes(format, 0..n, out).unwrap();
    assert!(codes.iter().all(|c| format.bits == 8 || *c < 16));
    let mut out = vec![0.0; n * k];
    for (i, (out, codes)) in out.chunks_mut(k).zip(codes.chunks(k)).enumerate() {
        let groups = i * format.groups(k)..(i + 1) * format.groups(k);
        dequantize_row(format, codes, &scales[groups.clone()], mins.get(groups).unwrap_or_default(), out);
    }
    out
}

/// Everything that holds for any recipe whose rows are `want`.
fn check(name: &str, recipe: &Recipe<'_>, want: &[f32], dtype: &str) {
    let (n, k) = (recipe.len(), recipe.width());
    assert_eq!(all(recipe), want, "{name}");
    assert_eq!(recipe.ty().dtype.to_string(), dtype, "{name}");
    for rows in (0..n).flat_map(|a| (a + 1..=n).map(move |b| a..b)) {
        let sliced = recipe.clone().slice_rows(rows.clone()).unwrap();
        assert_eq!(all(&sliced), want[rows.start * k..rows.end * k], "{name} {rows:?}");
        let mut part = vec![0.0; rows.len() * k];
        recipe.read(rows.clone(), &mut part).unwrap();
        assert_eq!(part, want[rows.start * k..rows.end * k], "{name} {rows:?}");
        if dtype.starts_with('q') {
            assert_eq!(by_codes(&sliced), all(&sliced), "{name} {rows:?}");
        }
    }
    if let Ok(across) = recipe.clone().transposed() {
        assert_eq!(all(&across), turned(want, n, k), "{name}");
        assert_eq!(all(&across.clone().transposed().unwrap()), want, "{name}");
        if across.ty().dtype.to_string().starts_with('q') {
            assert_eq!(by_codes(&across), all(&across), "{name}");
        }
    }
    if recipe.dims().len() == 2 {
        for columns in [0..1, 0..k / 2 + 1, k / 2..k] {
            let sliced = recipe.clone().slice_columns(columns.clone()).unwrap();
            let want: Vec<f32> = want.chunks(k).flat_map(|r| r[columns.clone()].to_vec()).collect();
            assert_eq!(all(&sliced), want, "{name} {columns:?}");
            if sliced.ty().dtype.to_string().starts_with('q') {
                assert_eq!(by_codes(&sliced), want, "{name} {columns:?}");
            }
        }
    }
    let doubled: Vec<f32> = want.iter().map(|v| v * 2.0).collect();
    assert_eq!(all(&recipe.clone().scaled(2.0)), doubled, "{name}");
    assert_eq!(all(&recipe.clone().numbers()), want, "{name}");
    assert!(!recipe.clone().numbers().ty().dtype.to_string().starts_with('q'), "{name}");
}

fn nbits(name: &str, n: usize, k: usize, bits: usize, block: usize) -> NBits<'static> {
    let c = case(name);
    let blocks = k.div_ceil(block);
    let zeros = hex(c.zeros);
    let float = name.contains("float");
    let elem = if float { ElemType::Float } else { ElemType::Uint8 };
    NBits {
        codes: tensor(ElemType::Uint8, &[n, blocks, block * bits / 8], &hex(c.codes)),
        scales: f32s(&[n * blocks], c.scales),
        zeros: (!zeros.is_empty()).then(|| tensor(elem, &[n, zeros.len() / n], &zeros)),
        groups: (!c.groups.is_empty())
            .then(|| tensor(ElemType::Int32, &[k], &c.groups.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<_>>())),
        n,
        k,
        bits,
        block,
    }
}

#[test]
fn blocks_of_any_bits_stand_for_their_numbers() {
    for (name, n, k, bits, block, dtype) in [
        ("nbits4 padded", 3, 40, 4, 32, "q4g32"),
        ("nbits4 zeros", 3, 40, 4, 16, "f32"),
        ("nbits4 float zeros", 2, 32, 4, 16, "f32"),
        ("nbits8 padded zeros", 2, 20, 8, 16, "f32"),
        ("nbits2 zeros", 2, 40, 2, 16, "f32"),
        ("nbits4 groups", 2, 32, 4, 16, "f32"),
    ] {
        let recipe = Recipe::nbits(name, nbits(name, n, k, bits, block)).unwrap();
        check(name, &recipe, case(name).rows, dtype);
    }
}

#[test]
fn quantized_constants_stand_for_their_numbers() {
    use ElemType::{Int4, Int8, Int16, Int32, Uint4, Uint8};
    for (name, elem, dims, scales, axis, block, dtype) in [
        ("int4 axis 0", Int4, &[35, 3][..], &[2, 3][..], 0, 32, "f32"),
        ("uint4 axis 1", Uint4, &[3, 37], &[3, 2], 1, 32, "q4g32m"),
        ("int4 axis 1 plain", Int4, &[3, 33], &[3, 2], -1, 32, "q4g32"),
        ("int8 per row", Int8, &[3, 5], &[3], 0, 0, "q8"),
        ("uint8 per column", Uint8, &[3, 5], &[5], 1, 0, "f32"),
        ("uint8 per tensor", Uint8, &[3, 5], &[], 1, 0, "q8"),
        ("int16 per tensor", Int16, &[2, 3], &[], 1, 0, "f32"),
        ("int32 vector", Int32, &[4], &[], 1, 0, "f32"),
    ] {
        let c = case(name);
        let zeros = hex(c.zeros);
        let zeros = (!zeros.is_empty()).then(|| tensor(elem, scales, &zeros));
        let codes = tensor(elem, dims, &hex(c.codes));
        let recipe = Recipe::dequantized(name, codes, f32s(scales, c.scales), zeros, axis, block).unwrap();
        check(name, &recipe, c.rows, dtype);
        let across = recipe.transposed().map(|t| t.ty().dtype.to_string()).unwrap_or_default();
        match name {
            "int4 axis 0" => assert_eq!(across, "q4g32m"),
            "uint8 per column" => assert_eq!(across, "q8m"),
            _ => {}
        }
    }
}

#[test]
fn tables_stand_for_their_numbers() {
    for (name, n, stored, k, block, dtype) in
        [("table4 padded", 3, 64, 40, 32, "q4g32"), ("table4 zeros", 2, 48, 48, 16, "f32")]
    {
        let c = case(name);
        let zeros = hex(c.zeros);
        let table = BlockTable {
            codes: tensor(ElemType::Uint8, &[n, stored / 2], &hex(c.codes)),
            scales: f32s(&[n, stored / block], c.scales),
            zeros: (!zeros.is_empty()).then(|| tensor(ElemType::Uint8, &[n, zeros.len() / n], &zeros)),
            n,
            k: stored,
            bits: 4,
            block,
        };
        let recipe = Recipe::block_table(name, table).unwrap().slice_columns(0..k).unwrap();
        check(name, &recipe, c.rows, dtype);
    }
}

/// Codes that count up, in blocks of any length.
fn counted(
    n: usize,
    k: usize,
    bits: usize,
    block: usize,
    zeros: Option<u8>,
    groups: Option<Vec<i32>>,
) -> NBits<'static> {
    let blocks = k.div_ceil(block);
    let codes: Vec<u8> = (0..n * blocks * block * bits / 8).map(|i| (i * 89 + i / 5) as u8).collect();
    let scales: Vec<f32> = (0..n * blocks).map(|i| 0.5 + i as f32 * 0.25).collect();
    let zeros = zeros.map(|z| vec![z; n * (blocks * bits).div_ceil(8)]);
    let groups = groups.map(|g| g.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<_>>());
    NBits {
        codes: tensor(ElemType::Uint8, &[n, blocks, block * bits / 8], &codes),
        scales: f32s(&[n, blocks], &scales),
        zeros: zeros.map(|z| tensor(ElemType::Uint8, &[z.len()], &z)),
        groups: groups.map(|g| tensor(ElemType::Int32, &[k], &g)),
        n,
        k,
        bits,
        block,
    }
}

#[test]
fn the_format_is_the_one_that_holds_the_codes() {
    let in_order = |k: usize, block: usize| Some((0..k).map(|i| (i / block) as i32).collect());
    let backwards = |k: usize, block: usize| Some((0..k).map(|i| (k / block - 1 - i / block) as i32).collect());
    let mixed = |k: usize, block: usize| Some((0..k).map(|i| (i % (k / block)) as i32).collect());
    for (bits, block, zeros, groups, dtype) in [
        (4, 32, None, None, "q4g32"),
        (4, 64, None, None, "q4g64"),
        (4, 128, Some(0x88), None, "q4g128"),
        (4, 128, Some(0x78), None, "q4g128m"),
        (4, 256, None, None, "q4g128"),
        (4, 96, None, None, "q4g32"),
        (4, 512, None, None, "q4g128"),
        (4, 16, None, None, "f32"),
        (2, 64, Some(0x1b), None, "q4g64"),
        (8, 32, None, None, "q8g32"),
        (8, 128, Some(127), None, "q8g128m"),
        (8, 512, None, None, "q8"),
        (8, 512, Some(9), None, "q8m"),
        (4, 64, None, in_order(512, 64), "q4g64"),
        (4, 64, Some(0x17), backwards(512, 64), "q4g64m"),
        (4, 64, None, mixed(512, 64), "f32"),
    ] {
        let recipe = Recipe::nbits("w", counted(3, 512, bits, block, zeros, groups)).unwrap();
        assert_eq!(recipe.ty().dtype.to_string(), dtype, "{bits} bits in {block}, {zeros:?}");
        if dtype != "f32" {
            assert_eq!(by_codes(&recipe), all(&recipe), "{bits} bits in {block}, {zeros:?}");
        }
    }
    let symmetric: QuantFormat = "q4g32".parse().unwrap();
    assert_eq!(zero_point(symmetric), 8);
}

#[test]
fn plain_tensors_of_any_float_are_read_either_way() {
    let (n, k) = (300, 37);
    let x: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 - 125.0).collect();
    let half = |f: fn(f32) -> [u8; 2]| x.iter().flat_map(|v| f(*v)).collect::<Vec<_>>();
    for (elem, bytes, dtype) in [
        (ElemType::Float, x.iter().flat_map(|v| v.to_le_bytes()).collect(), "f32"),
        (ElemType::Double, x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(), "f32"),
        (ElemType::Float16, half(|v| half::f16::from_f32(v).to_le_bytes()), "f16"),
        (ElemType::Bfloat16, half(|v| half::bf16::from_f32(v).to_le_bytes()), "bf16"),
    ] {
        let recipe = Recipe::plain("w", tensor(elem, &[n, k], &bytes)).unwrap();
        assert_eq!((all(&recipe), recipe.ty().dtype.to_string().as_str()), (x.clone(), dtype));
        let across = recipe.clone().transposed().unwrap();
        assert_eq!(all(&across), turned(&x, n, k));
        // Part of a fused matrix that lies across.
        let part = across.clone().slice_rows(5..20).unwrap();
        assert_eq!(all(&part), turned(&x, n, k)[5 * n..20 * n]);
        let inner = recipe.clone().slice_rows(290..300).unwrap().slice_columns(3..9).unwrap().transposed().unwrap();
        let want: Vec<f32> = (3..9).flat_map(|c| (290..300).map(|r| x[r * k + c]).collect::<Vec<_>>()).collect();
        assert_eq!(all(&inner), want);
        assert!(same_rows(&recipe, &across.clone().transposed().unwrap()).unwrap());
        assert!(!same_rows(&recipe, &across).unwrap());
        assert!(!same_rows(&recipe, &recipe.clone().scaled(0.5)).unwrap());
        let copy = Recipe::plain("copy", tensor(elem, &[n * k], &bytes)).unwrap().reshaped(&[n, k]).unwrap();
        assert!(same_rows(&recipe, &copy).unwrap());
        let other = recipe.clone().slice_rows(1..21).unwrap().reshaped(&[37, 20]).unwrap();
        assert_eq!(all(&other), x[k..21 * k]);
        assert!(across.reshaped(&[n * k]).is_err());
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let refused = |from: NBits<'static>| Recipe::nbits("w", from).unwrap_err().to_string();
    let good = || counted(2, 64, 4, 32, Some(0x88), Some(vec![0; 64]));
    let shorter = |t: &RawTensor<'static>| Arc::new(RawTensor { bytes: t.bytes[1..].to_vec().into(), ..t.clone() });
    assert!(Recipe::nbits("w", good()).is_ok());
    assert!(refused(NBits { codes: shorter(&good().codes), ..good() }).contains("have 63 bytes"));
    assert!(refused(NBits { scales: shorter(&good().scales), ..good() }).contains("scales"));
    assert!(refused(NBits { zeros: good().zeros.map(|z| shorter(&z)), ..good() }).contains("zero points"));
    assert!(refused(NBits { groups: good().groups.map(|z| shorter(&z)), ..good() }).contains("group numbers"));
    assert!(refused(NBits { n: usize::MAX, ..good() }).contains("too many"));
    assert!(refused(NBits { k: usize::MAX, groups: None, ..good() }).contains("scales"));
    assert!(refused(NBits { bits: 3, ..good() }).contains("3 bits"));
    assert!(refused(NBits { block: 0, ..good() }).contains("blocks of 0"));
    assert!(refused(counted(2, 64, 4, 32, None, Some(vec![2; 64]))).contains("group 2 of 2"));
    assert!(refused(counted(2, 64, 4, 32, None, Some(vec![-1; 64]))).contains("group -1"));
    assert!(refused(NBits { scales: tensor(ElemType::Int32, &[4], &[0; 16]), ..good() }).contains("INT32"));

    let codes = || tensor(ElemType::Int4, &[3, 4], &[0; 6]);
    for (scales, axis, block) in [(&[2][..], 0, 0), (&[3, 1], 0, 32), (&[3, 1], 2, 32), (&[3], -3, 0), (&[1, 1], 1, 0)]
    {
        let made =
            Recipe::dequantized("w", codes(), f32s(scales, &vec![1.0; scales.iter().product()]), None, axis, block);
        assert!(made.unwrap_err().message.contains("do not fit"), "{scales:?} {axis} {block}");
    }
    assert!(Recipe::plain("w", tensor(ElemType::Float, &[2, 2], &[0; 15])).is_err());
    assert!(Recipe::plain("w", tensor(ElemType::Float, &[0, 2], &[])).is_err());
    assert!(Recipe::plain("w", tensor(ElemType::Int8, &[2], &[0; 2])).is_err());
    let plain = Recipe::plain("w", f32s(&[3, 2], &[0.0; 6])).unwrap();
    assert!(plain.clone().slice_rows(2..4).is_err() && plain.clone().slice_columns(1..1).is_err());
    assert!(plain.clone().reshaped(&[4]).is_err() && plain.read(2..4, &mut [0.0; 4]).is_err());
    assert!(plain.read(0..2, &mut [0.0; 3]).is_err());
}

#[test]
fn a_module_reads_its_weights_from_recipes() {
    let mut weights = OnnxWeights::new(None);
    let name = "nbits4 padded";
    weights.insert("w", Recipe::nbits(name, nbits(name, 3, 40, 4, 32)).unwrap());
    weights.insert("bad", Recipe::plain("tensor \"b\"", f32s(&[2, 2], &[0.0, 1.0, f32::NAN, 2.0])).unwrap());
    let module = parse("module @m { weight @w: q4g32[3, 40] }").unwrap();
    let mut evaluator = Evaluator::new(&module, &weights, 1);
    let value = evaluator.weight(module.weight("w").unwrap()).unwrap();
    assert_eq!(value.floats().unwrap(), case(name).rows);
    let mut rows = [0.0; 2];
    weights.read_rows("bad", 1..2, &mut rows).unwrap();
    let error = weights.check_finite("bad", 1, &rows).unwrap_err();
    assert!(error.to_string().contains("tensor \"b\"") && error.message.contains("NaN at [1, 0]"), "{error}");
    assert!(weights.read_rows("none", 0..1, &mut rows).is_err());
}
