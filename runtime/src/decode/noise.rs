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

/// Fourth word of the counter: what the numbers are for.
const TOKENS: u32 = 0;
const POSITIONS: u32 = 1;

impl Noise {
    /// The Exp(1) variates of the tokens of a row; `None` for a token of which none was recorded.
    pub fn exponential(&self, at: NoiseRow) -> impl FnMut(i32) -> Option<f32> {
        let mut block = (u32::MAX, [0; 4]);
        move |token| {
            let token = u32::try_from(token).ok()?;
            match self {
                Noise::Seeded(seed) => {
                    let index = token / 4;
                    if block.0 != index {
                        block = (index, philox4x32(counter(index, at, TOKENS), *seed));
                    }
                    Some(exponential(block.1[token as usize % 4]))
                }
                Noise::Recorded(passes) => passes.get(at.pass)?.tokens.get(&at.position)?.get(token as usize).copied(),
            }
        }
    }

    /// The Exp(1) variate of a position itself; `None` when none was recorded.
    pub fn of_position(&self, at: NoiseRow) -> Option<f32> {
        match self {
            Noise::Seeded(seed) => Some(exponential(philox4x32(counter(0, at, POSITIONS), *seed)[0])),
            Noise::Recorded(passes) => passes.get(at.pass)?.positions.get(&at.position).copied(),
        }
    }
}

/// Positions and passes beyond 2³² repeat, which no decode reaches.
fn counter(index: u32, at: NoiseRow, purpose: u32) -> [u32; 4] {
    [index, at.position as u32, at.pass as u32, purpose]
}

/// Exp(1) from 32 uniform bits by inversion.
fn exponential(bits: u32) -> f32 {
    let uniform = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    -libm::log(uniform) as f32
}

/// Ten rounds of Philox on a 128-bit counter with a 64-bit key, low word first.
fn philox4x32(mut counter: [u32; 4], key: u64) -> [u32; 4] {
    let mul = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let (hi0, lo0) = mul(0xD251_1F53, counter[0]);
        let (hi1, lo1) = mul(0xCD9E_8D57, counter[2]);
        counter = [hi1 ^ counter[1] ^ k0, lo1, hi0 ^ counter[3] ^ k1, lo0];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with the generator.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822),
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
