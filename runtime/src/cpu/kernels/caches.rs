//! The KV caches of one layer: their shape and size, and writing new rows.
//!
//! Per KV head: keys are interleaved by 16 rows, `[row / 16][head_dim][16]` (layout `cpu.k16`), so that lanes are keys;
//! values are rows, `[row][head_dim]` with head_dim rounded up to 16 (layout `cpu.v`). Int8 caches have an order of their own,
//! which `body/cache.rs` knows.

use super::body::{NewRows, SCALE_BYTES};
use super::parallel::{Ctx, SharedMut};
use super::{FloatKind, ROUND};
use dlx_ir::DType;
use std::ops::Range;

/// Rows of keys that are interleaved.
pub(super) const KEY_LANES: usize = 16;

/// Shape of one layer's KV states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvShape {
    /// Element type: f32, f16, or [`DType::CACHE_Q8`].
    pub dtype: DType,
    /// Cache rows.
    pub max_seq: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
}

impl KvShape {
    /// What the float kernel calls the elements; `None` for int8.
    pub(super) fn float(&self) -> Option<FloatKind> {
        match self.dtype {
            DType::F32 => Some(FloatKind::F32),
            DType::F16 => Some(FloatKind::F16),
            DType::CACHE_Q8 => None,
            other => panic!("KV states are f32, f16 or q8, not {other}"),
        }
    }

    pub(super) fn element_bytes(&self) -> usize {
        self.float().map_or(1, FloatKind::size)
    }

    /// Elements per row of keys.
    pub(super) fn key_width(&self) -> usize {
        if self.float().is_none() { self.head_dim.next_multiple_of(ROUND) } else { self.head_dim }
    }

    /// Elements per row of values.
    pub(super) fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(KEY_LANES)
    }

    /// Rows up to the end of what is interleaved with the last of them.
    pub(in crate::cpu) fn whole_rows(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.interleaved())
    }

    /// Rows that lie together.
    pub(in crate::cpu) fn interleaved(&self) -> usize {
        if self.dtype == DType::CACHE_Q8 { ROUND } else { KEY_LANES }
    }
}

fn state_bytes(shape: KvShape, columns: usize) -> Option<usize> {
    let width = shape.head_dim.checked_next_multiple_of(columns)?;
    let row = match shape.dtype {
        DType::F32 | DType::F16 => width.checked_mul(shape.element_bytes())?,
        DType::CACHE_Q8 => width.checked_add(SCALE_BYTES)?,
        _ => return None,
    };
    shape.max_seq.checked_next_multiple_of(shape.interleaved())?.checked_mul(shape.kv_heads)?.checked_mul(row)
}

/// Bytes of a layer's key state; `None` on overflow or for another element type.
pub fn k_state_bytes(shape: KvShape) -> Option<usize> {
    state_bytes(shape, if shape.dtype == DType::CACHE_Q8 { ROUND } else { 1 })
}

/// Bytes of a layer's value state; `None` on overflow or for another element type.
pub fn v_state_bytes(shape: KvShape) -> Option<usize> {
    state_bytes(shape, KEY_LANES)
}

/// Where a head of `head_bytes` bytes, of keys or of values, holds these rows: the elements and, behind those of all rows,
/// the scales. Rows are interleaved, so they begin with a tile, and whole tiles of them are named.
pub(in crate::cpu) fn kv_row_parts(shape: KvShape, head_bytes: usize, rows: Range<usize>) -> [Range<usize>; 2] {
    let all = shape.whole_rows(shape.max_seq);
    let scale = if shape.dtype == DType::CACHE_Q8 { SCALE_BYTES } else { 0 };
    let (Range { start, .. }, end, elements) = (rows.clone(), shape.whole_rows(rows.end), head_bytes / all - scale);
    [start * elements..end * elements, all * elements + start * scale..all * elements + end * scale]
}

/// Writes new rows of keys and values, each `[rows, kv_heads * head_dim]`, to cache rows `at..`.
///
/// # Panics
/// When sizes do not fit.
pub fn kv_write(
    ctx: &Ctx<'_>,
    shape: KvShape,
    k: &[f32],
    v: &[f32],
    at: usize,
    k_state: &mut [u8],
    v_state: &mut [u8],
) {
    /// Values below which handing work to another thread costs more than it saves.
    const MIN_VALUES: usize = 16 * 1024;
    let width = shape.kv_heads * shape.head_dim;
    assert!(k.len() == v.len() && k.len().is_multiple_of(width), "whole rows of keys and values");
    let rows = k.len() / width;
    assert!(at <= shape.max_seq && rows <= shape.max_seq - at, "rows {at}+{rows} of {}", shape.max_seq);
    check_states(shape, k_state, v_state);
    if rows == 0 {
        return;
    }
    let (k_head, v_head) = (k_state.len() / shape.kv_heads, v_state.len() / shape.kv_heads);
    let (keys, values) = (SharedMut::new(k_state), SharedMut::new(v_state));
    let portable = ctx.kernels.portable;
    ctx.parallel(shape.kv_heads, MIN_VALUES.div_ceil(rows * shape.head_dim), |_, heads| {
        for h in heads {
            // SAFETY: each head is visited once, and heads do not overlap.
            let (keys, values) = unsafe { (keys.slice(h * k_head, k_head), values.slice(h * v_head, v_head)) };
            let new = |x| NewRows { x, stride: width, head_dim: shape.head_dim, at };
            let (k, v) = (new(&k[h * shape.head_dim..]), new(&v[h * shape.head_dim..]));
            if let Some(kind) = shape.float() {
                portable.write_keys(k, kind, keys);
                portable.write_values(v, kind, values);
            } else {
                portable.write_key_codes(k, keys);
                portable.write_value_codes(v, values);
            }
        }
    });
}

pub(super) fn check_states(shape: KvShape, k_state: &[u8], v_state: &[u8]) {
    assert_eq!(Some(k_state.len()), k_state_bytes(shape), "key state size");
    assert_eq!(Some(v_state.len()), v_state_bytes(shape), "value state size");
}
