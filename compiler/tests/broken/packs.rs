//! Weights of a checkpoint as quantizers store them, written bit by bit, and the numbers that they stand for.

#![allow(dead_code, reason = "each test program writes its own")]

use half::f16;
use serde_json::{Value, json};

use super::model::{Model, Tensors};

const WEIGHTS: &str = "model.safetensors";

/// A matrix as codes.
pub(crate) struct Coded {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) bits: usize,
    pub(crate) len: usize,
    pub(crate) codes: Vec<u8>,
    /// One per row and group.
    pub(crate) scales: Vec<f16>,
    pub(crate) zeros: Vec<u8>,
    /// The group of each column.
    pub(crate) of: Vec<usize>,
}

impl Coded {
    /// The nearest codes of numbers, with groups of columns that are neighbors, or every so many columns apart.
    pub(crate) fn new(values: &[f32], k: usize, bits: usize, len: usize, symmetric: bool, apart: bool) -> Self {
        let (n, groups) = (values.len() / k, k / len);
        let of: Vec<usize> = (0..k).map(|c| if apart { c % groups } else { c / len }).collect();
        let (top, middle) = ((1u32 << bits) - 1, 1u32 << (bits - 1));
        let mut coded = Coded { n, k, bits, len, codes: vec![], scales: vec![], zeros: vec![], of };
        for row in values.chunks(k) {
            let first = coded.scales.len();
            for g in 0..groups {
                let group = || row.iter().enumerate().filter(|(c, _)| coded.of[*c] == g).map(|(_, v)| *v);
                let (low, high) = (group().fold(0.0, f32::min), group().fold(0.0, f32::max));
                let spread = if symmetric { 2.0 * high.max(-low) } else { high - low };
                let scale = f16::from_f32((spread / top as f32).max(1e-5));
                let zero = if symmetric { middle } else { ((-low / scale.to_f32()).round() as u32).clamp(1, top - 1) };
                coded.scales.push(scale);
                coded.zeros.push(zero as u8);
            }
            for (c, v) in row.iter().enumerate() {
                let at = first + coded.of[c];
                let code = (v / coded.scales[at].to_f32()).round() + f32::from(coded.zeros[at]);
                coded.codes.push(code.clamp(0.0, top as f32) as u8);
            }
        }
        coded
    }

    fn groups(&self) -> usize {
        self.k / self.len
    }

    /// What the codes stand for.
    pub(crate) fn numbers(&self) -> Vec<f32> {
        let at = |i: usize| i / self.k * self.groups() + self.of[i % self.k];
        let number =
            |(i, code): (usize, &u8)| (f32::from(*code) - f32::from(self.zeros[at(i)])) * self.scales[at(i)].to_f32();
        self.codes.iter().enumerate().map(number).collect()
    }

    /// Scales as `[groups, N]`.
    fn scales_down(&self) -> Vec<u8> {
        let each = (0..self.groups()).flat_map(|g| (0..self.n).map(move |n| (n, g)));
        each.flat_map(|(n, g)| self.scales[n * self.groups() + g].to_le_bytes()).collect()
    }

    /// GPTQ's tensors, by what follows the module's name; `less` is what zero points are stored less.
    pub(crate) fn gptq(&self, less: u8) -> Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)> {
        let (n, k, bits, groups) = (self.n, self.k, self.bits, self.groups());
        let mut words = vec![0u32; k * bits / 32 * n];
        let mut zeros = vec![0u32; groups * n * bits / 32];
        for row in 0..n {
            for column in 0..k {
                for bit in 0..bits {
                    let at = column * bits + bit;
                    words[at / 32 * n + row] |= u32::from(self.codes[row * k + column] >> bit & 1) << (at % 32);
                }
            }
            for g in 0..groups {
                for bit in 0..bits {
                    let at = row * bits + bit;
                    let zero = self.zeros[row * groups + g] - less;
                    zeros[g * (n * bits / 32) + at / 32] |= u32::from(zero >> bit & 1) << (at % 32);
                }
            }
        }
        let of = self.of.iter().flat_map(|g| (*g as i32).to_le_bytes()).collect();
        vec![
            ("qweight", "I32", vec![k * bits / 32, n], bytes(&words)),
            ("qzeros", "I32", vec![groups, n * bits / 32], bytes(&zeros)),
            ("scales", "F16", vec![groups, n], self.scales_down()),
            ("g_idx", "I32", vec![k], of),
        ]
    }

    /// AWQ's tensors.
    pub(crate) fn awq(&self) -> Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)> {
        let (n, k, groups) = (self.n, self.k, self.groups());
        let place = |row: usize| [0, 4, 1, 5, 2, 6, 3, 7][row % 8] * 4;
        let mut words = vec![0u32; k * n / 8];
        let mut zeros = vec![0u32; groups * n / 8];
        for row in 0..n {
            for column in 0..k {
                words[column * (n / 8) + row / 8] |= u32::from(self.codes[row * k + column]) << place(row);
            }
            for g in 0..groups {
                zeros[g * (n / 8) + row / 8] |= u32::from(self.zeros[row * groups + g]) << place(row);
            }
        }
        vec![
            ("qweight", "I32", vec![k, n / 8], bytes(&words)),
            ("qzeros", "I32", vec![groups, n / 8], bytes(&zeros)),
            ("scales", "F16", vec![groups, n], self.scales_down()),
        ]
    }

    /// The tensors of compressed-tensors.
    pub(crate) fn compressed(&self) -> Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)> {
        let (n, k, bits, groups) = (self.n, self.k, self.bits, self.groups());
        let per_row = (k * bits).div_ceil(32);
        let mut words = vec![0u32; n * per_row];
        for (i, code) in self.codes.iter().enumerate() {
            for bit in 0..bits {
                let at = i % k * bits + bit;
                words[i / k * per_row + at / 32] |= u32::from(code >> bit & 1) << (at % 32);
            }
        }
        let scales = self.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let shape = [n, k].iter().flat_map(|d| (*d as i64).to_le_bytes()).collect();
        vec![
            ("weight_packed", "I32", vec![n, per_row], bytes(&words)),
            ("weight_scale", "F16", vec![n, groups], scales),
            ("weight_shape", "I64", vec![2], shape),
        ]
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Replaces the projections of a model by what `write` makes of their numbers `[n, k]`.
pub(crate) fn replace(
    m: &mut Model,
    write: impl Fn(&[f32], usize) -> Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)>,
) {
    let mut tensors = m.original();
    for (name, (_, shape, bytes)) in m.original().into_iter().filter(|(name, _)| name.ends_with("_proj.weight")) {
        tensors.remove(&name);
        let values: Vec<f32> =
            bytes.as_chunks().0.iter().map(|v| f32::from_bits(u32::from(u16::from_le_bytes(*v)) << 16)).collect();
        let stem = name.strip_suffix("weight").unwrap();
        for (ending, dtype, shape, bytes) in write(&values, shape[1].as_u64().unwrap() as usize) {
            tensors.insert(format!("{stem}{ending}"), (dtype.to_owned(), json!(shape), bytes));
        }
    }
    m.write_tensors(WEIGHTS, &tensors);
}

/// Changes the bytes of a tensor.
pub(crate) fn edit(m: &mut Model, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut tensors: Tensors = m.tensors();
    change(&mut tensors.get_mut(name).unwrap_or_else(|| panic!("no {name}")).2);
    m.write_tensors(WEIGHTS, &tensors);
}

/// Takes a tensor away.
pub(crate) fn lose(m: &mut Model, name: &str) {
    let mut tensors = m.tensors();
    tensors.remove(name).unwrap();
    m.write_tensors(WEIGHTS, &tensors);
}

/// Says how the weights are quantized.
pub(crate) fn declare(m: &mut Model, config: Value) {
    m.set("quantization_config", config);
}

/// The model in GPTQ's first format.
pub(crate) fn gptq(m: &mut Model) {
    replace(m, |values, k| Coded::new(values, k, 4, 64, true, false).gptq(1));
    declare(m, gptq_config());
}

pub(crate) fn gptq_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": true, "desc_act": false})
}

/// The model in GPTQ's first format, with groups that are not in order.
pub(crate) fn gptq_apart(m: &mut Model) {
    replace(m, |values, k| Coded::new(values, k, 4, 64, true, true).gptq(1));
    declare(m, json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": true, "desc_act": true}));
}

/// The model in GPTQ's second format, with zero points.
pub(crate) fn gptq_second(m: &mut Model) {
    replace(m, |values, k| Coded::new(values, k, 4, 32, false, false).gptq(0));
    let config =
        json!({"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4, "group_size": 32, "sym": false});
    declare(m, config);
}

/// The model as AWQ stores it.
pub(crate) fn awq(m: &mut Model) {
    replace(m, |values, k| Coded::new(values, k, 4, 64, false, false).awq());
    declare(m, json!({"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 64, "zero_point": true}));
}

/// The model as compressed-tensors packs it.
pub(crate) fn compressed(m: &mut Model) {
    replace(m, |values, k| Coded::new(values, k, 4, 64, true, false).compressed());
    declare(m, compressed_config(4, 64));
}

pub(crate) fn compressed_config(bits: usize, group: usize) -> Value {
    let weights = json!({"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "symmetric": true});
    json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}})
}

/// The model in FP8 by blocks of 64 × 64.
pub(crate) fn fp8(m: &mut Model) {
    replace(m, |values, k| {
        let n = values.len() / k;
        let block = |r: usize, c: usize| r / 64 * (k / 64) + c / 64;
        let mut scales = vec![1e-9f32; n.div_ceil(64) * (k / 64)];
        for (i, v) in values.iter().enumerate() {
            let scale = &mut scales[block(i / k, i % k)];
            *scale = scale.max(v.abs() / 448.0);
        }
        let codes = values.iter().enumerate().map(|(i, v)| nearest_e4m3(v / scales[block(i / k, i % k)])).collect();
        let scale_bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        vec![
            ("weight", "F8_E4M3", vec![n, k], codes),
            ("weight_scale_inv", "F32", vec![n.div_ceil(64), k / 64], scale_bytes),
        ]
    });
    declare(m, json!({"quant_method": "fp8", "weight_block_size": [64, 64], "activation_scheme": "dynamic"}));
}

fn nearest_e4m3(v: f32) -> u8 {
    let number = |code: u8| {
        let (e, f) = (i32::from(code >> 3), f32::from(code & 7));
        if e == 0 { f * 2f32.powi(-9) } else { (8.0 + f) * 2f32.powi(e - 10) }
    };
    let far = |code: &u8| ((number(*code) - v.abs()) * 1e6) as i64;
    let code = (0..=0x7e).min_by_key(|code| far(code).abs()).unwrap();
    code | if v < 0.0 { 0x80 } else { 0 }
}

/// The model in 8 bits of bitsandbytes.
pub(crate) fn bnb8(m: &mut Model) {
    replace(m, |values, k| {
        let rows = || values.chunks(k).map(|row| row.iter().fold(0f32, |m, v| m.max(v.abs())));
        let codes = values.chunks(k).zip(rows()).flat_map(|(row, most)| {
            row.iter().map(move |v| (v * 127.0 / most).round() as i8 as u8).collect::<Vec<_>>()
        });
        vec![
            ("weight", "I8", vec![values.len() / k, k], codes.collect()),
            ("SCB", "F32", vec![values.len() / k], rows().flat_map(f32::to_le_bytes).collect()),
            ("weight_format", "U8", vec![], vec![0]),
        ]
    });
    declare(m, json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "load_in_4bit": false}));
}

/// Sixteen numbers for 4 bits, in the way of NF4.
fn table() -> [f32; 16] {
    std::array::from_fn(|i| {
        let x = i as f32 / 7.5 - 1.0;
        if i == 7 { 0.0 } else { x * (0.6 + 0.4 * x.abs()) }
    })
}

/// The model in 4 bits of bitsandbytes, with plain scales.
pub(crate) fn nf4(m: &mut Model) {
    replace(m, |values, k| {
        let table = table();
        let most: Vec<f32> = values.chunks(64).map(|b| b.iter().fold(0f32, |m, v| m.max(v.abs()))).collect();
        let code = |i: usize| {
            let x = values[i] / most[i / 64];
            (0..16u8).min_by_key(|c| ((table[usize::from(*c)] - x).abs() * 1e6) as i64).unwrap()
        };
        let codes: Vec<u8> = (0..values.len() / 2).map(|i| code(2 * i) << 4 | code(2 * i + 1)).collect();
        let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [values.len() / k, k]});
        let state = state.to_string().into_bytes();
        vec![
            ("weight", "U8", vec![codes.len(), 1], codes),
            ("weight.absmax", "F32", vec![most.len()], most.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("weight.quant_map", "F32", vec![16], table.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("weight.quant_state.bitsandbytes__nf4", "U8", vec![state.len()], state),
        ]
    });
    declare(m, json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}));
}

/// The model in 8 bits of torchao, whose header says what it is.
pub(crate) fn torchao(m: &mut Model) {
    replace(m, |values, k| {
        let coded = Coded::new(values, k, 4, 64, true, false);
        let n = coded.n;
        let codes = coded.codes.iter().map(|c| c.wrapping_sub(8)).collect();
        let scales = coded.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        vec![
            ("_weight_qdata", "I8", vec![n, k], codes),
            ("_weight_scale", "F16", vec![n, k / 64], scales),
            ("_weight_zero_point", "I8", vec![n, k / 64], vec![0; n * k / 64]),
        ]
    });
    torchao_says(m, "IntxUnpackedToInt8Tensor");
    declare(m, json!({"quant_method": "torchao"}));
}

/// Writes the class of each weight into the header.
pub(crate) fn torchao_says(m: &mut Model, class: &str) {
    let names: Vec<String> =
        m.tensors().into_keys().filter_map(|n| n.strip_suffix("_weight_qdata").map(str::to_owned)).collect();
    let text = json!({"_type": class, "_data": {"target_dtype": {"_data": "int4"}, "block_size": [1, 64]}}).to_string();
    m.metadata(names.into_iter().map(|stem| (format!("{stem}weight"), json!(text))).collect());
}
