//! Times the nodes of an entry: runs that are watched take turns with runs that are not.
//!
//! Invariant: what is reported as the entry's time comes from runs that nobody watched, and how far the nodes' times add up
//! to it is reported beside.

use std::time::{Duration, Instant};

use dlx_runtime::cpu::{CpuExecutor, Observe};
use dlx_runtime::exec::{ExecError, Executor, RowStats};

use super::super::bench::measure::{Feed, Timing};

/// Fewest runs of either kind.
const RUNS: usize = 3;

/// How long an entry and its nodes take.
pub(super) struct Profile {
    /// Runs that were not watched.
    pub(super) plain: Timing,
    /// Each node, by its place in the graph; of a head that runs in parts, over all parts.
    pub(super) nodes: Vec<Timing>,
}

impl Profile {
    /// What the nodes' medians add up to.
    pub(super) fn sum(&self) -> Duration {
        self.nodes.iter().map(|t| t.median).sum()
    }

    /// What the nodes' fastest runs add up to: the entry with nobody else on the machine, if each of its nodes met a moment
    /// without.
    pub(super) fn undisturbed(&self) -> Duration {
        self.nodes.iter().map(|t| t.fastest).sum()
    }
}

/// Fills the cache rows from `filled` to `depth`.
pub(super) fn fill(executor: &mut CpuExecutor, filled: &mut usize, depth: usize) -> Result<(), ExecError> {
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    let vocab = executor.vocab();
    while *filled < depth {
        let rows = largest.min(depth - *filled);
        Feed::new(vocab, *filled, rows).run(executor, &mut |_| {})?;
        *filled += rows;
    }
    Ok(())
}

/// Times a step of `rows` rows behind `depth` cached ones, and the head on all of them.
pub(super) fn pass(
    executor: &mut CpuExecutor,
    rows: usize,
    depth: usize,
    seconds: f64,
) -> Result<[Profile; 2], ExecError> {
    let feed = Feed::new(executor.vocab(), depth, rows);
    let step = profile(seconds, |observe| feed.run(executor, observe))?;
    let all: Vec<usize> = (0..rows).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let head = profile(seconds, |observe| executor.head_observed(&all, &mut stats, observe))?;
    Ok([step, head])
}

fn profile(seconds: f64, mut run: impl FnMut(Observe<'_>) -> Result<(), ExecError>) -> Result<Profile, ExecError> {
    // Parts of an entry are the same nodes again, each of which begins with the same op.
    let mut names = Vec::new();
    run(&mut |seen| names.push((seen.op.name(), seen.name.to_owned())))?;
    let nodes = names.iter().skip(1).position(|n| Some(n) == names.first()).map_or(names.len(), |at| at + 1);
    let (begin, mut plain, mut watched) = (Instant::now(), Vec::new(), vec![Vec::new(); nodes]);
    while plain.len() < RUNS || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        run(&mut |_| {})?;
        plain.push(start.elapsed());
        let mut times = vec![Duration::ZERO; nodes];
        let (mut last, mut next) = (Instant::now(), 0);
        run(&mut |_| {
            let now = Instant::now();
            times[next % nodes] += now - last;
            (last, next) = (now, next + 1);
        })?;
        watched.iter_mut().zip(times).for_each(|(node, time)| node.push(time));
    }
    Ok(Profile { plain: Timing::of(plain), nodes: watched.into_iter().map(Timing::of).collect() })
}
