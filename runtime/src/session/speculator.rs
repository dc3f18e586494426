//! Who drafts for a session's model, and what is remembered of drafting from one request to the next.
//!
//! Invariant: a drafter that was taken on reads every token as the verifier does; what it is not sure to be the same is
//! refused. What is remembered changes how much is drafted, never what is accepted.

use crate::decode::hybrid::{
    Controller, CostTable, Counts, Length, Method, Models, Plan, Speculated, Verdict, speculate,
};
use crate::decode::{DecodePolicy, Observer, Resolved, Reveal};
use crate::exec::Executor;
use crate::model::Model;
use crate::text::Tokenizer;

use super::SessionError;

/// How tokens are drafted and verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drafting {
    /// The model itself drafts with its own mask, and verifies in its causal mode.
    #[serde(rename = "self")]
    Itself,
    /// The session's drafter, in one pass (DEER, 2512.15176).
    Deer,
    /// The session's drafter, in several passes (SpecDiff, 2408.05636).
    #[serde(rename = "specdiff")]
    SpecDiff,
    /// The session's drafter, in one pass or in several: what makes most tokens per second.
    Auto,
}

impl Drafting {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Itself => "self",
            Self::Deer => "deer",
            Self::SpecDiff => "specdiff",
            Self::Auto => "auto",
        }
    }

    fn methods(self) -> &'static [Method] {
        match self {
            Self::Itself | Self::Deer => &[Method::OnePass],
            Self::SpecDiff => &[Method::Several],
            Self::Auto => &[Method::OnePass, Method::Several],
        }
    }

    /// What decoding alone would give the same tokens, or tokens of the same law.
    pub fn lossless_against(self) -> &'static str {
        match self {
            Self::Itself => "the model's own causal mode, which is not its block decoding",
            Self::Deer | Self::SpecDiff | Self::Auto => "the verifier",
        }
    }
}

/// What a request speculates with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speculate {
    /// How tokens are drafted.
    pub drafting: Drafting,
    /// How many at a time.
    pub length: Length,
    /// Who accepts them.
    pub verdict: Verdict,
}

impl Speculate {
    /// With drafts as long as pays, and none where none does.
    pub fn new(drafting: Drafting) -> Self {
        Self { drafting, length: Length::Auto, verdict: Verdict::Verifier }
    }

    /// In one pass of the session's drafter, always so many tokens.
    pub fn fixed(length: usize) -> Self {
        Self { length: Length::Fixed(length), ..Self::new(Drafting::Deer) }
    }
}

/// What speculation made of a request.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Speculation {
    /// How tokens were drafted.
    pub drafting: Drafting,
    /// Who accepted.
    pub verdict: &'static str,
    /// What decoding alone would give the same tokens, or tokens of the same law; nothing where the verdict was not the
    /// verifier's.
    pub lossless_against: Option<&'static str>,
    /// Tokens that the verifier has and was kept from: the drafter's mask, and what only the verifier knows.
    pub banned: Vec<i32>,
    /// What was drafted, accepted and spent.
    #[serde(flatten)]
    pub counts: Counts,
}

impl Speculation {
    pub(super) fn new(speculate: Speculate, counts: Counts, banned: Vec<i32>) -> Self {
        let drafting = speculate.drafting;
        let lossless_against = (speculate.verdict == Verdict::Verifier).then(|| drafting.lossless_against());
        Self { drafting, verdict: speculate.verdict.name(), lossless_against, banned, counts }
    }
}

/// A model that drafts.
struct Drafter {
    executor: Box<dyn Executor + Send>,
    policy: DecodePolicy,
    /// Tokens whose rows the first slot of its caches holds for good.
    held: Vec<i32>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Speculator {
    drafter: Option<Drafter>,
    costs: Option<CostTable>,
    controller: Option<(Drafting, Controller)>,
}

impl Speculator {
    /// Takes on a drafter for a model with this tokenizer and so many logits.
    pub(super) fn take_on(&mut self, drafter: Model, own: &Tokenizer, vocab: usize) -> Result<(), SessionError> {
        let Model { manifest, executor, tokenizer, .. } = drafter;
        let policy = manifest.policy;
        let emitted = vocab.max(executor.vocab());
        own.means_the_same(&tokenizer, emitted, Some(policy.mask_id)).map_err(SessionError::Incompatible)?;
        let executor = executor.into_executor();
        self.drafter = Some(Drafter { executor, policy, held: Vec::new() });
        self.controller = None;
        Ok(())
    }

    pub(super) fn has_drafter(&self) -> bool {
        self.drafter.is_some()
    }

    /// Goes by recorded costs, or measures them.
    pub(super) fn set_costs(&mut self, costs: Option<CostTable>) {
        (self.costs, self.controller) = (costs, None);
    }

    /// What passes cost, as far as it was measured or recorded.
    pub(super) fn costs(&self) -> Option<&CostTable> {
        self.controller.as_ref().map(|(_, controller)| controller.costs())
    }

    /// Decodes speculatively. `held` first tokens of the prompt have their rows in the model's own first slot.
    pub(super) fn run(&mut self, executor: &mut dyn Executor, job: Job<'_>) -> Result<Speculated, SessionError> {
        let Job { speculate: Speculate { drafting, length, verdict }, policy, reveal, prompt, max_new, held, observer } =
            job;
        let plan = Plan { methods: drafting.methods(), length, reveal, verdict };
        if self.controller.as_ref().is_none_or(|(of, _)| *of != drafting) {
            self.controller = Some((drafting, Controller::new(self.costs.clone())));
        }
        let (_, controller) = self.controller.as_mut().expect("it was made a line before");
        if drafting == Drafting::Itself {
            // More slots are new ones.
            let held = if executor.slots() < 2 { 0 } else { held };
            let models = Models::One(executor);
            return Ok(speculate(models, policy, &plan, controller, prompt, max_new, held, observer)?);
        }
        let drafter = self.drafter.as_mut().ok_or(SessionError::NoDrafter)?;
        let tokens = std::mem::take(&mut drafter.held);
        let common = if held > 0 { common(&tokens, prompt) } else { 0 };
        let models =
            Models::Two { draft: &mut *drafter.executor, policy: &drafter.policy, held: common, verify: executor };
        let made = speculate(models, policy, &plan, controller, prompt, max_new, held, observer)?;
        drafter.held = made.decoded.ids[..made.drafter_stored].to_vec();
        Ok(made)
    }
}

/// How many first tokens two sequences share.
pub(crate) fn common(a: &[i32], b: &[i32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What is asked of a [`Speculator`].
pub(super) struct Job<'c> {
    pub(super) speculate: Speculate,
    pub(super) policy: Resolved,
    pub(super) reveal: Option<Reveal>,
    pub(super) prompt: &'c [i32],
    pub(super) max_new: usize,
    pub(super) held: usize,
    pub(super) observer: &'c mut Observer<'c>,
}
