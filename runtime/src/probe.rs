//! What a pass costs on an executor, measured.
//!
//! Invariant: what the first slot of the caches held is lost, and nothing else is changed. The figure is of this machine at
//! this moment: nothing that is generated may depend on it.

use std::time::{Duration, Instant};

use crate::exec::{ExecError, Executor, RowStats, Span};

/// A number of rows is as good as the best one if a row costs no more than so many times as much.
const NEAR: f64 = 1.05;

/// Runs of a probe of the knee; the median counts.
const KNEE_RUNS: usize = 2;

/// Time of a pass over `rows` rows at the beginning of the caches, with the head of all: the median of so many `runs`.
///
/// # Errors
/// When the model fails.
pub(crate) fn pass(executor: &mut dyn Executor, rows: usize, runs: usize) -> Result<Duration, ExecError> {
    let pos: Vec<i32> = (0..).take(rows).collect();
    let (ids, all) = (vec![0; rows], (0..rows).collect::<Vec<_>>());
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let mut times = Vec::with_capacity(runs);
    // The first run wakes threads and touches memory.
    for run in 0..=runs {
        let begin = Instant::now();
        executor.step(&[Span::new(&ids, &pos, 0)])?;
        executor.head(&all, &mut stats)?;
        times.extend((run > 0).then(|| begin.elapsed()));
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// The smallest compiled step whose rows are about as cheap as those of any larger one.
///
/// # Errors
/// When the model fails.
pub(crate) fn knee(executor: &mut dyn Executor) -> Result<usize, ExecError> {
    let longest = executor.max_seq();
    let sizes: Vec<usize> = executor.step_buckets().iter().copied().filter(|rows| *rows <= longest).collect();
    knee_of(&sizes, |rows| Ok(pass(executor, rows, KNEE_RUNS)?.as_secs_f64()))
}

/// The knee of these sizes, ascending, by the seconds that a pass of each takes. They are tried from the smallest on, until a
/// row is no cheaper.
fn knee_of(sizes: &[usize], mut seconds: impl FnMut(usize) -> Result<f64, ExecError>) -> Result<usize, ExecError> {
    let mut best: Option<(usize, f64)> = None;
    for &rows in sizes {
        let row = seconds(rows)? / rows as f64;
        if best.is_some_and(|(_, cost)| cost <= row * NEAR) {
            break;
        }
        best = Some((rows, row));
    }
    Ok(best.map_or(1, |(rows, _)| rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::mock::{Call, Mock};

    /// The knee, and the sizes that were tried.
    fn tried(sizes: &[usize], seconds: fn(usize) -> f64) -> (usize, Vec<usize>) {
        let mut tried = Vec::new();
        let knee = knee_of(sizes, |rows| {
            tried.push(rows);
            Ok(seconds(rows))
        });
        (knee.unwrap(), tried)
    }

    #[test]
    fn the_knee_is_where_rows_get_no_cheaper() {
        // 30 ms to read the weights, or what the rows take.
        let cpu = |rows: usize| (rows as f64 * 5.4).max(30.0);
        assert_eq!(tried(&[1, 4, 16, 32, 64], cpu), (16, vec![1, 4, 16, 32]));
        assert_eq!(tried(&[4, 16, 64], |rows| rows as f64 * 5.4 + 4.0), (16, vec![4, 16, 64]), "nearly as cheap");
        assert_eq!(tried(&[4, 16, 64], |_| 2.0).0, 64, "rows that cost nothing");
        assert_eq!(tried(&[4, 16, 64], |rows| rows as f64), (4, vec![4, 16]));
        assert_eq!(tried(&[], cpu).0, 1);
    }

    #[test]
    fn a_probe_runs_passes_that_the_caches_hold() {
        let mut mock = Mock::new(64, 32, &[4, 128]);
        assert_eq!(knee(&mut mock).unwrap(), 4, "128 rows are those of several sequences");
        let step = Call::Step { slot: 0, at: 0, len: 4, visible: 4 };
        assert_eq!(mock.calls.iter().filter(|call| **call == step).count(), 1 + KNEE_RUNS);
        mock.fail_after(0);
        assert!(knee(&mut mock).is_err());
    }
}
