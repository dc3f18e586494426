//! Scales of groups of codes, in the number formats that quantizers write.

use std::sync::LazyLock;

use dlx_ir::{DType, Data, Tensor};
use half::{bf16, f16};

use super::Part;
use crate::checkpoint::shard::Shard;

/// Scales where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    pub(crate) part: Part,
    pub(crate) kind: Kind,
    /// What a product is divided by, after it was made.
    pub(crate) divisor: f32,
}

/// What an entry stands for.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Itself: a float of 8, 16 or 32 bits, or the exponent of a power of two.
    Number,
    /// Itself, divided by this.
    Over(f32),
    /// A place in a table, times one of these numbers for every so many entries, plus another.
    Nested { table: Vec<f32>, scales: Vec<f32>, block: usize, plus: f32 },
}

impl Scales {
    /// Scales that are what they are.
    pub(crate) fn plain(part: Part) -> Self {
        Scales { part, kind: Kind::Number, divisor: 1.0 }
    }

    /// Entries that are stored.
    pub(crate) fn len(&self) -> usize {
        self.part.entry.shape.iter().product()
    }

    /// An entry; NaN beyond the last.
    pub(crate) fn get(&self, shards: &[Shard], at: usize) -> f32 {
        let bytes = self.part.bytes(shards);
        let byte = || bytes.get(at).copied();
        let two = || bytes.get(at.saturating_mul(2)..).and_then(|b| b.first_chunk::<2>());
        let stored = match (&self.kind, self.part.entry.dtype) {
            (Kind::Nested { table, scales, block, plus }, _) => {
                let number = byte().and_then(|code| table.get(usize::from(code)));
                let scale = scales.get(at / (*block).max(1));
                return number.zip(scale).map_or(f32::NAN, |(number, scale)| number * scale + plus);
            }
            (_, DType::F32) => {
                let four = bytes.get(at.saturating_mul(4)..).and_then(|b| b.first_chunk());
                four.map(|b| f32::from_le_bytes(*b))
            }
            (_, DType::F16) => two().map(|b| f16::from_le_bytes(*b).to_f32()),
            (_, DType::BF16) => two().map(|b| bf16::from_le_bytes(*b).to_f32()),
            (_, DType::F8E4M3) => byte().map(|b| float8(DType::F8E4M3)[usize::from(b)]),
            (_, DType::U8 | DType::F8E8M0) => byte().map(|b| float8(DType::F8E8M0)[usize::from(b)]),
            _ => None,
        };
        let stored = stored.unwrap_or(f32::NAN);
        if let Kind::Over(by) = self.kind { stored / by } else { stored }
    }
}

/// The numbers of all bytes of a float type of 8 bits or fewer.
pub(crate) fn float8(dtype: DType) -> &'static [f32; 256] {
    static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| numbers(DType::F8E4M3));
    static E8M0: LazyLock<[f32; 256]> = LazyLock::new(|| numbers(DType::F8E8M0));
    static E2M1: LazyLock<[f32; 256]> = LazyLock::new(|| numbers(DType::F4E2M1));
    match dtype {
        DType::F8E8M0 => &E8M0,
        DType::F4E2M1 => &E2M1,
        _ => &E4M3,
    }
}

fn numbers(dtype: DType) -> [f32; 256] {
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    let decoded = Tensor::from_le_bytes(dtype, &[bytes.len()], &bytes).map(|t| t.data);
    let Ok(Data::F32(numbers)) = decoded else { return [f32::NAN; 256] };
    std::array::from_fn(|i| numbers.get(i).copied().unwrap_or(f32::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_are_what_their_bits_say() {
        let e4m3 = float8(DType::F8E4M3);
        assert_eq!([e4m3[0], e4m3[1], e4m3[0x38], e4m3[0x7e], e4m3[0xfe]], [0.0, 0.001953125, 1.0, 448.0, -448.0]);
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        let e8m0 = float8(DType::F8E8M0);
        assert_eq!([e8m0[0], e8m0[127], e8m0[130]], [f32::MIN_POSITIVE / 2.0, 1.0, 8.0]);
        assert!(e8m0[255].is_nan());
        let e2m1 = &float8(DType::F4E2M1)[..16];
        assert_eq!(e2m1, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]);
    }
}
