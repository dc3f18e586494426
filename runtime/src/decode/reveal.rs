//! Which positions of a block a denoising step reveals: one function per row of [`REVEAL_RULES`].
//!
//! A rule turns the candidates of a pass into [`Change`]s. A change is "this position now holds this token": revealing a
//! mask is one kind, replacing a revealed token or putting the mask back would be others, and the loop treats them
//! alike. Rules are pure; ties always go to the lowest position. They do not know which model or cache they serve.

use std::cmp::Ordering;

/// One position that the head was run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Offset in the block.
    pub offset: usize,
    /// Token that the model proposes; never the mask.
    pub token: i32,
    /// How sure the model is, by the policy's measure; larger is surer.
    pub confidence: f32,
    /// Entropy in nats of the position's distribution at temperature 1, before any filter.
    pub entropy: f32,
}

/// What a rule sees of a denoising pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The masked positions of the block, ascending; at least one.
    pub candidates: &'a [Candidate],
    /// How many positions the schedule gives to this step.
    pub quota: usize,
    /// The rule's parameters, in the order in which its row lists them.
    pub params: &'a [f32],
}

/// One position gets a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Offset in the block.
    pub offset: usize,
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
    /// Appends the changes of a pass.
    pub reveal: fn(&Pass<'_>, &mut Vec<Change>),
}

/// All reveal rules, alphabetical.
pub static REVEAL_RULES: &[RevealRule] = &[
    RevealRule {
        name: "entropy-bounded",
        doc: "the least uncertain positions while the sum of their entropies stays below `bound`, at least one \
              (SDAR `entropy_bounded`, read as intended)",
        params: &[Param { name: "bound", default: 0.35, doc: "largest sum of entropies in nats" }],
        reveal: entropy_bounded,
    },
    RevealRule {
        name: "sequential",
        doc: "the first masked position and those after it, as many as the schedule gives (SDAR `sequential`)",
        params: &[],
        reveal: sequential,
    },
    RevealRule {
        name: "static",
        doc: "the most confident positions, as many as the schedule gives (LLaDA, SDAR `low_confidence_static`)",
        params: &[],
        reveal: static_quota,
    },
    RevealRule {
        name: "threshold",
        doc: "every position whose confidence is strictly above `threshold`, but never fewer than the schedule gives \
              (SDAR `low_confidence_dynamic`)",
        params: &[Param { name: "threshold", default: 0.9, doc: "confidence that must be exceeded" }],
        reveal: threshold,
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

/// Splits `tokens` over `steps` as evenly as integers allow; the first steps get the remainder. This is LLaDA's
/// `get_num_transfer_tokens`, which SDAR applies to the block length. Returns nothing for zero steps.
pub fn even_schedule(tokens: usize, steps: usize) -> Vec<usize> {
    (0..steps).map(|step| tokens / steps + usize::from(step < tokens % steps)).collect()
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

fn sequential(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let first = pass.candidates[0].offset;
    changes.extend(pass.candidates.iter().filter(|c| c.offset - first < pass.quota).map(accept));
}

fn static_quota(pass: &Pass<'_>, changes: &mut Vec<Change>) {
    let order = ranked(pass.candidates, |c| c.confidence);
    changes.extend(order.iter().take(pass.quota).map(|&at| accept(&pass.candidates[at])));
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
    Change { offset: candidate.offset, token: candidate.token }
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
            .map(|&(offset, confidence, entropy)| Candidate { offset, token: offset as i32 + 100, confidence, entropy })
            .collect()
    }

    fn offsets(rule: &str, rows: &[(usize, f32, f32)], quota: usize, params: &[f32]) -> Vec<usize> {
        let candidates = candidates(rows);
        let mut changes = Vec::new();
        (find(rule).unwrap().reveal)(&Pass { candidates: &candidates, quota, params }, &mut changes);
        assert!(changes.iter().all(|c| c.token == c.offset as i32 + 100));
        let mut offsets: Vec<usize> = changes.iter().map(|c| c.offset).collect();
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
    fn entropy_bounded_sums_from_the_surest_and_takes_at_least_one() {
        let rows = [(0, 0.0, 0.30), (1, 0.0, 0.10), (2, 0.0, 0.20)];
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[0.35]), [1, 2]);
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[0.05]), [1]);
        assert_eq!(offsets("entropy-bounded", &rows, 1, &[9.0]), [0, 1, 2]);
        assert_eq!(offsets("entropy-bounded", &[(0, 0.0, 0.25), (1, 0.0, 0.25)], 1, &[0.5]), [0], "strictly below");
    }

    #[test]
    fn schedule_is_even_and_front_loaded() {
        assert_eq!(even_schedule(7, 3), [3, 2, 2]);
        assert_eq!(even_schedule(2, 4), [1, 1, 0, 0]);
        assert_eq!(even_schedule(3, 0), [0; 0]);
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
                prop_assert!(!picked.is_empty());
                if rule.name == "static" {
                    prop_assert_eq!(picked.len(), quota.min(rows.len()));
                }
                if rule.name == "threshold" {
                    prop_assert!(picked.len() >= quota.min(rows.len()));
                }
            }
        }

        #[test]
        fn a_schedule_adds_up(tokens in 0usize..200, steps in 1usize..200) {
            let schedule = even_schedule(tokens, steps);
            prop_assert_eq!(schedule.iter().sum::<usize>(), tokens);
            prop_assert!(schedule.windows(2).all(|pair| pair[0] >= pair[1] && pair[0] - pair[1] <= 1));
        }
    }
}
