//! Trials that are run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dlx_ir::Error;
use dlx_runtime::decode::{Overrides, policy::CacheMode};
use dlx_runtime::policies::{Reference, Settings};
use dlx_runtime::session::{Report, Request, Session, Speculate};
use similar::Algorithm;

use super::record::{Measured, nanoseconds};
use super::{Args, Question};
use crate::cli::{Failure, questions, terminal};
use crate::tune::Trial;

/// Answers prompts, and compares the answers with the reference.
pub(super) struct Live<'a> {
    args: &'a Args,
    questions: &'a [(usize, Question)],
    session: &'a mut Session,
    settings: Vec<Settings>,
    reference: Reference,
    max_new: usize,
    /// The careful setting's answers by prompt.
    careful: BTreeMap<usize, Vec<i32>>,
}

impl<'a> Live<'a> {
    /// Trials of the settings of `measured`.
    pub(super) fn new(
        args: &'a Args,
        questions: &'a [(usize, Question)],
        session: &'a mut Session,
        measured: &Measured,
    ) -> Self {
        let Measured { settings, reference, max_new, .. } = measured;
        let (settings, reference, max_new) = (settings.clone(), *reference, *max_new);
        Self { args, questions, session, settings, reference, max_new, careful: BTreeMap::new() }
    }

    /// Answers a prompt with a setting. The careful setting, which is the first, comes first for every prompt.
    ///
    /// # Errors
    /// When the model fails; on Ctrl-C.
    pub(super) fn trial(&mut self, setting: usize, prompt: usize) -> Result<Trial, Failure> {
        let (line, question) = &self.questions[prompt];
        let request = request(question, &self.settings[setting], self.max_new);
        let report = self.session.generate(&request, &mut |_| {
            if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if terminal::interrupted() {
            return Err(Failure::Interrupted);
        }
        let report = report.map_err(|e| at(self.args, *line, e.to_string()))?;
        let agreement = match (self.reference, &question.answer) {
            (Reference::Answers, answer) => f64::from(u8::from(answer.as_ref() == Some(&report.text))),
            (Reference::Careful, _) => {
                let careful = self.careful.entry(prompt).or_insert_with(|| report.ids.clone());
                alike(careful, &report.ids)
            }
        };
        Ok(trial(setting, prompt, agreement, &report))
    }
}

/// Leaves out the settings that the model cannot run, or not on every prompt, and says so of the latter.
///
/// # Errors
/// A prompt that cannot be answered with the careful setting either.
pub(super) fn runnable(
    args: &Args,
    questions: &[(usize, Question)],
    session: &mut Session,
    settings: &mut Vec<Settings>,
    max_new: usize,
) -> Result<(), Error> {
    settings.retain(|s| session.check(&s.over(&Overrides::default())).is_ok());
    // What decides whether a prompt fits.
    let kind = |s: &Settings| (s.block, s.cache, s.draft);
    let mut refused: Vec<(usize, CacheMode, Option<usize>)> = Vec::new();
    let kinds: Vec<Settings> = settings.iter().fold(Vec::new(), |mut kinds: Vec<Settings>, s| {
        if !kinds.iter().any(|k| kind(k) == kind(s)) {
            kinds.push(s.clone());
        }
        kinds
    });
    for (i, one) in kinds.iter().enumerate() {
        for (line, question) in questions {
            // It is told to stop before its first pass, so it says only whether there would be one.
            let mut request = request(question, one, max_new);
            request.cancel = Some(Arc::new(AtomicBool::new(true)));
            if let Err(e) = session.generate(&request, &mut |_| ControlFlow::Continue(())) {
                if i == 0 {
                    return Err(at(args, *line, e.to_string()));
                }
                let place = format!("{}:{line}", args.prompts.display());
                let drafts = one.draft.map_or(String::new(), |draft| format!(", drafts of {draft}"));
                terminal::note(&format!(
                    "note: left out: blocks of {}, {:?} cache{drafts}: {place}: {e}",
                    one.block, one.cache
                ));
                refused.push(kind(one));
                break;
            }
        }
    }
    settings.retain(|s| !refused.contains(&kind(s)));
    Ok(())
}

fn request(question: &Question, settings: &Settings, max_new: usize) -> Request {
    let mut request = Request::new(questions::chat(&question.prompt, question.system.as_deref()), max_new);
    request.overrides = settings.over(&Overrides::default());
    request.speculate = settings.draft.map(Speculate::fixed);
    request
}

fn at(args: &Args, line: usize, message: String) -> Error {
    Error::new(format_args!("{}:{line}", args.prompts.display()), message)
}

fn trial(setting: usize, prompt: usize, agreement: f64, report: &Report) -> Trial {
    let passes = report.passes;
    Trial {
        setting,
        prompt,
        agreement_ppm: (agreement * 1e6).round() as u32,
        prompt_tokens: report.prompt_tokens,
        tokens: report.ids.len(),
        prefills: passes.prefill,
        passes: passes.denoise + passes.commit,
        prefill_ns: nanoseconds(report.times.prefill),
        total_ns: nanoseconds(report.total),
    }
}

/// One minus the insertions and deletions between two answers over the length of both.
fn alike(a: &[i32], b: &[i32]) -> f64 {
    let length = a.len() + b.len();
    if length == 0 {
        return 1.0;
    }
    let same: usize = similar::capture_diff_slices(Algorithm::Lcs, a, b)
        .iter()
        .map(|op| if op.tag() == similar::DiffTag::Equal { op.old_range().len() } else { 0 })
        .sum();
    2.0 * same as f64 / length as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_what_two_answers_have_in_common() {
        for (a, b, want) in [
            (&[][..], &[][..], 1.0),
            (&[1, 2, 3, 4], &[1, 2, 3, 4], 1.0),
            (&[1, 2, 3, 4], &[], 0.0),
            (&[1, 2, 3, 4], &[1, 9, 3, 4], 0.75),
            (&[1, 2, 3, 4], &[2, 3, 4], 6.0 / 7.0),
            (&[1, 2], &[2, 1], 0.5),
        ] {
            assert!((alike(a, b) - want).abs() < 1e-12, "{a:?} {b:?}");
        }
    }
}
