//! Attention over the cache: scores, a streaming softmax and the weighted values, in one pass over the keys.
//!
//! A workgroup serves one key head and a few pairs of a row and a query head, so keys and values are read once for all
//! query heads that share them. First a thread takes a key, then it takes two features of the values. When rows and heads
//! alone would leave a device idle, the keys are split and a second kernel puts the parts together.

use dlx_ir::{DType, Mask};
use dlx_runtime::wgpu::plan::Feature;

use super::Job;
use super::source::{F16, F16_SUBGROUPS, Features, PLAIN, SUBGROUPS, Source};

/// Threads of a workgroup, and keys per round.
const THREADS: usize = 128;
/// Workgroups that keep a device busy.
const ENOUGH: usize = 64;
/// Fewest cache rows for which a part of the keys is worth a workgroup of its own.
const SPLIT_ROWS: usize = 512;

/// Sizes of an attention node.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_seq: usize,
    pub(super) cache: DType,
    pub(super) mask: Mask,
}

impl Attention {
    /// Query heads per key head.
    fn per(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn pairs(&self) -> usize {
        self.rows * self.per()
    }

    /// Vectors of four pairs per workgroup.
    fn groups(&self) -> usize {
        if self.pairs() > 4 && self.head_dim <= 128 { 2 } else { 1 }
    }

    fn tiles(&self) -> usize {
        self.pairs().div_ceil(4 * self.groups())
    }

    /// Into how many parts the keys are split.
    pub(super) fn splits(&self) -> usize {
        (ENOUGH / (self.tiles() * self.kv_heads)).clamp(1, (self.max_seq / SPLIT_ROWS).max(1))
    }

    /// Bytes of the parts.
    pub(super) fn part_bytes(&self) -> u64 {
        (self.splits() * self.kv_heads * self.pairs() * (self.head_dim + 2) * 4) as u64
    }

    /// Why these sizes cannot run, if they cannot.
    pub(super) fn refused(&self) -> Option<String> {
        if self.head_dim > 2 * THREADS || !self.head_dim.is_multiple_of(2) {
            return Some(format!("head_dim {} is odd or above {}", self.head_dim, 2 * THREADS));
        }
        None
    }

    fn shape(&self) -> String {
        let Attention { rows, heads, kv_heads, head_dim, cache, .. } = self;
        format!("{rows} rows, {heads}/{kv_heads} heads x {head_dim}, {cache} cache")
    }

    /// Bindings: call, q, keys, values, out (or parts).
    pub(super) fn job(&self) -> Job {
        let tiers: &[Features] = match self.cache {
            DType::F16 if self.head_dim.is_multiple_of(4) => &[F16_SUBGROUPS, SUBGROUPS, F16, PLAIN],
            _ => &[SUBGROUPS, PLAIN],
        };
        let groups = [self.tiles(), self.kv_heads, self.splits()];
        Job::new("attention", self.shape(), groups, tiers, |features| self.source(features))
    }

    /// Bindings: call, parts, out.
    pub(super) fn merge(&self) -> Job {
        Job::new("attention", format!("{}, merge", self.shape()), [self.heads, self.rows, 1], &[PLAIN], |_| {
            Source::new(PLAIN, "attention_merge")
                .write("parts", "f32")
                .write("out", "f32")
                .size("HEADS", self.heads)
                .size("PER", self.per())
                .size("PAIRS", self.pairs())
                .size("HEAD_DIM", self.head_dim)
                .size("SPLITS", self.splits())
                .size("SPLIT_WORDS", self.kv_heads * self.pairs() * (self.head_dim + 2))
        })
    }

    fn source(&self, features: Features) -> Source {
        let groups = self.groups();
        let slices = THREADS / (self.head_dim / 2);
        // What an element of each cache is, and how many features it has; keys are loaded four elements at a time where
        // they can.
        let (key, value, per_element, per_load) = match self.cache {
            DType::F16 if features.contains(&Feature::F16) => ("vec4<f16>", "vec2<f16>", 4, 4),
            DType::F16 | DType::BF16 if self.head_dim.is_multiple_of(8) => ("vec4<u32>", "u32", 2, 8),
            DType::F16 | DType::BF16 => ("u32", "u32", 2, 2),
            _ if self.head_dim.is_multiple_of(4) => ("vec4<u32>", "u32", 1, 4),
            _ => ("u32", "u32", 1, 1),
        };
        let elements = if per_load > per_element { vec![".x", ".y", ".z", ".w"] } else { vec![""] };
        let (mask, mask_block) = match self.mask {
            Mask::Full => ("full", 1),
            Mask::Causal => ("causal", 1),
            Mask::BlockCausal(b) => ("block_causal", b as usize),
            Mask::Local(_) => unreachable!("the verifier refuses it for a cache"),
        };
        Source::new(features, "attention")
            .write("q", "f32")
            .write("k_cache", key)
            .write("v_cache", value)
            .write("out", "f32")
            .set("cache", self.cache.to_string())
            .set("elements", elements)
            .set("per_element", per_element)
            .set("mask", mask)
            .size("MASK_BLOCK", mask_block)
            .size("LOAD", per_load)
            .size("ROWS", self.rows)
            .size("HEADS", self.heads)
            .size("KV_HEADS", self.kv_heads)
            .size("PER", self.per())
            .size("PAIRS", self.pairs())
            .size("HEAD_DIM", self.head_dim)
            .size("MAX_SEQ", self.max_seq)
            .size("GROUPS", groups)
            .size("PAIRS_HERE", 4 * groups)
            .size("SPLITS", self.splits())
            .size("SLICES", slices)
            .size("THREADS", THREADS)
            .size("TILE_VECTORS", self.head_dim * groups)
            .size("WEIGHT_VECTORS", THREADS * groups)
            .float("SCALE", 1.0 / (self.head_dim as f32).sqrt())
    }
}
