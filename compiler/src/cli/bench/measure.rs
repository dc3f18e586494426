//! Timing the steps and heads of a loaded artifact.
//!
//! A step is timed on cached rows that really hold something; the head is timed on all rows of the step, which is what a
//! first denoising step of a block asks for. Nodes are timed in runs of their own, so that watching does not slow what is
//! reported as the step.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dlx_ir::{Cost, Op, SpanRows, attended};
use dlx_runtime::cpu::{CpuExecutor, Observe, Seen, read_once};
use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy};
use dlx_runtime::decode::sample::{Choice, Needs, Sampler};
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};

use super::Args;

/// One size on one number of threads.
pub(super) struct Line {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) threads: usize,
    pub(super) step: Timing,
    pub(super) head: Timing,
    /// The head with a token drawn for each row, in the place of `head`.
    pub(super) drawn: Option<Timing>,
    /// Gigabytes per second at which the same threads read the weights, in between the steps: on a shared machine it drifts
    /// within seconds.
    pub(super) read_gbs: f64,
    /// Work of a step and the head together.
    pub(super) work: Work,
    pub(super) split: Option<Split>,
}

impl Line {
    /// Median time of a step and the head.
    pub(super) fn both(&self) -> Duration {
        self.step.median + self.head.median
    }

    /// What drawing tokens takes more than the head's statistics, as a part of a step and the head.
    pub(super) fn drawing(&self) -> Option<f64> {
        let more = self.drawn.as_ref()?.median.as_secs_f64() - self.head.median.as_secs_f64();
        Some(more / self.both().as_secs_f64())
    }
}

/// How long something takes: the middle of several runs and how far they lie apart.
pub(in crate::cli) struct Timing {
    pub(in crate::cli) fastest: Duration,
    pub(super) p10: Duration,
    pub(in crate::cli) median: Duration,
    pub(super) p90: Duration,
}

impl Timing {
    /// `times` must not be empty.
    pub(in crate::cli) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[((times.len() - 1) * percent + 50) / 100];
        Timing { fastest: times[0], p10: at(10), median: times[times.len() / 2], p90: at(90) }
    }
}

/// What an entry has to do at least.
#[derive(Clone, Copy, Default)]
pub(super) struct Work {
    pub(super) weight_bytes: u64,
    /// Multiplications.
    pub(super) products: u64,
}

impl Work {
    /// Billions of multiplications and additions, and gigabytes of weights, per second.
    pub(super) fn rates(self, time: Duration) -> (f64, f64) {
        let seconds = time.as_secs_f64().max(1e-12);
        (2.0 * self.products as f64 / seconds / 1e9, self.weight_bytes as f64 / seconds / 1e9)
    }

    fn add(&mut self, other: Work) {
        self.weight_bytes += other.weight_bytes;
        self.products += other.products;
    }
}

/// Where the time of a step goes, averaged over the runs that took neither longest nor shortest.
pub(super) struct Split {
    /// The whole step.
    pub(super) step: Duration,
    /// Slowest first.
    pub(super) ops: Vec<OpTime>,
}

impl Split {
    /// Time in nodes of a kind.
    pub(super) fn time(&self, kind: OpKind) -> Duration {
        self.ops.iter().filter(|o| o.kind == kind).map(|o| o.time).sum()
    }

    /// Time between nodes, and before the first and behind the last one.
    pub(super) fn gaps(&self) -> Duration {
        self.step.saturating_sub(self.ops.iter().map(|o| o.time).sum())
    }
}

/// Time of the nodes of a step that have the same role in every layer.
pub(super) struct OpTime {
    pub(super) name: String,
    pub(super) kind: OpKind,
    pub(super) nodes: usize,
    pub(super) time: Duration,
    pub(super) work: Work,
}

/// What limits a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OpKind {
    /// Multiplies by weights.
    Matrix,
    /// Multiplies queries by the cache.
    Attention,
    Other,
}

/// Measures a step of `rows` rows behind `depth` cached ones, and the head on all of them.
pub(super) fn line(
    executor: &mut CpuExecutor,
    weights: &[u8],
    rows: usize,
    depth: usize,
    args: &Args,
) -> Result<Line, ExecError> {
    let vocab = executor.vocab();
    let largest = executor.step_buckets().last().copied().unwrap_or(1);
    for at in (0..depth).step_by(largest) {
        Feed::new(vocab, at, largest.min(depth - at)).run(executor, &mut |_| {})?;
    }
    let feed = Feed::new(vocab, depth, rows);
    let mut reads = Vec::new();
    let step = time(args.seconds, || {
        reads.push(read_once(executor.pool(), weights));
        let start = Instant::now();
        feed.run(executor, &mut |_| {})?;
        Ok(start.elapsed())
    })?;
    let read_gbs = weights.len() as f64 / Timing::of(reads).median.as_secs_f64() / 1e9;
    let mut work = Work::default();
    feed.run(executor, &mut |seen| work.add(matrix_work(seen.cost, rows)))?;
    let split = if args.ops { Some(split(executor, &feed, args.seconds)?) } else { None };
    let all: Vec<usize> = (0..rows).collect();
    let mut stats = vec![RowStats { best: 0, prob: 0.0, margin: 0.0, entropy: 0.0 }; rows];
    let head = time(args.seconds, || {
        let start = Instant::now();
        executor.head(&all, &mut stats)?;
        Ok(start.elapsed())
    })?;
    let drawn = args.policy().map(|policy| drawn(executor, &all, &policy, args.seconds)).transpose()?;
    let mut logits = vec![0.0; vocab];
    executor.logits_observed(&[0], &mut logits, &mut |seen| {
        work.add(matrix_work(seen.cost, rows));
    })?;
    Ok(Line { rows, depth, threads: executor.threads(), step, head, drawn, read_gbs, work, split })
}

impl Args {
    /// How tokens are drawn, if they are.
    fn policy(&self) -> Option<DecodePolicy> {
        let temperature = self.temperature?;
        let confidence_stage = ConfidenceStage::AfterFilters;
        let (top_k, top_p) = (self.top_k, self.top_p);
        // Without a mask, which would only be one token less.
        Some(DecodePolicy { temperature, top_k, top_p, confidence_stage, ..DecodePolicy::greedy(-1, 1) })
    }
}

/// Times drawing a token and its probability for each of these rows of the last step.
fn drawn(executor: &mut CpuExecutor, rows: &[usize], policy: &DecodePolicy, seconds: f64) -> Result<Timing, ExecError> {
    let samplers: Vec<Mutex<Sampler>> = (0..executor.readers()).map(|_| Mutex::default()).collect();
    let (noise, needs) = (Noise::Seeded(7), Needs { prob: true, ..Needs::NOTHING });
    let (mut room, mut pass) = (Vec::new(), 0);
    time(seconds, || {
        let start = Instant::now();
        executor.read_logits(rows, &mut room, &|reader, i, row| {
            let mut sampler = samplers[reader].lock().unwrap_or_else(PoisonError::into_inner);
            let at = NoiseRow { pass, position: i };
            std::hint::black_box(sampler.choose(row, policy, Choice::AsPolicy, needs, &noise, at));
        })?;
        pass += 1;
        Ok(start.elapsed())
    })
}

/// The arguments of a step.
pub(in crate::cli) struct Feed {
    ids: Vec<i32>,
    pos: Vec<i32>,
    at: usize,
}

impl Feed {
    /// Rows of `at..at + rows`.
    pub(in crate::cli) fn new(vocab: usize, at: usize, rows: usize) -> Self {
        let end = at.saturating_add(rows);
        let ids = (at..end).map(|i| i32::try_from(i.wrapping_mul(7919).wrapping_add(17) % vocab).unwrap_or(0));
        let pos = (at..end).map(|p| i32::try_from(p).unwrap_or(i32::MAX));
        Feed { ids: ids.collect(), pos: pos.collect(), at }
    }

    /// Runs the step.
    pub(in crate::cli) fn run(&self, executor: &mut CpuExecutor, observe: Observe<'_>) -> Result<(), ExecError> {
        executor.step_observed(&[Span::new(&self.ids, &self.pos, self.at)], usize::MAX, observe)
    }

    /// Cache rows that a node attends.
    fn attended(&self, op: &Op) -> u64 {
        let Op::CachedAttention { mask, .. } = op else { return 0 };
        let (at, rows) = (self.at, 0..self.ids.len());
        attended(*mask, &SpanRows { visible: at.saturating_add(rows.len()), rows, slot: 0, at, from: 0 })
    }

    fn work(&self, seen: &Seen<'_>) -> Work {
        let products = seen.cost.products(self.ids.len() as u64, self.attended(seen.op));
        Work { weight_bytes: seen.cost.weight_bytes, products }
    }
}

/// Work of the matrix products of `rows` rows.
fn matrix_work(cost: Cost, rows: usize) -> Work {
    Work { weight_bytes: cost.weight_bytes, products: cost.row_products * rows as u64 }
}

/// Times every node for about `seconds`, in at least six runs.
fn split(executor: &mut CpuExecutor, feed: &Feed, seconds: f64) -> Result<Split, ExecError> {
    let mut nodes: Vec<OpTime> = Vec::new();
    feed.run(executor, &mut |seen| {
        let kind = match seen.cost {
            Cost { key_products: 1.., .. } => OpKind::Attention,
            Cost { row_products: 1.., .. } => OpKind::Matrix,
            Cost { .. } => OpKind::Other,
        };
        let work = feed.work(&seen);
        let role = seen.name.split_once('.').map_or(seen.name, |(_, role)| role);
        nodes.push(OpTime { name: format!("{} {role}", seen.op.name()), kind, nodes: 1, time: Duration::ZERO, work });
    })?;
    let (begin, mut runs) = (Instant::now(), Vec::new());
    while runs.len() < 6 || begin.elapsed().as_secs_f64() < seconds {
        let mut times = Vec::with_capacity(nodes.len());
        let start = Instant::now();
        let mut last = start;
        feed.run(executor, &mut |_| {
            let now = Instant::now();
            times.push(now - last);
            last = now;
        })?;
        runs.push((start.elapsed(), times));
    }
    // A mean adds up, which medians of nodes would not; leaving out the outer runs keeps disturbances out of it.
    runs.sort_unstable_by_key(|(total, _)| *total);
    let middle = &runs[runs.len() / 4..runs.len() - runs.len() / 4];
    let count = u32::try_from(middle.len()).unwrap_or(u32::MAX);
    for (i, node) in nodes.iter_mut().enumerate() {
        node.time = middle.iter().map(|(_, times)| times[i]).sum::<Duration>() / count;
    }
    let step = middle.iter().map(|(total, _)| *total).sum::<Duration>() / count;
    Ok(Split { step, ops: grouped(nodes) })
}

/// Adds up the nodes of the same name, slowest first.
fn grouped(nodes: Vec<OpTime>) -> Vec<OpTime> {
    let mut groups: Vec<OpTime> = Vec::new();
    for node in nodes {
        match groups.iter_mut().find(|g| g.name == node.name) {
            Some(group) => {
                group.nodes += 1;
                group.time += node.time;
                group.work.add(node.work);
            }
            None => groups.push(node),
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.time));
    groups
}

/// Runs `work` once to warm up, then for about `seconds`, at least three times; it returns how long it took.
pub(super) fn time<E>(seconds: f64, mut work: impl FnMut() -> Result<Duration, E>) -> Result<Timing, E> {
    work()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        times.push(work()?);
    }
    Ok(Timing::of(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_ordered() {
        let t = Timing::of((1..=101).rev().map(Duration::from_millis).collect());
        let ms = [t.fastest, t.p10, t.median, t.p90].map(|d| d.as_millis());
        assert_eq!(ms, [1, 11, 51, 91]);
        let one = Timing::of(vec![Duration::from_millis(7)]);
        assert_eq!((one.fastest, one.p90), (one.median, one.median));
        // Of three, the outer ones.
        let three = Timing::of([5, 9, 7].map(Duration::from_millis).to_vec());
        assert_eq!([three.p10, three.median, three.p90].map(|d| d.as_millis()), [5, 7, 9]);
    }
}
