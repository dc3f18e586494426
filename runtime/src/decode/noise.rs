//! Randomness for drawing tokens: a counter-based generator, or recorded numbers.
//!
//! Invariant: a random number is a pure function of the seed, the pass, the position and the token, never of how many
//! numbers were drawn before it, so the same seed gives the same tokens on every target and thread count. The generator
//! is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). It is not
//! cryptographic.

use std::collections::BTreeMap;

/// Where the noise of a call comes from.
#[derive(Clone, Debug)]
pub enum Noise {
    /// Philox4x32-10 with this seed as its key.
    Seeded(u64),
    /// The same generator, and numbers that are used for nothing else.
    Stream(u64, Stream),
    /// Numbers recorded from another implementation, one entry per pass that chooses tokens.
    Recorded(Vec<Recorded>),
}

/// Exp(1) variates recorded from one pass, by absolute position. A reference's uniform numbers u become -ln u.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// One variate per token of the vocabulary.
    pub tokens: BTreeMap<usize, Vec<f32>>,
    /// One variate per position.
    pub positions: BTreeMap<usize, f32>,
}

/// What a random number belongs to.
#[derive(Clone, Copy, Debug)]
pub struct NoiseRow {
    /// Passes of the call that chose tokens before this one.
    pub pass: usize,
    /// Absolute position in the sequence.
    pub position: usize,
}

/// Fourth word of the counter: what the numbers are for. Two streams never share a number, so a choice that was made with
/// one says nothing about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The tokens of a row.
    Tokens = 0,
    /// The positions of a pass.
    Positions = 1,
    /// The tokens that a drafter proposes.
    Draft = 2,
    /// Whether a verifier accepts them.
    Accept = 3,
    /// The token in the place of one that was rejected.
    Residual = 4,
    /// The token behind a draft that was accepted as a whole.
    Bonus = 5,
}

impl Noise {
    /// The Exp(1) variates of the tokens of a row; `None` for a token of which none was recorded.
    pub fn exponential(&self, at: NoiseRow) -> impl FnMut(i32) -> Option<f32> {
        let mut seeded = self.uniform(at);
        move |token| {
            let token = u32::try_from(token).ok()?;
            match (&mut seeded, self) {
                (Some(seeded), _) => Some(exponential(seeded.of(token))),
                (None, Noise::Recorded(passes)) => {
                    passes.get(at.pass)?.tokens.get(&at.position)?.get(token as usize).copied()
                }
                (None, _) => None,
            }
        }
    }

    /// The uniform bits of the tokens of a row, from which their variates are computed; `None` for recorded numbers.
    #[inline(always)]
    pub(super) fn uniform(&self, at: NoiseRow) -> Option<Uniform> {
        let (seed, stream) = match *self {
            Noise::Seeded(seed) => (seed, Stream::Tokens),
            Noise::Stream(seed, stream) => (seed, stream),
            Noise::Recorded(_) => return None,
        };
        Some(Uniform { seed, stream, at, block: (u32::MAX, [0; 4]) })
    }

    /// The Exp(1) variate of a position itself; `None` when none was recorded.
    pub fn of_position(&self, at: NoiseRow) -> Option<f32> {
        let (seed, stream) = match self {
            Noise::Seeded(seed) => (*seed, Stream::Positions),
            Noise::Stream(seed, stream) => (*seed, *stream),
            Noise::Recorded(passes) => return passes.get(at.pass)?.positions.get(&at.position).copied(),
        };
        Some(exponential(philox4x32([[0], [at.position as u32], [at.pass as u32], [stream as u32]], seed)[0][0]))
    }
}

/// Tokens whose bits are drawn at once.
pub(super) const GROUP: usize = 32;
const LANES: usize = GROUP / 4;

/// The uniform bits of a row.
#[derive(Debug)]
pub(super) struct Uniform {
    seed: u64,
    stream: Stream,
    at: NoiseRow,
    /// The block drawn last, and its number.
    block: (u32, [u32; 4]),
}

impl Uniform {
    /// Those of a token.
    #[inline(always)]
    pub(super) fn of(&mut self, token: u32) -> u32 {
        let index = token / 4;
        if self.block.0 != index {
            self.block = (index, self.blocks([index]).map(|[word]| word));
        }
        self.block.1[token as usize % 4]
    }

    /// Those of the tokens `first..first + GROUP`, where `first` is a multiple of 4.
    #[inline(always)]
    pub(super) fn group(&self, first: u32) -> [u32; GROUP] {
        let words = self.blocks(std::array::from_fn::<u32, LANES, _>(|lane| first / 4 + lane as u32));
        let mut bits = [0; GROUP];
        for (lane, bits) in bits.chunks_exact_mut(4).enumerate() {
            bits.copy_from_slice(&words.map(|word| word[lane]));
        }
        bits
    }

    /// Positions and passes beyond 2³² repeat, which no decode reaches.
    #[inline(always)]
    fn blocks<const N: usize>(&self, index: [u32; N]) -> [[u32; N]; 4] {
        philox4x32([index, [self.at.position as u32; N], [self.at.pass as u32; N], [self.stream as u32; N]], self.seed)
    }
}

/// Exp(1) from 32 uniform bits by inversion.
pub(super) fn exponential(bits: u32) -> f32 {
    let uniform = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    -libm::log(uniform) as f32
}

/// What [`exponential`] of any bits reaches, but for its rounding.
pub(super) const LEAST: f32 = 1.0 / 8_589_934_592.0;

/// What [`exponential`] of these bits reaches, but for its rounding: -ln u is at least 1 - u.
#[inline(always)]
pub(super) fn at_least(bits: u32) -> f32 {
    (!bits >> 8) as i32 as f32 / 16_777_216.0
}

/// Ten rounds of Philox on `N` 128-bit counters with a 64-bit key, low word first.
#[inline(always)]
fn philox4x32<const N: usize>(counter: [[u32; N]; 4], key: u64) -> [[u32; N]; 4] {
    // The upper halves of these words are whatever the products leave there: instructions that multiply many numbers at
    // once read the lower halves of 64 bits.
    let [mut c0, mut c1, mut c2, mut c3] = counter.map(|words| words.map(u64::from));
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        for lane in 0..N {
            let product0 = (c0[lane] & 0xFFFF_FFFF) * 0xD251_1F53;
            let product2 = (c2[lane] & 0xFFFF_FFFF) * 0xCD9E_8D57;
            c0[lane] = (product2 >> 32) ^ c1[lane] ^ u64::from(k0);
            c1[lane] = product2;
            c2[lane] = (product0 >> 32) ^ c3[lane] ^ u64::from(k1);
            c3[lane] = product0;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3].map(|words| words.map(|word| word as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with the generator.
    #[test]
    fn philox_known_answers() {
        let one = |counter: [u32; 4], key| philox4x32(counter.map(|word| [word]), key).map(|[word]| word);
        assert_eq!(one([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(one([u32::MAX; 4], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            one([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_number_depends_on_its_coordinates_only() {
        let noise = Noise::Seeded(7);
        let at = NoiseRow { pass: 3, position: 11 };
        let forward: Vec<_> = (0..40).map(noise.exponential(at)).collect();
        let mut backward: Vec<_> = (0..40).rev().map(noise.exponential(at)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert_ne!(noise.exponential(NoiseRow { pass: 4, ..at })(5), forward[5]);
        assert_ne!(noise.exponential(NoiseRow { position: 12, ..at })(5), forward[5]);
        assert_ne!(Noise::Seeded(8).exponential(at)(5), forward[5]);
        assert_eq!(noise.of_position(at), noise.of_position(at));
        assert!(noise.of_position(at).is_some_and(|x| !forward.contains(&Some(x))), "another stream");
        for stream in [Stream::Draft, Stream::Accept, Stream::Residual, Stream::Bonus] {
            let other: Vec<_> = (0..40).map(Noise::Stream(7, stream).exponential(at)).collect();
            assert!(other.iter().all(|x| !forward.contains(x)), "{stream:?}");
        }
    }

    #[test]
    fn groups_and_single_tokens_have_the_same_bits() {
        let mut uniform = Noise::Seeded(7).uniform(NoiseRow { pass: 3, position: 11 }).unwrap();
        for first in [0, 4, 151_936] {
            let bits = uniform.group(first);
            assert_eq!(bits.to_vec(), (first..first + GROUP as u32).map(|token| uniform.of(token)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bounds_hold() {
        for bits in (0..=u32::MAX).step_by(9973).chain([1, 255, 256, u32::MAX - 256, u32::MAX - 255, u32::MAX]) {
            let variate = exponential(bits) * (1.0 + f32::EPSILON);
            assert!(variate >= at_least(bits) && variate >= LEAST, "{bits}");
        }
    }

    #[test]
    fn variates_are_positive_with_mean_one() {
        assert!(exponential(u32::MAX) > 0.0);
        assert!(exponential(0).is_finite());
        let draw = |token| Noise::Seeded(1).exponential(NoiseRow { pass: 0, position: 0 })(token).unwrap();
        let mean = (0..20_000).map(|token| f64::from(draw(token))).sum::<f64>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }

    #[test]
    fn what_was_not_recorded_is_missing() {
        let tokens = BTreeMap::from([(7, vec![0.5, 1.5])]);
        let noise = Noise::Recorded(vec![Recorded { tokens, positions: BTreeMap::from([(3, 0.25)]) }]);
        let at = |pass, position| NoiseRow { pass, position };
        assert_eq!(noise.exponential(at(0, 7))(1), Some(1.5));
        assert_eq!(noise.exponential(at(0, 7))(2), None);
        assert_eq!(noise.exponential(at(0, 7))(-1), None);
        assert_eq!(noise.exponential(at(0, 8))(0), None);
        assert_eq!(noise.exponential(at(1, 7))(0), None);
        assert_eq!(noise.of_position(at(0, 3)), Some(0.25));
        assert_eq!(noise.of_position(at(0, 4)), None);
    }
}
