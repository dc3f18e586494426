//! Numbers and codes of tensors, as their bytes hold them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::onnx::elem::ElemType;
use crate::onnx::tensor::RawTensor;

/// Bits of an integer element, and whether it has a sign; none for other types.
pub(super) fn integer(elem: ElemType) -> Option<(usize, bool)> {
    Some(match elem {
        ElemType::Uint2 => (2, false),
        ElemType::Int2 => (2, true),
        ElemType::Uint4 => (4, false),
        ElemType::Int4 => (4, true),
        ElemType::Uint8 => (8, false),
        ElemType::Int8 => (8, true),
        ElemType::Uint16 => (16, false),
        ElemType::Int16 => (16, true),
        ElemType::Int32 => (32, true),
        _ => return None,
    })
}

/// Whether a tensor holds numbers that weights, scales or zero points may be.
pub(super) fn is_float(elem: ElemType) -> bool {
    matches!(elem, ElemType::Float | ElemType::Double | ElemType::Float16 | ElemType::Bfloat16)
}

/// Consecutive numbers of a float tensor from element `first` on; what lies beyond its end stays as it was.
pub(super) fn floats(tensor: &RawTensor<'_>, first: usize, out: &mut [f32]) {
    let size = tensor.elem.bits() / 8;
    let bytes = tensor.bytes.get(first.saturating_mul(size)..).unwrap_or_default();
    match tensor.elem {
        ElemType::Float => {
            bytes.as_chunks().0.iter().zip(out).for_each(|(b, o)| *o = f32::from_le_bytes(*b));
        }
        ElemType::Double => {
            bytes.as_chunks().0.iter().zip(out).for_each(|(b, o)| *o = f64::from_le_bytes(*b) as f32);
        }
        ElemType::Bfloat16 => {
            bytes.as_chunks().0.iter().zip(out).for_each(|(b, o)| *o = bf16::from_le_bytes(*b).to_f32());
        }
        ElemType::Float16 => {
            let mut aligned = [f16::ZERO; 256];
            for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
                bytes.as_chunks().0.iter().zip(&mut aligned).for_each(|(b, a)| *a = f16::from_le_bytes(*b));
                aligned[..out.len()].convert_to_f32_slice(out);
            }
        }
        _ => {}
    }
}

/// One number of a float tensor.
pub(super) fn float(tensor: &RawTensor<'_>, at: usize) -> f32 {
    let mut out = [0.0];
    floats(tensor, at, &mut out);
    out[0]
}

/// Integers of a few bits in a row of bytes, the first in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packing {
    pub bits: usize,
    pub signed: bool,
}

impl Packing {
    /// Smallest and largest integer.
    pub(super) fn range(self) -> (i64, i64) {
        let half = 1i64 << (self.bits - 1);
        if self.signed { (-half, half - 1) } else { (0, 2 * half - 1) }
    }

    /// One integer; 0 beyond the end.
    pub(super) fn get(self, bytes: &[u8], at: usize) -> i64 {
        let wide = |n: usize| {
            let mut word = [0; 8];
            let from = at.saturating_mul(n);
            let bytes = bytes.get(from..from.saturating_add(n)).unwrap_or_default();
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let raw = match self.bits {
            bits @ (2 | 4) => {
                let per_byte = 8 / bits;
                let byte = bytes.get(at / per_byte).copied().unwrap_or(0);
                u64::from(byte >> (at % per_byte * bits) & ((1 << bits) - 1))
            }
            bits => wide(bits / 8),
        };
        let unused = 64 - self.bits as u32;
        if self.signed { (raw as i64) << unused >> unused } else { raw as i64 }
    }

    /// Consecutive codes of at most 8 bits as bytes, of which those with a sign keep their bits.
    pub(super) fn bytes(self, bytes: &[u8], first: usize, out: &mut [u8]) {
        if self.bits == 8 {
            let from = bytes.get(first..).unwrap_or_default();
            out.iter_mut().zip(from).for_each(|(o, b)| *o = *b);
            return;
        }
        let (per_byte, mask) = (8 / self.bits, (1u8 << self.bits) - 1);
        let (mut byte, mut part) = (first / per_byte, first % per_byte);
        let mut out = out.iter_mut();
        // Up to the next whole byte, then byte by byte.
        while part != 0 {
            let Some(o) = out.next() else { return };
            *o = bytes.get(byte).copied().unwrap_or(0) >> (part * self.bits) & mask;
            part = (part + 1) % per_byte;
            byte += usize::from(part == 0);
        }
        let out = out.into_slice();
        for (codes, b) in out.chunks_mut(per_byte).zip(bytes.get(byte..).unwrap_or_default()) {
            codes.iter_mut().enumerate().for_each(|(i, o)| *o = b >> (i * self.bits) & mask);
        }
    }
}
