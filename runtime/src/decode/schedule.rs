//! How many positions of a block each denoising step should reveal: one function per row of [`SCHEDULES`].
//!
//! A schedule is made once per block and knows nothing of the model's answers. What a reveal rule does with the number is
//! the rule's business. The arithmetic follows the references to the bit where rounding decides a count.

use super::reveal::Param;

/// The share of a block that one step is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Due {
    /// That many positions.
    Count(usize),
    /// That part of the positions that are still masked, rounded down.
    Part(f32),
}

impl Due {
    /// Number of positions out of `masked`.
    pub fn count(self, masked: usize) -> usize {
        match self {
            Due::Count(count) => count,
            // Dream multiplies and truncates in f32, which decides products that land on integers.
            Due::Part(part) => (masked as f32 * part) as usize,
        }
    }

    /// Part of `masked` positions.
    pub fn part(self, masked: usize) -> f32 {
        match self {
            Due::Count(count) => count as f32 / masked.max(1) as f32,
            Due::Part(part) => part,
        }
    }
}

/// A block for which a schedule is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Masked positions of the block.
    pub masked: usize,
    /// Positions of the block.
    pub block: usize,
    /// Steps asked for, at least 1.
    pub steps: usize,
    /// The schedule's parameters, in the order in which its row lists them.
    pub params: &'a [f32],
}

/// A row of [`SCHEDULES`].
#[derive(Debug)]
pub struct ScheduleCurve {
    /// Name in a policy.
    pub name: &'static str,
    /// One line for a reader of `--help`.
    pub doc: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// What each step is due. Steps beyond the end are due everything.
    pub due: fn(&Plan<'_>) -> Vec<Due>,
}

/// All schedules, alphabetical.
pub static SCHEDULES: &[ScheduleCurve] = &[
    ScheduleCurve {
        name: "even",
        doc: "the masked positions in equal parts, the first steps get the remainder (LLaDA)",
        params: &[],
        due: |plan| counts(even_schedule(plan.masked, plan.steps)),
    },
    ScheduleCurve {
        name: "even-block",
        doc: "the block length in equal parts, however much of it is known (SDAR)",
        params: &[],
        due: |plan| counts(even_schedule(plan.block, plan.steps)),
    },
    ScheduleCurve {
        name: "linear",
        doc: "the masked positions at the rate of a linear noise schedule, without steps that reveal nothing (BD3LM, MDLM)",
        params: &[],
        due: |plan| counts(linear_schedule(plan.masked, plan.steps)),
    },
    ScheduleCurve {
        name: "timesteps",
        doc: "what is masked at each step, times 1 - s/t for timesteps t > s falling from 1 to `eps` (Dream)",
        params: &[Param { name: "eps", default: 1e-3, doc: "the last timestep" }],
        due: |plan| timestep_parts(plan.steps, plan.params[0]),
    },
];

/// The row called `name`.
pub fn find(name: &str) -> Option<&'static ScheduleCurve> {
    SCHEDULES.iter().find(|row| row.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    SCHEDULES.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

fn counts(counts: Vec<usize>) -> Vec<Due> {
    counts.into_iter().map(Due::Count).collect()
}

/// Splits `tokens` over `steps` as evenly as integers allow; the first steps get the remainder. This is LLaDA's
/// `get_num_transfer_tokens`, which SDAR applies to the block length. Returns nothing for zero steps.
pub fn even_schedule(tokens: usize, steps: usize) -> Vec<usize> {
    (0..steps).map(|step| tokens / steps + usize::from(step < tokens % steps)).collect()
}

/// The transfer schedule of dllm's samplers for a linear noise schedule: step t of S reveals what is left times
/// 1 - (1 - s)/(1 - t'), rounded half to even, and steps that reveal nothing are dropped. The times are f32 and the
/// product is f64, which decides where the halves fall.
pub fn linear_schedule(tokens: usize, steps: usize) -> Vec<usize> {
    let (mut left, mut counts) = (tokens, Vec::new());
    for step in (1..=steps).rev() {
        if left == 0 {
            break;
        }
        let s = ((step - 1) as f64 / steps as f64) as f32;
        let t = (step as f64 / steps as f64) as f32;
        // The noise level is 1 - alpha, and alpha is 1 - t.
        let stays = (1.0 - (1.0 - s)) / (1.0 - (1.0 - t));
        let count = ((left as f64 * (1.0 - f64::from(stays))).round_ties_even() as usize).min(left);
        if count > 0 {
            counts.push(count);
            left -= count;
        }
    }
    counts
}

/// Dream's timesteps: `steps` + 1 of them from 1 to `eps`, equally spaced in f32, counted from both ends and rounded once,
/// as PyTorch's `linspace` does.
pub fn timesteps(steps: usize, eps: f32) -> Vec<f32> {
    let step = (eps - 1.0) / steps.max(1) as f32;
    let from_start = |index: usize| step.mul_add(index as f32, 1.0);
    let from_end = |index: usize| (-step).mul_add((steps - index) as f32, eps);
    (0..=steps).map(|index| if index < steps.div_ceil(2) { from_start(index) } else { from_end(index) }).collect()
}

fn timestep_parts(steps: usize, eps: f32) -> Vec<Due> {
    let times = timesteps(steps, eps);
    let parts = times.windows(2).map(|pair| 1.0 - pair[1] / pair[0]);
    parts.take(steps - 1).chain([1.0]).map(Due::Part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_alphabetical() {
        assert!(SCHEDULES.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn even_is_front_loaded() {
        assert_eq!(even_schedule(7, 3), [3, 2, 2]);
        assert_eq!(even_schedule(2, 4), [1, 1, 0, 0]);
        assert_eq!(even_schedule(3, 0), [0; 0]);
    }

    #[test]
    fn linear_rounds_as_f32_times_make_it() {
        assert_eq!(linear_schedule(4, 3), [1, 1, 2]);
        assert_eq!(linear_schedule(32, 5), [6, 6, 7, 6, 7]);
        assert_eq!(linear_schedule(3, 9), [1, 1, 1], "steps that reveal nothing are dropped");
    }

    #[test]
    fn the_last_timestep_is_due_everything() {
        let due = timestep_parts(4, 1e-3);
        assert_eq!(due.len(), 4);
        assert_eq!(due[3].count(5), 5);
        assert_eq!((due[0].count(8), due[0].count(1)), (1, 0));
        assert_eq!(timestep_parts(1, 1e-3), [Due::Part(1.0)]);
    }

    proptest! {
        #[test]
        fn every_schedule_reveals_everything_in_the_end(masked in 1usize..200, steps in 1usize..200) {
            for row in SCHEDULES {
                let params: Vec<f32> = row.params.iter().map(|param| param.default).collect();
                let due = (row.due)(&Plan { masked, block: masked, steps, params: &params });
                prop_assert!(due.len() <= steps);
                let left = due.iter().fold(masked, |left, due| left.saturating_sub(due.count(left)));
                prop_assert_eq!(left, 0, "{}", row.name);
            }
        }
    }
}
