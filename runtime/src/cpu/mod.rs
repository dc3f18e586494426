//! CPU kernels: packed weights, quantized and float linear layers, attention, the fused LM head and the small ops.
//!
//! Invariant: every result is bit-identical for any number of threads and any [`Isa`]. Each output element is computed
//! by one thread in one fixed order, multiply-adds are fused everywhere, and horizontal reductions run over sixteen
//! virtual lanes that are folded by one fixed tree.
//!
//! Activations are f32, row-major, `[rows, features]`. Shapes are the caller's contract: the ops assert them and panic
//! on a mismatch. Nothing here allocates; ops that need working memory take it and have a `*_scratch_words` function
//! beside them. This module knows nothing about graphs or artifacts.

mod ahead;
mod arena;
pub(crate) mod error;
mod executor;
mod heap;
mod isa;
mod kernels;
pub(crate) mod memory;
mod pack;
mod pool;
mod probes;
mod program;
mod proof;

pub use error::LoadError;
pub use executor::{CpuExecutor, CpuOptions, Observe, Seen};
pub(crate) use heap::give_back;
pub use isa::Isa;
pub use kernels::attention::{AttentionShape, attention, attention_scratch_words};
use kernels::caches::kv_row_parts;
pub use kernels::caches::{KvShape, k_state_bytes, kv_write, v_state_bytes};
pub use kernels::elementwise::{Input, Norm, add, embed, mul, rms_norm, rope, rope_table, scale, silu, silu_mul};
pub(crate) use kernels::exp;
use kernels::head::head_words;
pub use kernels::head::{head_logits, head_stats, head_stats_scratch_words};
pub use kernels::limits::{f32_peak, int8_peak, read_once};
pub use kernels::linear::{Epilogue, MAX_WEIGHTS, linear, linear_scratch_words, prepare_rows};
pub use kernels::parallel::Ctx;
use kernels::product::act_words;
pub use kernels::quantize::quantize_row;
pub use kernels::vectorized::Work;
pub use kernels::{KernelVariant, Kernels, kernel_variants, kernels};
pub use memory::CpuMemory;
pub use pack::{PackedWeight, TILE_COLUMNS, pack_tile_float, pack_tile_quant, packed_bytes, tile_bytes, unpack_row};
pub use pool::Pool;
