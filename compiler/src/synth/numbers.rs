//! The random numbers of a tensor: what stands at an index depends on the tensor's name, the seed and the index alone.

use std::sync::LazyLock;

use half::bf16;

use super::shapes::Tensor;

/// Elements that one task makes at a time.
pub(super) const CHUNK: usize = 1 << 20;
/// Chunks between two reports of progress.
pub(super) const BATCH: usize = 32;

/// The numbers of one tensor, as little-endian bf16, by their index.
pub(super) struct Numbers {
    ones: bool,
    key: u64,
}

/// The table of every tensor's numbers.
static TABLE: LazyLock<[[u8; 2]; 4096]> = LazyLock::new(normal_table);

impl Numbers {
    /// The numbers of a tensor under a seed.
    pub(super) fn new(tensor: &Tensor, seed: u64) -> Self {
        Numbers { ones: tensor.ones, key: mix(seed ^ mix(hash(&tensor.name))) }
    }

    /// Numbers 4n to 4n + 3.
    pub(super) fn four(&self, n: usize) -> [u8; 8] {
        let ([a, b], [c, d], [e, f], [g, h]) = (self.lane(n, 0), self.lane(n, 1), self.lane(n, 2), self.lane(n, 3));
        [a, b, c, d, e, f, g, h]
    }

    /// One number.
    pub(super) fn get(&self, index: usize) -> [u8; 2] {
        self.lane(index / 4, index as u32 % 4)
    }

    fn lane(&self, n: usize, lane: u32) -> [u8; 2] {
        if self.ones {
            return bf16::ONE.to_le_bytes();
        }
        let bits = mix(self.key.wrapping_add((n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        TABLE[(bits >> (16 * lane + 4)) as usize & 4095]
    }
}

/// A bijective scrambling of 64 bits (the finalizer of splitmix64).
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// 4096 equally likely bf16 values with a bell-shaped distribution of standard deviation 0.02: the quantiles of the sum of
/// four uniform bytes. Only integers decide which, so every machine gets the same table.
fn normal_table() -> [[u8; 2]; 4096] {
    let mut counts = vec![1u64];
    for _ in 0..4 {
        let mut next = vec![0; counts.len() + 255];
        for (i, count) in counts.iter().enumerate() {
            next[i..i + 256].iter_mut().for_each(|n| *n += count);
        }
        counts = next;
    }
    // Standard deviation of the sum: sqrt(4 · (256² − 1) / 12).
    const SCALE: f32 = 0.02 / 147.800_77;
    let mut table = [[0; 2]; 4096];
    let (mut below, mut sum) = (0, 0);
    for (i, entry) in table.iter_mut().enumerate() {
        let middle = ((i as u64) << 20) + (1 << 19);
        while below + counts[sum] <= middle {
            below += counts[sum];
            sum += 1;
        }
        *entry = bf16::from_f32((sum as f32 - 510.0) * SCALE).to_le_bytes();
    }
    table
}
