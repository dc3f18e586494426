//! Portable kernel bodies, compiled once per instruction set.
//!
//! Each body is one `#[inline(always)]` function over 16-lane chunks. The shims below give it the instruction set's
//! features and the compiler vectorizes it. Invariant: bodies use only operations with one exact result (IEEE basic
//! operations, fused multiply-add, integer arithmetic) in a fixed order, so all instruction sets agree to the bit.

mod cache;
mod lanes;
mod pointwise;
mod quantize;
mod softmax;
mod stats;
mod store;

pub(super) use cache::{NewRows, SCALE_BYTES};
pub(crate) use lanes::exp;
pub(super) use quantize::IntAct;
pub(super) use stats::{ChunkStats, STATS_WORDS};
pub(super) use store::{Store, StoreMode};

use super::FloatKind;
use super::elementwise::Norm;
use crate::exec::RowStats;

macro_rules! portable {
    ($($(#[$doc:meta])* $module:ident :: $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// The portable kernels of one instruction set.
        pub(super) struct Portable { $($name: unsafe fn($($ty),*) $(-> $ret)?),* }

        impl Portable {
            /// What they do, one name each.
            pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

            $($(#[$doc])*
            #[inline]
            #[allow(clippy::too_many_arguments, reason = "operands of a kernel")]
            pub(super) fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: a table is reachable only through `kernels`, which checks the CPU's features.
                unsafe { (self.$name)($($arg),*) }
            })*
        }

        portable!(@table SCALAR, scalar, [], $($module::$name($($arg: $ty),*) $(-> $ret)?;)*);
        #[cfg(target_arch = "x86_64")]
        portable!(@table AVX2, avx2, [#[target_feature(enable = "avx2,fma,f16c")]],
            $($module::$name($($arg: $ty),*) $(-> $ret)?;)*);
        #[cfg(target_arch = "x86_64")]
        portable!(@table AVX512, avx512, [#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]],
            $($module::$name($($arg: $ty),*) $(-> $ret)?;)*);
    };
    (@table $table:ident, $isa:ident, $features:tt, $($module:ident :: $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        pub(super) static $table: Portable = Portable { $($name: $isa::$name),* };
        mod $isa {
            use super::*;
            $(portable!(@shim $features, $module::$name($($arg: $ty),*) $(-> $ret)?);)*
        }
    };
    (@shim [$(#[$feature:meta])?], $module:ident :: $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {
        $(#[$feature])?
        #[allow(clippy::too_many_arguments, reason = "operands of a kernel")]
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            super::$module::$name($($arg),*)
        }
    };
}

portable! {
    /// `x += y`.
    pointwise::add(x: &mut [f32], y: &[f32]);
    /// `x *= y`.
    pointwise::mul(x: &mut [f32], y: &[f32]);
    /// `x *= factor`.
    pointwise::scale(x: &mut [f32], factor: f32);
    /// `x = silu(x)`.
    pointwise::silu(x: &mut [f32]);
    /// `x = silu(x) * up`.
    pointwise::silu_mul(x: &mut [f32], up: &[f32]);
    /// RMS-normalizes each consecutive chunk of the weight's length.
    pointwise::rms_norm(x: &mut [f32], norm: Norm<'_>);
    /// Rotates each consecutive head by one row of a rotary table (`cos` half, `sin` half).
    pointwise::rope(x: &mut [f32], table: &[f32]);
    /// Writes new keys of one head.
    cache::write_keys(new: NewRows<'_>, kind: FloatKind, keys: &mut [u8]);
    /// Writes new values of one head.
    cache::write_values(new: NewRows<'_>, kind: FloatKind, values: &mut [u8]);
    /// Writes new keys of one head in int8.
    cache::write_key_codes(new: NewRows<'_>, keys: &mut [u8]);
    /// Writes new values of one head in int8.
    cache::write_value_codes(new: NewRows<'_>, values: &mut [u8]);
    /// Multiplies the elements of each row by the scales of int8 keys.
    cache::apply_scales(x: &mut [f32], stride: usize, scales: &[u8]);
    /// Quantizes a tile of rows, normalized first if asked, to the activation layout of `DotArgs`.
    quantize::quantize_tile(x: &[f32], rows: usize, norm: Option<Norm<'_>>, spec: IntAct, out: &mut [u32]);
    /// Interleaves a tile of rows, normalized first if asked, to `[k][rows]` f32 bits.
    quantize::interleave_tile(x: &[f32], rows: usize, norm: Option<Norm<'_>>, out: &mut [u32]);
    /// One block of the online softmax; see `softmax`.
    softmax::softmax_block(scores: &mut [f32], from: usize, ends: &[usize], max: &mut [f32], sum: &mut [f32], acc: &mut [f32]);
    /// Quantizes the weights of a block for int8 values; see `softmax`.
    softmax::quantize_weights(scores: &[f32], from: usize, ends: &[usize], value_scales: &[u8], out: &mut [u32]);
    /// Divides each row of `acc` by its sum of weights.
    softmax::softmax_finish(sum: &[f32], acc: &mut [f32]);
    /// Statistics of one row over one chunk of the vocabulary.
    stats::chunk_stats(logits: &[f32], rows: usize, row: usize, first_id: u32, banned: u32) -> ChunkStats;
    /// Merges the chunk statistics of one row.
    stats::merge_stats(chunks: &[u32]) -> RowStats;
    /// Writes products to their rows.
    store::store(totals: &[f32], to: &Store<'_>);
}
