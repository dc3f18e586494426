//! [`dlx_ir::quant::quantize_row`] compiled for the CPU's instruction set. The codes do not depend on it.

use dlx_ir::QuantFormat;
use dlx_ir::quant::{self, QuantizedRow};

/// Quantizes one row into `out`; false when a scale or minimum does not fit f16.
pub fn quantize_row(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::Isa::Avx512.available() {
        // SAFETY: the features of `Isa::Avx512` were just detected.
        return unsafe { avx512(format, row, out) };
    } else if crate::cpu::Isa::Avx2.available() {
        // SAFETY: the features of `Isa::Avx2` were just detected.
        return unsafe { avx2(format, row, out) };
    }
    quant::quantize_row(format, row, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn avx512(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    quant::quantize_row(format, row, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    quant::quantize_row(format, row, out)
}
