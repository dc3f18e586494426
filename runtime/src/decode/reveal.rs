//! Which positions of a block a denoising step reveals: one function per row of [`REVEAL_RULES`].
//!
//! A rule turns the candidates of a pass into [`Change`]s. A change is "this position now holds this token": revealing a
//! mask is one kind, replacing a revealed token or putting the mask back would be others, and the loop treats them
//! alike. Rules are pure; ties always go to the lowest position. They do not know which model or cache they serve.

use std::cmp::Ordering;

/// One position that the head was run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Where it stands in the sequence.
    pub position: usize,
    /// Token that the model proposes; never the mask.
    pub token: i32,
    /// How sure the model is, by the policy's measure; larger is surer.
    pub confidence: f32,
    /// Entropy in nats of the position's distribution at temperature 1, before any filter. Only rules whose row says so
    /// may read it; for others it need not be a number.
    pub entropy: f32,
    /// The position's Exp(1) variate; 1 unless the rule or the confidence measure is random.
    pub noise: f32,
}

/// What a rule sees of a denoising pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The masked positions of the block, ascending; at least one.
    pub candidates: &'a [Candidate],
    /// How many positions the schedule gives to this step; rows that carry get what earlier steps left, too.
    pub quota: usize,
    /// The same as a part of the masked positions, before rounding.
    pub part: f32,
    /// The rule's parameters, in the order in which its row lists them.
    pub params: &'a [f32],
}

/// One position gets a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it stands in the sequence.
    pub position: usize,
    /// The token that it holds from now on.
    pub token: i32,
}

/// A number that a rule takes.
#[derive(Debug)]
pub struct Param {
    /// Key in a policy.
    pub name: &'static str,
    /// Value when the policy does not give one.
    pub default: f32,
    /// What it means, in one line.
    pub doc: &'static str,
}

/// A row of [`REVEAL_RULES`].
#[derive(Debug)]
pub struct RevealRule {
    /// Name in a policy.
    pub name: &'static str,
    /// One line for a reader of `--help`.
    pub doc: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// Whether it needs the positions' random numbers.
    pub random: bool,
    /// Whether what a step leaves of its quota is added to that of the next.
    pub carries: bool,
    /// Whether it reads the entropy of candidates.
    pub entropy: bool,
    /// Whether it takes positions from left to right, whatever the model says of them.
    pub ordered: bool,
    /// Appends the changes of a pass.
    pub reveal: fn(&Pass<'_>, &mut Vec<Change>),
}

/// A rule that is neither random nor carries and reads no entropy, for the rows of the table.
const RULE: RevealRule = RevealRule {
    name: "",
    doc: "",
    params: &[],
    random: false,
    carries: false,
    entropy: false,
    ordered: false,
    reveal: static_quota,
};

/// All reveal rules, alphabetical.
pub static REVEAL_RULES: &[RevealRule] = &[
    RevealRule {
        name: "at-least",
        doc: "the most confident position, and every other whose confidence is at least `threshold`, whatever the \
              schedule gives (Fast-dLLM)",
        params: &[Param { name: "threshold", default: 0.9, doc: "confidence that must be reached" }],
        reveal: at_least,
        ..RULE
    },
    RevealRule {
        name: "capped-threshold",
        doc: "of the most confident positions, as many as the schedule gives, the first and those whose confidence is at \
              least `threshold`; the next step may make up for the others (Dream `confidence_threshold`)",
        params: &[Param { name: "threshold", default: 0.9, doc: "confidence that must be reached" }],
        carries: true,
        reveal: capped_threshold,
        ..RULE
    },
    RevealRule {
        name: "drawn",
        doc: "as many positions as the schedule gives, drawn with probabilities that grow with confidence (Dream \
              `alg_temp`)",
        params: &[Param { name: "temperature", default: 1.0, doc: "divides the confidences before their softmax" }],
        random: true,
        reveal: drawn,
        ..RULE
    },
    RevealRule {
        name: "entropy-bounded",
        doc: "the least uncertain positions while the sum of their entropies stays below `bound`, at least one \
              (SDAR `entropy_bounded`, read as intended)",
        params: &[Param { name: "bound", default: 0.35, doc: "largest sum of entropies in nats" }],
        entropy: true,
        reveal: entropy_bounded,
        ..RULE
    },
    RevealRule {
        name: "factor",
        doc: "the k most confident positions, for the first k whose confidence is below 1 - `factor` / (k + 2) \
              (Fast-dLLM)",
        params: &[Param { name: "factor", default: 1.0, doc: "how fast the demand grows with the number revealed" }],
        reveal: factor,
        ..RULE
    },
    RevealRule {
        name: "random",
        doc: "every position with the probability that the schedule gives to the step (Dream `origin`)",
        random: true,
        reveal: random,
        ..RULE
    },
    RevealRule {
        name: "sequential",
        doc: "the first masked position and those after it, as many as the schedule gives (SDAR `sequential`)",
        reveal: sequential,
        ordered: true,
        ..RULE
    },
    RevealRule {
        name: "static",
        doc: "the most confident positions, as many as the schedule gives (LLaDA, SDAR `low_confidence_static`)",
        reveal: static_quota,
        ..RULE
    },
    RevealRule {
        name: "threshold",
        doc: "every position whose confidence is strictly above `threshold`, but never fewer than the schedule gives \
              (SDAR `low_confidence_dynamic`, Fast_dLLM v2)",
        params: &[Param { name: "threshold", default: 0.9, doc: "confidence that must be exceeded" }],
        reveal: threshold,
        ..RULE
    },
];

/// The row called `name`.
pub fn find(name: &str) -> Option<&'static RevealRule> {
    REVEAL_RULES.iter().find(|row| row.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    REVEAL_RULES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

fn at_least(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let order = by_confidence(pass);
    let sure = order[1..].iter().filter(|&&at| pass.candidates[at].confidence >= pass.params[0]);
    changes.extend(order[..1].iter().chain(sure).map(|&at| accept(&pass.candidates[at])));
}

fn capped_threshold(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let first = changes.len();
    at_least(pass, changes);
    changes.truncate(first + pass.quota.max(1));
}

fn drawn(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    // The largest of p / q for p a softmax and q ~ Exp(1), as logarithms.
    let order = ranked(pass.candidates, |c| c.confidence / pass.params[0] - libm::logf(c.noise));
    changes.extend(order.iter().take(pass.quota).map(|&at| accept(&pass.candidates[at])));
}

fn entropy_bounded(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let order = ranked(pass.candidates, |c| -c.entropy);
    let mut sum = 0.0;
    let below = order
        .iter()
        .take_while(|&&at| {
            sum += pass.candidates[at].entropy;
            sum < pass.params[0]
        })
        .count();
    changes.extend(order[..below.max(1)].iter().map(|&at| accept(&pass.candidates[at])));
}

fn factor(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let order = by_confidence(pass);
    let last = order.len() - 1;
    let demand = |rank: usize| if rank == 0 { -1.0 } else { 1.0 - pass.params[0] / (rank + 2) as f32 };
    let below = order.iter().enumerate().position(|(rank, &at)| pass.candidates[at].confidence < demand(rank));
    // A refusal at the very last rank is forgiven, and the first rank is always taken.
    let count = match below.unwrap_or(last) {
        rank if rank == 0 || rank == last => rank + 1,
        rank => rank,
    };
    changes.extend(order[..count].iter().map(|&at| accept(&pass.candidates[at])));
}

fn random(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    // exp(-q) is uniform for q ~ Exp(1).
    changes.extend(pass.candidates.iter().filter(|c| libm::expf(-c.noise) < pass.part).map(accept));
}

fn sequential(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let first = pass.candidates[0].position;
    changes.extend(pass.candidates.iter().filter(|c| c.position - first < pass.quota).map(accept));
}

fn static_quota(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    changes.extend(by_confidence(pass).iter().take(pass.quota).map(|&at| accept(&pass.candidates[at])));
}

fn threshold(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let sure = || pass.candidates.iter().filter(|c| c.confidence > pass.params[0]);
    if sure().count() >= pass.quota {
        changes.extend(sure().map(accept));
    } else {
        static_quota(pass, changes);
    }
}

fn accept(candidate: &Candidate) -> Change {
    Change { position: candidate.position, token: candidate.token }
}

fn by_confidence(pass: &Pass<'_>) -> Vec<usize> {
    ranked(pass.candidates, |c| c.confidence)
}

/// Indices of `candidates` by falling key; a stable sort, so ties go to the lowest position, and a NaN comes last.
fn ranked(candidates: &[Candidate], key: impl Fn(&Candidate) -> f32) -> Vec<usize> {
    let keys: Vec<f32> = candidates.iter().map(key).collect();
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|&a, &b| match (keys[a].is_nan(), keys[b].is_nan()) {
        (false, false) => keys[b].partial_cmp(&keys[a]).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => a_nan.cmp(&b_nan),
    });
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(rows: &[(usize, f32, f32)]) -> Vec<Candidate> {
        rows.iter()
            .map(|&(position, confidence, entropy)| Candidate {
                position,
                token: position as i32 + 100,
                confidence,
                entropy,
                noise: 1.0,
            })
            .collect()
    }

    fn offsets(rule: &str, rows: &[(usize, f32, f32)], quota: usize, params: &[f32]) -> Vec<usize> {
        let candidates = candidates(rows);
        let mut changes = Vec::new();
        let part = quota as f32 / candidates.len() as f32;
        (find(rule).unwrap().reveal)(&Pass { candidates: &candidates, quota, part, params }, &mut changes);
        assert!(changes.iter().all(|c| c.token == c.position as i32 + 100));
        let mut offsets: Vec<usize> = changes.iter().map(|c| c.position).collect();
        offsets.sort_unstable();
        offsets
    }

    #[test]
    fn rows_are_alphabetical() {
        assert!(REVEAL_RULES.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn static_takes_the_quota_and_breaks_ties_low() {
        let rows = [(0, 0.5, 0.0), (1, 0.9, 0.0), (2, 0.9, 0.0), (3, 0.9, 0.0)];
        assert_eq!(offsets("static", &rows, 2, &[]), [1, 2]);
        assert_eq!(offsets("static", &rows, 9, &[]), [0, 1, 2, 3]);
        assert_eq!(offsets("static", &rows, 0, &[]), [0; 0]);
    }

    #[test]
    fn a_nan_is_never_preferred() {
        let rows = [(0, f32::NAN, 0.0), (1, 0.1, 0.0), (2, f32::NAN, 0.0), (3, f32::NEG_INFINITY, 0.0)];
        assert_eq!(offsets("static", &rows, 2, &[]), [1, 3]);
        assert_eq!(offsets("threshold", &rows, 1, &[0.0]), [1]);
    }

    #[test]
    fn threshold_is_strict_and_falls_back_to_the_quota() {
        let rows = [(0, 0.9, 0.0), (1, 0.91, 0.0), (3, 0.2, 0.0)];
        assert_eq!(offsets("threshold", &rows, 1, &[0.9]), [1]);
        assert_eq!(offsets("threshold", &rows, 2, &[0.9]), [0, 1], "one above, two due: the two best");
        assert_eq!(offsets("threshold", &rows, 1, &[0.1]), [0, 1, 3]);
        assert_eq!(offsets("threshold", &rows, 0, &[1.0]), [0; 0]);
    }

    #[test]
    fn sequential_counts_positions_not_masks() {
        let rows = [(1, 0.0, 0.0), (2, 0.0, 0.0), (4, 0.0, 0.0), (5, 0.0, 0.0)];
        assert_eq!(offsets("sequential", &rows, 1, &[]), [1]);
        assert_eq!(offsets("sequential", &rows, 4, &[]), [1, 2, 4]);
    }

    #[test]
    fn rules_read_entropies_only_if_they_say_so() {
        for row in REVEAL_RULES {
            let params: Vec<f32> = row.params.iter().map(|param| param.default).collect();
            let of = |entropies: [f32; 3]| {
                let rows = [0.95, 0.3, 0.92].into_iter().zip(entropies).enumerate();
                let rows: Vec<_> =
                    rows.map(|(position, (confidence, entropy))| (position, confidence, entropy)).collect();
                offsets(row.name, &rows, 1, &params)
            };
            assert_eq!(of([0.2, 0.3, 0.1]) != of([0.9, 0.1, 0.1]), row.entropy, "{}", row.name);
            assert!(row.entropy || of([f32::NAN; 3]) == of([0.2, 0.3, 0.1]), "{}", row.name);
        }
    }

    #[test]
    fn entropy_bounded_sums_from_the_surest_and_takes_at_least_one() {
        let rows = [(0, 0.0, 0.30), (1, 0.0, 0.10), (2, 0.0, 0.20)];
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[0.35]), [1, 2]);
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[0.05]), [1]);
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[9.0]), [0, 1, 2]);
        assert_eq!(offsets("entropy-bounded", &[(0, 0.0, 0.25), (1, 0.0, 0.25)], 1, &[0.5]), [0], "strictly below");
    }

    #[test]
    fn at_least_is_inclusive_and_takes_the_best_whatever_it_is() {
        let rows = [(0, 0.9, 0.0), (1, 0.95, 0.0), (3, 0.2, 0.0)];
        assert_eq!(offsets("at-least", &rows, 1, &[0.9]), [0, 1]);
        assert_eq!(offsets("at-least", &rows, 3, &[0.96]), [1]);
    }

    #[test]
    fn capped_threshold_refuses_within_the_quota_only() {
        let rows = [(0, 0.9, 0.0), (1, 0.95, 0.0), (3, 0.2, 0.0)];
        assert_eq!(offsets("capped-threshold", &rows, 1, &[0.1]), [1]);
        assert_eq!(offsets("capped-threshold", &rows, 2, &[0.1]), [0, 1]);
        assert_eq!(offsets("capped-threshold", &rows, 3, &[0.5]), [0, 1]);
        assert_eq!(offsets("capped-threshold", &rows, 3, &[2.0]), [1]);
    }

    #[test]
    fn factor_asks_for_more_with_every_rank() {
        // Demands with factor 1: anything, 2/3, 3/4, 4/5.
        let rows = |confidences: [f32; 4]| confidences.map(|c| (0, c, 0.0)).into_iter().enumerate();
        let count = |confidences| {
            let rows: Vec<_> = rows(confidences).map(|(at, (_, c, e))| (at, c, e)).collect();
            offsets("factor", &rows, 1, &[1.0]).len()
        };
        assert_eq!(count([0.1, 0.0, 0.0, 0.0]), 1);
        assert_eq!(count([0.9, 0.6, 0.0, 0.0]), 1);
        assert_eq!(count([0.9, 0.7, 0.7, 0.0]), 2);
        assert_eq!(count([0.9, 0.9, 0.9, 0.1]), 4, "only the last refuses");
        assert_eq!(count([0.9, 0.9, 0.9, 0.9]), 4);
        assert_eq!(offsets("factor", &[(5, 0.0, 0.0)], 1, &[1.0]), [5]);
    }

    #[test]
    fn random_rules_follow_their_numbers() {
        let noisy = |noise: &[f32]| {
            let at = |(position, &noise)| Candidate { position, token: 1, confidence: 0.5, entropy: 0.0, noise };
            noise.iter().enumerate().map(at).collect::<Vec<_>>()
        };
        let run = |rule: &str, quota, part, params: &[f32], candidates: &[Candidate]| {
            let mut changes = Vec::new();
            (find(rule).unwrap().reveal)(&Pass { candidates, quota, part, params }, &mut changes);
            changes.iter().map(|change| change.position).collect::<Vec<_>>()
        };
        // exp(-q): 0.90, 0.37, 0.05.
        let candidates = noisy(&[0.1, 1.0, 3.0]);
        assert_eq!(run("random", 0, 0.5, &[], &candidates), [1, 2]);
        assert_eq!(run("random", 0, 1.0, &[], &candidates), [0, 1, 2]);
        assert_eq!(run("drawn", 2, 0.0, &[1.0], &candidates), [0, 1]);
    }

    proptest! {
        #[test]
        fn every_rule_changes_only_candidates_once_and_honors_its_quota(
            rows in proptest::collection::vec((0.0f32..1.0, 0.0f32..3.0), 1..12),
            quota in 1usize..12,
            param in 0.0f32..1.5,
        ) {
            let rows: Vec<_> = rows.iter().enumerate().map(|(at, &(c, e))| (at * 2, c, e)).collect();
            for rule in REVEAL_RULES {
                let params = vec![param; rule.params.len()];
                let picked = offsets(rule.name, &rows, quota, &params);
                prop_assert!(picked.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(picked.iter().all(|&at| rows.iter().any(|row| row.0 == at)));
                prop_assert!(rule.random || !picked.is_empty());
                if rule.name == "static" {
                    prop_assert_eq!(picked.len(), quota.min(rows.len()));
                }
                if rule.name == "threshold" {
                    prop_assert!(picked.len() >= quota.min(rows.len()));
                }
            }
        }
    }
}
