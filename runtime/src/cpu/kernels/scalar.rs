//! The kernels in plain Rust: the definition of the exact result, and the fallback on any CPU.
//!
//! Invariant: the order of every float operation here is the order in which each vector kernel computes each lane.

use super::{
    AttendArgs, CODES_BYTES, DotArgs, FloatKind, FmaArgs, KEY_BLOCK, LEVELS_AT, LOOKED_UP_BYTES, SCALES_AT,
    TABLE_BLOCK_BYTES, TILE_SCALE_BYTES, UNSIGNED_TABLE,
};
use crate::cpu::pack::{BLOCK, TILE_COLUMNS};
use half::{bf16, f16};

/// Integer kernel; see [`DotArgs`].
pub(super) unsafe fn dot(p: &DotArgs) {
    let words = DotArgs::act_words(p.groups);
    let quads = BLOCK / 4 / p.groups;
    let codes_bytes = BLOCK * TILE_COLUMNS / if p.nibbles { 2 } else { 1 };
    let table_bytes = p.groups * TILE_COLUMNS * 2;
    for b in 0..p.blocks {
        for r in 0..p.rows {
            for col in 0..TILE_COLUMNS {
                // SAFETY: the caller's buffers have the extents that `DotArgs` documents; all indices stay below them.
                unsafe {
                    let act = p.act.add(b * words * p.rows);
                    let codes = p.weights.add(b * p.block_bytes);
                    let scales = codes.add(codes_bytes).cast::<u16>();
                    let mins = codes.add(codes_bytes + table_bytes).cast::<u16>();
                    let mut block = 0f32;
                    for g in 0..p.groups {
                        let entry = g * TILE_COLUMNS + col;
                        let correction = *act.add((BLOCK / 4 + g) * p.rows + r);
                        let mut sum = if p.min { 0 } else { correction as i32 };
                        for q in g * quads..(g + 1) * quads {
                            let a = (*act.add(q * p.rows + r)).to_le_bytes();
                            for (j, a) in a.into_iter().enumerate() {
                                let code = if p.nibbles {
                                    *codes.add(q / 2 * 64 + col * 4 + j) >> (4 * (q % 2)) & 15
                                } else {
                                    *codes.add(q * 64 + col * 4 + j)
                                };
                                sum += i32::from(code) * i32::from(a as i8);
                            }
                        }
                        let scale = f16::from_bits(scales.add(entry).read_unaligned()).to_f32();
                        block = (sum as f32).mul_add(scale, block);
                        if p.min {
                            let min = f16::from_bits(mins.add(entry).read_unaligned()).to_f32();
                            block = f32::from_bits(correction).mul_add(min, block);
                        }
                    }
                    let scale = f32::from_bits(*act.add((BLOCK / 4 + p.groups) * p.rows + r));
                    let total = p.total.add(r * TILE_COLUMNS + col);
                    *total = block.mul_add(scale, *total);
                }
            }
        }
    }
}

/// Float kernel; see [`FmaArgs`].
pub(super) unsafe fn fma(p: &FmaArgs) {
    for t in 0..p.tiles {
        for r in 0..p.rows {
            for col in 0..TILE_COLUMNS {
                // SAFETY: the caller's buffers have the extents that `FmaArgs` documents; all indices stay below them.
                unsafe {
                    let total = p.total.add(t * p.total_tile + r * p.total_row + col);
                    let mut sum = *total;
                    for k in 0..p.k {
                        let a = *p.a.add(if p.a_row_major { r * KEY_BLOCK + k } else { k * p.rows + r });
                        let at = t * p.w_tile + k * p.w_step + col;
                        let w = match p.w_kind {
                            FloatKind::F32 => p.w.cast::<f32>().add(at).read_unaligned(),
                            FloatKind::F16 => f16::from_bits(p.w.cast::<u16>().add(at).read_unaligned()).to_f32(),
                            FloatKind::BF16 => bf16::from_bits(p.w.cast::<u16>().add(at).read_unaligned()).to_f32(),
                        };
                        sum = a.mul_add(w, sum);
                    }
                    *total = sum;
                }
            }
        }
    }
}

/// Integer kernel of attention; see [`AttendArgs`].
pub(super) unsafe fn attend(p: &AttendArgs) {
    for t in 0..p.tiles {
        for r in 0..p.rows {
            for col in 0..TILE_COLUMNS {
                // SAFETY: the caller's buffers have the extents that `AttendArgs` documents; all indices stay below them.
                unsafe {
                    let mut sum = *p.corrections.add(r) as i32;
                    for q in 0..8 * p.rounds {
                        let a = (*p.act.add(q * p.rows + r)).to_le_bytes();
                        let codes = p.codes.add(t * p.tile_bytes + q / 8 * p.round_bytes + q % 8 * 64 + col * 4);
                        for (j, a) in a.into_iter().enumerate() {
                            sum += i32::from(*codes.add(j)) * i32::from(a as i8);
                        }
                    }
                    let scale = f32::from_bits(*p.corrections.add(p.rows + r));
                    let total = p.total.add(t * p.total_tile + r * p.total_row + col);
                    *total = (sum as f32).mul_add(scale, *total);
                }
            }
        }
    }
}

/// Looks the codes of `l16` up; see [`Lookup::Ahead`](super::Lookup).
pub(super) unsafe fn look_up(from: *const u8, blocks: usize, to: *mut u8) {
    for b in 0..blocks {
        // SAFETY: the caller has so many blocks at `from`, and room for them at `to`.
        unsafe {
            let from = from.add(b * TABLE_BLOCK_BYTES);
            let to = to.add(b * LOOKED_UP_BYTES);
            for q in 0..BLOCK / 4 {
                for i in 0..TILE_COLUMNS * 4 {
                    let code = *from.add(q / 2 * 64 + i) >> (4 * (q % 2)) & 15;
                    let level = *from.add(LEVELS_AT + i / 4 * 2 + q / 16) >> (q / 4 % 4 * 2) & 3;
                    *to.add(q * 64 + i) = UNSIGNED_TABLE[usize::from(level << 4 | code)];
                }
            }
            to.add(CODES_BYTES).copy_from_nonoverlapping(from.add(SCALES_AT), TILE_SCALE_BYTES);
        }
    }
}
