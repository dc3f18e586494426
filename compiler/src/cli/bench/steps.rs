//! The step table: what passes cost when several requests want the same one, and the bound on serving that follows from it.
//!
//! A pass is known by its rows and by how many of them the head looks at. A step of `n` such passes is timed as `n` spans in
//! slots of their own, each behind the rows of a prompt, since every span reads its own cache. The bound: requests that all
//! want the same passes cannot take less each than their passes do in the cheapest step that so many of them can fill.
//! Invariant: it is measured on the same executor, with the same number of threads, in the same run as what it is held
//! against.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dlx_runtime::exec::{CacheRow, ExecError, Executor, RowStats, Span};

use super::load::Passes;

/// Runs that a median is of.
const RUNS: usize = 3;

/// Sizes that are tried after the cheapest, before larger ones are taken to be no cheaper.
const FURTHER: usize = 2;

/// Seconds of steps.
#[derive(Default)]
pub(super) struct Steps {
    /// By the rows and looked-at rows of a pass: passes in a step, and its seconds.
    pub(super) of: BTreeMap<(usize, usize), Vec<(usize, f64)>>,
}

impl Steps {
    /// Times steps of these passes for up to `clients` requests behind `depth` rows.
    ///
    /// # Errors
    /// When the model fails.
    pub(super) fn measure(
        executor: &mut dyn Executor,
        passes: &BTreeSet<(usize, usize)>,
        depth: usize,
        clients: usize,
    ) -> Result<Self, ExecError> {
        let largest = executor.step_buckets().last().copied().unwrap_or(0);
        let smallest = passes.iter().map(|(rows, _)| *rows).min().unwrap_or(1).max(1);
        executor.reserve(clients.min(largest / smallest).max(1))?;
        let depth = fill(executor, depth)?;
        let mut steps = Steps::default();
        for &(rows, looked) in passes {
            let (mut costs, mut cheapest) = (Vec::<(usize, f64)>::new(), 0);
            let sizes = std::iter::successors(Some(1), |n| (*n < clients).then(|| (n * 2).min(clients)));
            for count in sizes.take_while(|n| *n == 1 || n * rows <= largest) {
                let seconds = step(executor, count, rows, looked, depth)?.as_secs_f64();
                costs.push((count, seconds));
                let each = |at: usize| costs[at].1 / costs[at].0 as f64;
                let last = costs.len() - 1;
                if each(last) < each(cheapest) {
                    cheapest = last;
                } else if last - cheapest >= FURTHER {
                    break;
                }
            }
            steps.of.insert((rows, looked), costs);
        }
        Ok(steps)
    }

    /// Seconds that these passes take at least, when up to `clients` of the same kind share a step.
    pub(super) fn at_best(&self, passes: &Passes, clients: usize) -> f64 {
        let best = |pass: &(usize, usize)| {
            let costs = self.of.get(pass).into_iter().flatten().filter(|(n, _)| *n <= clients);
            costs.map(|(n, seconds)| seconds / *n as f64).fold(f64::INFINITY, f64::min)
        };
        passes.iter().map(|(pass, count)| best(pass) * *count as f64).sum()
    }
}

/// Fills `depth` rows of all slots, where rows stand before a pass, and says how many there are.
fn fill(executor: &mut dyn Executor, depth: usize) -> Result<usize, ExecError> {
    // With full attention a pass feeds the whole sequence, and finds nothing before it.
    let Some(unit) = executor.copy_unit() else { return Ok(0) };
    let depth = depth / unit * unit;
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    let chunk = (largest / unit * unit).max(unit);
    for at in (0..depth).step_by(chunk) {
        let (ids, pos) = tokens(executor.vocab(), at, chunk.min(depth - at));
        executor.step(&[Span::new(&ids, &pos, at)])?;
    }
    for slot in 1..executor.slots() {
        executor.copy_rows(CacheRow { slot: 0, row: 0 }, CacheRow { slot, row: 0 }, depth)?;
    }
    Ok(depth)
}

fn tokens(vocab: usize, at: usize, rows: usize) -> (Vec<i32>, Vec<i32>) {
    let id = |i: usize| i32::try_from(i.wrapping_mul(7919).wrapping_add(17) % vocab).unwrap_or(0);
    ((at..at + rows).map(id).collect(), (at..at + rows).map(|p| i32::try_from(p).unwrap_or(i32::MAX)).collect())
}

/// Median time of a step of `count` passes over `rows` rows each, and of the head of `looked` rows of each.
fn step(
    executor: &mut dyn Executor,
    count: usize,
    rows: usize,
    looked: usize,
    depth: usize,
) -> Result<Duration, ExecError> {
    let depth = depth.min(executor.max_seq().saturating_sub(rows));
    let (ids, pos) = tokens(executor.vocab(), depth, rows);
    let spans: Vec<Span<'_>> = (0..count).map(|slot| Span { slot, ..Span::new(&ids, &pos, depth) }).collect();
    let heads: Vec<usize> = (0..count).flat_map(|span| (0..looked).map(move |row| span * rows + row)).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; heads.len()];
    let mut times = Vec::with_capacity(RUNS);
    for run in 0..=RUNS {
        let begin = Instant::now();
        executor.step(&spans)?;
        if !heads.is_empty() {
            executor.head(&heads, &mut stats)?;
        }
        // The first run touches memory.
        times.extend((run > 0).then(|| begin.elapsed()));
    }
    times.sort_unstable();
    Ok(times[RUNS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_that_of_the_cheapest_step_that_clients_fill() {
        // Milliseconds of a 1.7 B model on two cores; of four requests with four rows each: 1.73 times as fast as alone.
        let table = |rows: usize, costs: &[(usize, f64)]| ((rows, rows), costs.to_vec());
        let steps = Steps {
            of: BTreeMap::from([
                table(1, &[(1, 31.0), (2, 34.0), (4, 38.0), (8, 50.4), (16, 88.0), (32, 169.6), (64, 345.6)]),
                table(4, &[(1, 38.0), (2, 50.4), (4, 88.0), (8, 169.6), (16, 345.6)]),
                table(32, &[(1, 169.6), (2, 345.6)]),
            ]),
        };
        let gain = |rows: usize, clients: usize| {
            let passes = Passes::from([((rows, rows), 7)]);
            steps.at_best(&passes, 1) / steps.at_best(&passes, clients)
        };
        let near = |gain: f64, wanted: f64| assert!((gain - wanted).abs() < 0.05, "{gain} {wanted}");
        for (rows, wanted) in [(1, [3.3, 5.6, 5.8]), (4, [1.73, 1.79, 1.79]), (32, [1.0; 3])] {
            near(gain(rows, 4), wanted[0]);
            near(gain(rows, 16), wanted[1]);
            near(gain(rows, 64), wanted[2]);
        }
        let both = Passes::from([((1, 1), 2), ((32, 32), 1)]);
        assert!((steps.at_best(&both, 2) - (34.0 + 169.6)).abs() < 1e-9);
    }
}
