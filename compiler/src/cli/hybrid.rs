//! Drafting and verifying on the command line: the flags of `run` and `eval`, and what is told of it.

use std::path::PathBuf;

use dlx_ir::Error;
use dlx_runtime::decode::hybrid::Counts;
use dlx_runtime::session::{CostTable, Drafting, Length, Session, Speculate, Speculation, Verdict};
use serde_json::{Value, json};

use super::{Failure, Place, table, terminal};
use crate::options::QuantSpec;

/// Who drafts, and how.
#[derive(clap::Args, Clone, Debug)]
pub struct Hybrid {
    /// A diffusion model that drafts what MODEL verifies: an artifact, or a directory to compile first. The text stays MODEL's
    /// own; see docs/hybrid.md.
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub draft: Option<PathBuf>,
    /// How tokens are drafted: deer (one pass of the drafter; the default with --draft), specdiff (several passes, as many as
    /// --steps says), auto (the one of these that makes most tokens per second), self (the model drafts for its own causal
    /// mode), off.
    #[arg(long, value_name = "HOW", value_parser = how)]
    pub speculate: Option<How>,
    /// Tokens per draft; auto takes as many as make most tokens per second here, also none.
    #[arg(long, value_name = "K|auto", default_value = "auto", value_parser = length)]
    pub draft_length: Length,
    /// Give up the verifier's text for speed: skip=P (tokens that the drafter is that sure of are not verified), semi-ar=P (the
    /// verifier only overwrites tokens that it is less sure of), s2d2=P (behind a rejected token, those it is that sure of
    /// stay).
    #[arg(long, value_name = "RULE=P", value_parser = lossy)]
    pub lossy: Option<Verdict>,
    /// Choose lengths by the costs in this file and not by measured ones, so that they repeat themselves; `dlxc bench MODEL
    /// --draft DRAFT --json` records them.
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
}

/// What `--speculate` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Draft.
    On(Drafting),
    /// Do not.
    Off,
}

impl Hybrid {
    /// What requests ask for.
    ///
    /// # Errors
    /// Flags that contradict each other.
    pub fn speculate(&self) -> Result<Option<Speculate>, Error> {
        let drafting = match (self.speculate, &self.draft) {
            (Some(How::Off), _) | (None, None) if self.lossy.is_some() => {
                let error = Error::new("--lossy", "is about drafted tokens, and nothing drafts");
                return Err(error.help("name a drafter with --draft, or leave it out"));
            }
            (Some(How::Off), _) | (None, None) => return Ok(None),
            (None, Some(_)) => Drafting::Deer,
            (Some(How::On(Drafting::Itself)), Some(_)) => {
                let error = Error::new("--speculate self", "has no use for a drafter");
                return Err(error.help("leave --draft out, or use --speculate deer"));
            }
            (Some(How::On(drafting)), draft) => {
                if drafting != Drafting::Itself && draft.is_none() {
                    let error = Error::new(format!("--speculate {}", drafting.name()), "needs a drafter");
                    return Err(error.help("name one with --draft, or use --speculate self"));
                }
                drafting
            }
        };
        if drafting == Drafting::Auto && self.draft_length != Length::Auto {
            let error = Error::new("--speculate auto", "chooses the length with the way of drafting");
            return Err(error.help("leave --draft-length out, or use --speculate deer or specdiff"));
        }
        let verdict = self.lossy.unwrap_or(Verdict::Verifier);
        Ok(Some(Speculate { drafting, length: self.draft_length, verdict }))
    }

    /// Loads the drafter, if there is one, and the costs.
    ///
    /// # Errors
    /// A drafter that cannot be loaded or does not fit the session's model; costs that cannot be read.
    pub fn prepare(
        &self,
        session: &mut Session,
        quant: Option<QuantSpec>,
        place: &Place,
        threads: Option<u16>,
    ) -> Result<Option<Speculate>, Failure> {
        let speculate = self.speculate()?;
        if let (Some(path), Some(_)) = (&self.draft, speculate) {
            let drafter = super::model(path, quant, place, threads)?;
            session.draft_with(drafter).map_err(|e| Error::new(path.display(), e.to_string()))?;
        }
        if let Some(path) = &self.costs {
            let read = std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"));
            let costs = read.and_then(|text| CostTable::read(&text)).map_err(|e| {
                Error::new(path.display(), e).help("record one with `dlxc bench MODEL --draft DRAFT --json`")
            })?;
            session.set_costs(Some(costs));
        }
        Ok(speculate)
    }
}

fn how(text: &str) -> Result<How, String> {
    match text {
        "self" => Ok(How::On(Drafting::Itself)),
        "deer" => Ok(How::On(Drafting::Deer)),
        "specdiff" => Ok(How::On(Drafting::SpecDiff)),
        "auto" => Ok(How::On(Drafting::Auto)),
        "off" => Ok(How::Off),
        _ => Err("use self, deer, specdiff, auto or off".into()),
    }
}

fn length(text: &str) -> Result<Length, String> {
    let fixed = || text.parse().ok().filter(|k| (1..=1024).contains(k)).map(Length::Fixed);
    let parsed = if text == "auto" { Some(Length::Auto) } else { fixed() };
    parsed.ok_or_else(|| "use a number from 1 to 1024, or auto".into())
}

fn lossy(text: &str) -> Result<Verdict, String> {
    let (rule, least) = text.split_once('=').unwrap_or((text, ""));
    let least = least.parse::<f32>().ok().filter(|least| (0.0..=1.0).contains(least));
    match (rule, least) {
        ("skip", Some(least)) => Ok(Verdict::Sure(least)),
        ("semi-ar", Some(least)) => Ok(Verdict::Overwrite(least)),
        ("s2d2", Some(least)) => Ok(Verdict::TopUp(least)),
        _ => Err("use skip=P, semi-ar=P or s2d2=P with a confidence P from 0 to 1".into()),
    }
}

/// What speculation made, for programs.
pub fn as_json(speculation: &Speculation) -> Value {
    let counts = &speculation.counts;
    let mut report = json!(speculation);
    report["tokens_per_round"] = counts.tokens_per_round().into();
    report["tokens_per_pass"] = counts.tokens_per_pass().into();
    report["draft"] = counts.draft.as_secs_f64().into();
    report["verify"] = counts.verify.as_secs_f64().into();
    report
}

/// The same for people.
pub fn statistics(speculation: &Speculation) -> String {
    let how = speculation.drafting.name();
    let kept = speculation.lossless_against.map_or_else(
        || format!("lossy ({}): not the verifier's text", speculation.verdict),
        |against| format!("lossless against {against}"),
    );
    format!("{how}, {kept}: {}", summary(&speculation.counts))
}

/// Counts in a line.
pub fn summary(counts: &Counts) -> String {
    let rate = |p: &dlx_runtime::decode::hybrid::Tried| format!("{:.2}", p.accepted as f64 / p.tried.max(1) as f64);
    let positions: Vec<_> = counts.by_position.iter().take_while(|p| p.tried > 0).map(rate).collect();
    format!(
        "{} of {} drafted tokens accepted, {:.2} tokens per round ({} rounds, {} without a draft{}), {:.2} per pass of either \
         side; by position {}; drafting {} in {} passes, verifying {} in {}",
        counts.accepted,
        counts.drafted,
        counts.tokens_per_round(),
        counts.rounds,
        counts.undrafted,
        if counts.unverified > 0 { format!(", {} not verified", counts.unverified) } else { String::new() },
        counts.tokens_per_pass(),
        if positions.is_empty() { "-".into() } else { positions.join(" ") },
        table::duration(counts.draft),
        counts.draft_passes,
        table::duration(counts.verify),
        counts.verify_passes,
    )
}

/// Says what a reader of the text should know.
pub fn note(speculation: &Speculation) {
    if speculation.counts.no_room > 0 {
        let rounds = speculation.counts.no_room;
        terminal::note(&format!(
            "note: {rounds} rounds had no draft, because the drafter's caches or steps had no room; compile it with a larger \
             --max-seq or --buckets"
        ));
    }
    if let [first, rest @ ..] = &speculation.banned[..] {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        terminal::note(&format!(
            "note: the verifier is kept from token {first}{more}, which the drafter takes for its mask or does not know"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        hybrid: Hybrid,
    }

    fn parse(line: &str) -> Result<Option<Speculate>, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        let parsed = Line::try_parse_from(words).map_err(|e| e.to_string())?;
        parsed.hybrid.speculate().map_err(|e| e.to_string())
    }

    #[test]
    fn flags_say_who_drafts() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("--draft d --speculate off"), Ok(None));
        assert_eq!(parse("--draft d"), Ok(Some(Speculate::new(Drafting::Deer))));
        let fixed = Speculate { length: Length::Fixed(8), ..Speculate::new(Drafting::SpecDiff) };
        assert_eq!(parse("--draft d --speculate specdiff --draft-length 8"), Ok(Some(fixed)));
        assert_eq!(parse("--speculate self"), Ok(Some(Speculate::new(Drafting::Itself))));
        for (wrong, what) in [
            ("--speculate deer", "needs a drafter"),
            ("--speculate self --draft d", "no use for a drafter"),
            ("--speculate magic", "use self"),
            ("--draft d --draft-length 0", "1 to 1024"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(what), "{wrong}: {error}");
        }
    }
}
