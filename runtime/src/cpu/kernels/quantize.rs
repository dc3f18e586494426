//! [`dlx_ir::quant::quantize_row`] compiled for the CPU's instruction set. The codes do not depend on it.

use dlx_ir::QuantFormat;
#[cfg(target_arch = "x86_64")]
use dlx_ir::quant::codebook::{self, Block, Errors, Levels};
use dlx_ir::quant::{self, QuantizedRow};

/// Quantizes one row into `out`; false when a scale or minimum does not fit f16.
pub fn quantize_row(format: QuantFormat, row: &[f32], out: &mut QuantizedRow) -> bool {
    #[cfg(target_arch = "x86_64")]
    if format == QuantFormat::L16 && crate::cpu::Isa::Avx512Vbmi.available() {
        // SAFETY: the features of `Isa::Avx512Vbmi` were just detected.
        return unsafe { avx512vbmi(row, out) };
    } else if crate::cpu::Isa::Avx512.available() {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
fn avx512vbmi(row: &[f32], out: &mut QuantizedRow) -> bool {
    // SAFETY: this function has the features.
    codebook::quantize_row(row, out, |errors, block, len, place| unsafe { table_levels(errors, block, len, place) })
}

/// As [`codebook::levels`]: 64 weights at a time are looked up in both halves of each codebook's errors.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn table_levels(errors: &Errors, block: &Block, len: usize, place: i16) -> Levels {
    use std::arch::x86_64::*;
    if len < block.len() {
        return codebook::levels(errors, block, len, place);
    }
    // SAFETY: reads of 64 bytes stay within a block of 128 numbers of two bytes and tables of 256 bytes.
    unsafe {
        let place = _mm512_set1_epi16(place);
        let part = |i: usize| _mm512_mulhrs_epi16(_mm512_loadu_si512(block.as_ptr().add(32 * i).cast()), place);
        // Of each run eight places here and eight there, in the same order in both.
        let places = [_mm512_packs_epi16(part(0), part(1)), _mm512_packs_epi16(part(2), part(3))];
        let negative = places.map(|p| _mm512_movepi8_mask(p));
        let (mut best, mut of) = (_mm512_set1_epi64(i64::MAX), _mm512_setzero_si512());
        for (level, table) in errors.bytes.iter().enumerate() {
            let quarter = |i: usize| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast());
            // Bytes count from the place −128; their low seven bits choose within a half.
            let sums: [_; 2] = std::array::from_fn(|i| {
                let below = _mm512_permutex2var_epi8(quarter(0), places[i], quarter(1));
                let above = _mm512_permutex2var_epi8(quarter(2), places[i], quarter(3));
                let found = _mm512_mask_blend_epi8(negative[i], above, below);
                _mm512_sad_epu8(found, _mm512_setzero_si512())
            });
            let first = _mm512_shuffle_i64x2::<0b10_00_10_00>(sums[0], sums[1]);
            let second = _mm512_shuffle_i64x2::<0b11_01_11_01>(sums[0], sums[1]);
            let sum = _mm512_add_epi64(first, second);
            let better = _mm512_cmplt_epi64_mask(sum, best);
            best = _mm512_mask_mov_epi64(best, better, sum);
            of = _mm512_mask_mov_epi64(of, better, _mm512_set1_epi64(level as i64));
        }
        // Packing and adding up leave the second and the third of four runs in each other's place.
        let of = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7), of);
        let of = _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(of)).to_le_bytes();
        Levels { error: _mm512_reduce_add_epi64(best) as u32, of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_finds_the_codes_of_plain_rust() {
        for k in [16, 100, 128, 640, 700] {
            let row: Vec<f32> =
                (0..k).map(|i| ((i * 7919 + k) % 251) as f32 / 251.0 - 0.47 + (i % 3) as f32 * 0.1).collect();
            for format in ["l16", "q4g32", "q8m"].map(|f| f.parse::<QuantFormat>().expect("a format")) {
                let [mut plain, mut ours] = [(); 2].map(|()| QuantizedRow::zeroed(format, k));
                assert!(quant::quantize_row(format, &row, &mut plain) && quantize_row(format, &row, &mut ours));
                assert_eq!(plain, ours, "{format} {k}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn errors_of_every_place_are_those_of_plain_rust() {
        if !crate::cpu::Isa::Avx512Vbmi.available() {
            return;
        }
        let row: Vec<f32> = (0..128).map(|i| ((i * 7919) % 257) as f32 - 128.0).collect();
        let check = |errors: &Errors, block: &Block, len: usize, _| {
            for place in (-128..128).chain([i16::MIN, i16::MAX]) {
                // SAFETY: the features were just detected.
                let ours = unsafe { table_levels(errors, block, len, place) };
                assert_eq!(ours, codebook::levels(errors, block, len, place), "{place}");
            }
            codebook::levels(errors, block, len, 100)
        };
        assert!(codebook::quantize_row(&row, &mut QuantizedRow::zeroed(QuantFormat::L16, 128), check));
    }
}
