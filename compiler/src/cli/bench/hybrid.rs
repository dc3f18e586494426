//! `dlxc bench VERIFIER --draft DRAFTER`: what drafting gains at a given acceptance.
//!
//! Invariant: rounds with drafts and plain decoding of the verifier are timed in turn, over the same tokens and the same depth
//! of the caches, and the ratio is that of their medians. Acceptance is a coin's, so that models with random weights measure
//! what trained ones would; everything else runs as ever.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use dlx_ir::Error;
use dlx_runtime::session::{CostTable, Drafting, Length, Prompt, Report, Request, Session, Speculate, Verdict};
use serde_json::json;

use super::super::table::{self, Align};
use super::super::{Failure, terminal};
use super::Args;

/// Tokens of a call that is timed.
const TOKENS: usize = 48;
/// Calls of either kind that a median is of, at least.
const TURNS: usize = 3;

/// What a length of drafts gave.
struct Line {
    k: usize,
    tokens_per_round: f64,
    round: f64,
    /// Against plain decoding in the same run, and by the formula from the costs of single passes.
    ratio: f64,
    formula: f64,
}

/// Runs the subcommand with a drafter.
pub(super) fn run(args: &Args, draft: &std::path::Path) -> Result<(), Failure> {
    let model = args.artifact.as_deref().unwrap_or(draft);
    let threads = args.threads.first().copied();
    let depth = args.depth.first().map_or(0, |d| super::size(*d)).max(1);
    let failed = |e: &dyn std::fmt::Display| Error::new(model.display(), e.to_string());
    let verifier = super::super::model(model, args.quant, &args.place, threads)?;
    let vocab = verifier.manifest.model.vocab;
    let mut session = Session::new(verifier).map_err(|e| failed(&e))?;
    let drafter = super::super::model(draft, args.quant, &args.place, threads)?;
    session.draft_with(drafter).map_err(|e| Error::new(draft.display(), e.to_string()))?;
    // Ordinary tokens: special ones stand at the end of vocabularies.
    let prompt: Vec<i32> =
        (0..depth).filter_map(|i| i32::try_from((i * 7919 + 13) % (vocab / 2).max(1)).ok()).collect();

    let bar = terminal::count_progress("measuring");
    bar.set_length(args.draft_length.len() as u64);
    let (mut lines, mut plain) = (Vec::new(), Vec::new());
    for k in args.draft_length.iter().map(|k| super::size(*k)) {
        let speculate = Speculate {
            drafting: Drafting::Deer,
            length: Length::Fixed(k),
            verdict: Verdict::Coin(f64::from(args.accept)),
        };
        let (mut rounds, mut tokens, mut seconds) = (0, 0, Vec::new());
        let begun = Instant::now();
        while seconds.len() < TURNS || begun.elapsed().as_secs_f64() < args.seconds {
            if terminal::interrupted() {
                return Err(Failure::Interrupted);
            }
            let alone = answer(&mut session, &prompt, None, seconds.len()).map_err(|e| failed(&e))?;
            plain.push(per_token(&alone));
            let report = answer(&mut session, &prompt, Some(speculate), seconds.len()).map_err(|e| failed(&e))?;
            let counts = report.speculation.map(|s| s.counts).unwrap_or_default();
            if counts.undrafted > 1 + counts.rounds / 4 {
                let error = Error::new(draft.display(), format!("has no room for drafts of {k} tokens behind {depth}"));
                return Err(error
                    .help("use a smaller --draft-length or --depth, or compile with larger --buckets")
                    .into());
            }
            (rounds, tokens) = (rounds + counts.rounds, tokens + counts.tokens);
            seconds.push((counts.draft + counts.verify).as_secs_f64() / counts.tokens.max(1) as f64);
        }
        let costs = session.costs().cloned().unwrap_or_default();
        let per_plain = median(&plain);
        let tokens_per_round = f64::from(u32::try_from(tokens).unwrap_or(u32::MAX)) / f64::from(rounds.max(1) as u32);
        let round = round(&costs, k);
        lines.push(Line {
            k,
            tokens_per_round,
            round,
            ratio: per_plain / median(&seconds),
            formula: expected(f64::from(args.accept), k) * per_plain / round,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut costs = session.costs().cloned().unwrap_or_default();
    costs.verify.insert(1, median(&plain));
    terminal::print(&if args.json {
        let line = |l: &Line| {
            json!({
                "draft_length": l.k, "tokens_per_round": l.tokens_per_round, "round_seconds": l.round,
                "ratio": l.ratio, "formula": l.formula,
            })
        };
        let report = json!({
            "accept": args.accept, "depth": depth, "plain_seconds_per_token": median(&plain),
            "lines": lines.iter().map(line).collect::<Vec<_>>(), "costs": costs,
        });
        format!("{report:#}\n")
    } else {
        text(args, &lines, median(&plain))
    })
}

/// Tokens of a round by independent acceptance.
fn expected(accept: f64, k: usize) -> f64 {
    (0..=k).fold((0.0, 1.0), |(sum, reached), _| (sum + reached, reached * accept)).0
}

/// Seconds of a round by the medians of its passes: the drafter's over the sizes that it fed.
fn round(costs: &CostTable, k: usize) -> f64 {
    use dlx_runtime::decode::hybrid::Side;
    let sizes: Vec<f64> = costs.draft.iter().filter(|(rows, _)| **rows >= k).map(|(_, cost)| *cost).collect();
    let draft = sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
    draft + costs.seconds(Side::Verify, k + 1)
}

fn answer(
    session: &mut Session,
    prompt: &[i32],
    speculate: Option<Speculate>,
    seed: usize,
) -> Result<Report, dlx_runtime::session::SessionError> {
    let mut request = Request { keep: true, speculate, ..Request::new(Prompt::Ids(prompt.to_vec()), TOKENS) };
    request.overrides.stop_ids = Some(Vec::new());
    request.overrides.seed = Some(seed as u64);
    session.generate(&request, &mut |_| {
        if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Seconds of a token of plain decoding, the prompt's pass left out.
fn per_token(report: &Report) -> f64 {
    let decoding: Duration = report.times.step + report.times.commit + report.times.head;
    decoding.as_secs_f64() / report.passes.commit.max(1) as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

fn text(args: &Args, lines: &[Line], plain: f64) -> String {
    let columns = [
        ("draft", Align::Right),
        ("tokens/round", Align::Right),
        ("round", Align::Right),
        ("against plain", Align::Right),
        ("formula", Align::Right),
    ];
    let row = |l: &Line| {
        vec![
            l.k.to_string(),
            format!("{:.2}", l.tokens_per_round),
            table::duration(Duration::from_secs_f64(l.round)),
            format!("{:.2} ×", l.ratio),
            format!("{:.2} ×", l.formula),
        ]
    };
    format!(
        "{}\nplain decoding takes {} per token; acceptance {} is a coin's\n",
        table::table(&columns, &lines.iter().map(row).collect::<Vec<_>>()),
        table::duration(Duration::from_secs_f64(plain)),
        args.accept,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_geometric_sums() {
        assert!((expected(0.9, 8) - (1.0 - 0.9f64.powi(9)) / 0.1).abs() < 1e-12);
        assert_eq!([expected(1.0, 4), expected(0.0, 4)], [5.0, 1.0]);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
