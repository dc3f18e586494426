//! Every kernel of every instruction set that this CPU has: against a naive f64 reference, and bit-equal to scalar on
//! one and on two threads.
#![allow(clippy::disallowed_methods, reason = "expected values take the system's mathematics")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod attention;
mod elementwise;
mod head;
mod linear;
mod pack;

use dlx_ir::quant::codebook::{RUN, number};
use dlx_ir::quant::{code_count, zero_point};
use dlx_ir::{DType, QuantFormat};
use dlx_runtime::cpu::{self, Ctx, Isa, PackedWeight, Pool};
use half::{bf16, f16};

/// A small deterministic generator (xorshift).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1..1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 20) as usize % n
    }
}

/// Runs `op` with every instruction set on one and two threads; all must give the bits of scalar on one thread, which
/// are returned.
pub(crate) fn everywhere(what: &str, op: impl Fn(&Ctx<'_>) -> Vec<f32> + Sync) -> Vec<f32> {
    let mut expected: Option<Vec<f32>> = None;
    for isa in Isa::ALL {
        if !isa.available() {
            println!("skipped: this CPU does not have {isa}");
            continue;
        }
        for threads in [1, 2] {
            let pool = Pool::new(threads).unwrap();
            let ctx = Ctx { kernels: cpu::kernels(isa).unwrap(), pool: &pool };
            let got = op(&ctx);
            match &expected {
                None => expected = Some(got),
                Some(want) => {
                    let differs = want.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(want.len(), got.len());
                    if let Some(i) = differs {
                        panic!("{what}: {isa}, {threads} threads, element {i}: {} instead of {}", got[i], want[i]);
                    }
                }
            }
        }
    }
    expected.unwrap()
}

/// Asserts that values are near their f64 reference: within `tolerance` of the greatest magnitude.
pub(crate) fn assert_near(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tolerance * scale, "{what}: element {i}: {g} instead of {w}");
    }
}

/// A packed weight and the values that it stands for.
pub(crate) struct TestWeight {
    pub(crate) dtype: DType,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) bytes: Vec<u8>,
    /// `[n, k]`.
    pub(crate) values: Vec<f64>,
}

impl TestWeight {
    pub(crate) fn random(rng: &mut Rng, dtype: DType, n: usize, k: usize) -> Self {
        let tile = cpu::tile_bytes(dtype, k).unwrap();
        let mut bytes = vec![0u8; cpu::packed_bytes(dtype, n, k).unwrap()];
        let mut values = Vec::with_capacity(n * k);
        for (t, out) in bytes.chunks_exact_mut(tile).enumerate() {
            let rows = (n - t * 16).min(16);
            if let DType::Quant(fmt) = dtype {
                let zero = i32::from(zero_point(fmt));
                let count = code_count(fmt);
                let lowest = usize::from(fmt.bits == 8 && !fmt.has_min());
                let mut codes: Vec<u8> = (0..rows * k).map(|_| (lowest + rng.below(count - lowest)) as u8).collect();
                if fmt == QuantFormat::L16 {
                    // A run has one level.
                    for run in codes.chunks_mut(k).flat_map(|row| row.chunks_mut(RUN)) {
                        let level = run[0] & 0x30;
                        run.iter_mut().for_each(|c| *c = level | *c & 15);
                    }
                }
                let groups = fmt.groups(k);
                let table = |rng: &mut Rng, n| (0..n).map(|_| f16::from_f32(rng.value() * 0.1)).collect::<Vec<_>>();
                let scales = table(rng, rows * groups);
                let mins = table(rng, if fmt.has_min() { rows * groups } else { 0 });
                cpu::pack_tile_quant(fmt, &codes, &scales, &mins, k, out);
                for (i, code) in codes.iter().enumerate() {
                    let g = i / k * groups + i % k / fmt.group_len(k);
                    let min = mins.get(g).map_or(0.0, |m| m.to_f64());
                    let table = fmt == QuantFormat::L16;
                    let code = if table { i32::from(number(*code)) } else { i32::from(*code) - zero };
                    values.push(scales[g].to_f64() * f64::from(code) + min);
                }
            } else {
                let mut raw = Vec::new();
                for v in rng.values(rows * k) {
                    match dtype {
                        DType::F16 => {
                            values.push(f16::from_f32(v).to_f64());
                            raw.extend(f16::from_f32(v).to_le_bytes());
                        }
                        DType::BF16 => {
                            values.push(bf16::from_f32(v).to_f64());
                            raw.extend(bf16::from_f32(v).to_le_bytes());
                        }
                        _ => {
                            values.push(f64::from(v));
                            raw.extend(v.to_le_bytes());
                        }
                    }
                }
                cpu::pack_tile_float(dtype, &raw, k, out);
            }
        }
        TestWeight { dtype, n, k, bytes, values }
    }

    pub(crate) fn packed(&self) -> PackedWeight<'_> {
        PackedWeight::new(self.dtype, self.n, self.k, &self.bytes).unwrap()
    }

    /// `x Wᵀ` in f64, with `x` quantized as the kernels do for quantized weights.
    pub(crate) fn product(&self, x: &[f64]) -> Vec<f64> {
        let quantized = matches!(self.dtype, DType::Quant(_));
        let mut out = Vec::new();
        for row in x.chunks_exact(self.k) {
            let row: Vec<f64> = if quantized { row.chunks(128).flat_map(quantize).collect() } else { row.to_vec() };
            for w in self.values.chunks_exact(self.k) {
                out.push(row.iter().zip(w).map(|(a, b)| a * b).sum());
            }
        }
        out
    }
}

/// int8 with one scale, back as numbers; in f32 up to the codes, so that ties and near-ties round as in the kernels.
pub(crate) fn quantize(block: &[f64]) -> Vec<f64> {
    let peak = block.iter().fold(0f32, |m, v| m.max(v.abs() as f32));
    let (scale, inverse) = if peak == 0.0 { (0.0, 0.0) } else { (peak / 127.0, 127.0 / peak) };
    block.iter().map(|v| f64::from((*v as f32 * inverse).round_ties_even()) * f64::from(scale)).collect()
}

#[test]
fn instruction_sets_have_names_and_a_scalar_fallback() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(isa));
        assert_eq!(cpu::kernels(isa).is_ok(), isa.available());
    }
    assert!("sse".parse::<Isa>().is_err());
    assert!(Isa::Scalar.available() && Isa::best().available());
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v * factor * f64::from(*w)).collect::<Vec<_>>()
        })
        .collect()
}
