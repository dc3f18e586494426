//! How sure the model is of a position: one function per row of [`CONFIDENCES`].
//!
//! Every measure grows with certainty, so a reveal rule can compare any two of the same measure. Measures read the
//! statistics of a distribution; which distribution (before or after filtering) is the policy's choice, not theirs. One
//! measure ignores the model and reads the position's random number.

use super::sample::Needs;
use crate::exec::RowStats;

/// A row of [`CONFIDENCES`].
#[derive(Debug)]
pub struct Confidence {
    /// Name in a policy.
    pub name: &'static str,
    /// One line for a reader of `--help`.
    pub doc: &'static str,
    /// Whether it needs the position's random number.
    pub random: bool,
    /// The statistics that it reads; the others need not be computed.
    pub reads: Needs,
    /// The measure of a row's statistics and the position's Exp(1) variate; larger is surer.
    pub of: fn(&RowStats, f32) -> f32,
}

/// All confidence measures, alphabetical.
pub static CONFIDENCES: &[Confidence] = &[
    Confidence {
        name: "margin",
        doc: "probability of the most likely token minus that of the second (Dream `topk_margin`)",
        random: false,
        reads: Needs { margin: true, ..Needs::NOTHING },
        of: |stats, _| stats.margin,
    },
    Confidence {
        name: "neg-entropy",
        doc: "negative entropy of the distribution in nats (Dream `entropy`)",
        random: false,
        reads: Needs { entropy: true, ..Needs::NOTHING },
        of: |stats, _| -stats.entropy,
    },
    Confidence {
        name: "probability",
        doc: "probability of the chosen token (LLaDA, SDAR, Fast_dLLM v2, Dream `maskgit_plus`)",
        random: false,
        reads: Needs { prob: true, ..Needs::NOTHING },
        of: |stats, _| stats.prob,
    },
    Confidence {
        name: "random",
        doc: "a uniform random number, whatever the model says (LLaDA `random` remasking)",
        random: true,
        reads: Needs::NOTHING,
        of: |_, exponential| libm::expf(-exponential),
    },
];

/// The row called `name`.
pub fn find(name: &str) -> Option<&'static Confidence> {
    CONFIDENCES.iter().find(|row| row.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    CONFIDENCES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_alphabetical_and_grow_with_certainty() {
        assert!(CONFIDENCES.windows(2).all(|pair| pair[0].name < pair[1].name));
        let sure = RowStats { best: 0, prob: 0.9, margin: 0.8, entropy: 0.3 };
        let unsure = RowStats { best: 0, prob: 0.4, margin: 0.1, entropy: 1.2 };
        for row in CONFIDENCES {
            assert!((row.of)(&sure, 0.5) > (row.of)(&unsure, 0.6), "{}", row.name);
        }
    }

    #[test]
    fn measures_read_what_they_say() {
        for row in CONFIDENCES {
            let of = |needed: bool, value: f32| if needed { value } else { f32::NAN };
            let Needs { prob, margin, entropy, row_entropy } = row.reads;
            let stats = RowStats { best: 0, prob: of(prob, 0.9), margin: of(margin, 0.8), entropy: of(entropy, 0.3) };
            assert!(!(row.of)(&stats, 0.5).is_nan() && !row_entropy, "{}", row.name);
        }
    }
}
