//! A session: one loaded model with its tokenizer, chat template and decode policy, generating text.
//!
//! Invariant: streamed text only grows; the pieces of a call add up to its report's text. Only settled tokens become
//! text, so a decoding method that changes its mind inside a block never has to take text back. A session runs one
//! request at a time, and keeps nothing of it for the next but, when asked to, the cache rows of its tokens.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::constrain::{Constraint, ConstraintError, Grammar};
use crate::decode::{
    Decision, DecodeError, DecodePolicy, FinishReason, Forward, Moment, Noise, Overrides, Passes, Resolved, Times,
    decode,
};
use crate::exec::Executor;
use crate::model::Model;
use crate::policies::{Aim, Chosen, Policies};
use crate::text::{ChatTemplate, Message, TextError, Tokenizer};
use speculator::{Job, Speculator};

pub use crate::decode::hybrid::{CostTable, Length, Verdict};
pub(crate) use call::Call;
pub use infill::{Filled, Filling, Infill, Segment};
pub use prompt::TextSide;
pub(crate) use speculator::common;
pub use speculator::{Drafting, Speculate, Speculation};
pub use told::Told;

mod aim;
mod call;
mod constraints;
mod infill;
mod prompt;
mod speculator;
mod stream;
mod told;

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, encoded as it is: special tokens in it are special tokens, and masks are filled in. What the tokenizer
    /// puts before texts comes first, unless the text begins with it.
    Text(String),
    /// A conversation, rendered with the model's chat template. What the messages and variables hold is text, that of
    /// special tokens too, and nothing in it is filled in.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Further variables of the template.
        variables: serde_json::Map<String, serde_json::Value>,
    },
    /// Token ids.
    Ids(Vec<i32>),
}

/// A call of [`Session::generate`], or one of many side by side in a [`Batch`](crate::batch::Batch).
#[derive(Clone, Debug)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// Most tokens to return after the prompt. Whole blocks are decoded, and what exceeds this is cut off. May be 0 when
    /// the prompt holds masks: they are filled in, and the answer begins at the first of them.
    pub max_new: usize,
    /// Changes to the model's decode policy, stop strings and seed among them.
    pub overrides: Overrides,
    /// What a setting is picked by from those that were measured of the model; it is put into `overrides`, which must not
    /// say the same.
    pub aim: Option<Aim>,
    /// What the answer must be, from [`Session::constraint`] or [`TextSide::constraint`]. Then every answer that ends by itself
    /// is allowed, and one that ends with the tokens asked for, too; what a stop string cuts, or cancelling, need not be.
    pub constraint: Option<Arc<Constraint>>,
    /// Whether special tokens in the messages of a conversation are special tokens.
    pub allow_special: bool,
    /// Whether a text is encoded without what the tokenizer puts before texts.
    pub no_prefix: bool,
    /// Whether the rows that the caches hold of the request before are used where this prompt begins with the same tokens,
    /// as it does in the next turn of a conversation. Only models whose rows do not depend on what follows them
    /// (block-causal and causal attention) have such rows. On the CPU the answer is the same to the bit; a graphics device
    /// rounds a little differently in steps of another size.
    pub keep: bool,
    /// Whether it is told how likely the tokens of the answer were, and with how many of the most likely ones beside each, up to 128: in
    /// [`Report::logprobs`], and on the way in [`Event::Logprobs`]. A probability is that of the law which the token was
    /// chosen from in the pass that decided it: after biases and penalties, temperature and filters, the mask left out; of
    /// the plain softmax where the most likely token is taken.
    pub logprobs: Option<usize>,
    /// Whether tokens are drafted and verified; the text is then that of the model this session is of, or for
    /// [`Drafting::Itself`] that of its causal mode.
    pub speculate: Option<Speculate>,
    /// Among requests side by side, those with lower numbers go first; a session has but one.
    pub priority: i32,
    /// When to give up; looked at before every forward pass.
    pub deadline: Option<Instant>,
    /// Set to true by another thread to cancel; looked at before every forward pass.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Request {
    /// A request with the model's own policy and no deadline.
    pub fn new(prompt: Prompt, max_new: usize) -> Self {
        Self {
            prompt,
            max_new,
            overrides: Overrides::default(),
            aim: None,
            constraint: None,
            allow_special: false,
            no_prefix: false,
            keep: false,
            logprobs: None,
            speculate: None,
            priority: 0,
            deadline: None,
            cancel: None,
        }
    }
}

/// What a running call tells its caller.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The call can be answered, and begins.
    Begin {
        /// The prompt in tokens.
        prompt: &'a [i32],
        /// How it is decoded.
        policy: &'a DecodePolicy,
        /// Most tokens to return after the prompt.
        max_new: usize,
    },
    /// The next piece of the text. It will not change.
    Text(&'a str),
    /// How likely the next tokens were, of those whose text ends in the piece that comes next or is not shown, in order; only
    /// if the request asks for it.
    Logprobs(&'a [Told]),
    /// A denoising step has changed the block.
    Canvas {
        /// The whole sequence, prompt included; undecided positions hold the mask id.
        ids: &'a [i32],
        /// Positions of the block that are undecided.
        masked: &'a [usize],
        /// Positions of the block.
        block: Range<usize>,
        /// What the pass said, and what was made of it.
        decision: Decision<'a>,
    },
    /// None of these tokens, the first ones of the sequence, will change any more.
    Settled {
        /// The tokens, prompt included.
        ids: &'a [i32],
    },
    /// A finished block is in the caches for good.
    Committed {
        /// Positions of the block.
        block: Range<usize>,
    },
    /// A drafter has proposed tokens.
    Drafted {
        /// The tokens.
        tokens: &'a [i32],
    },
    /// The verifier has decided.
    Judged {
        /// What was proposed.
        drafted: &'a [i32],
        /// How many of those, from the first, are part of the text.
        accepted: usize,
        /// All tokens that it decided.
        tokens: &'a [i32],
    },
    /// A forward pass is about to run.
    Forward(Forward<'a>),
}

/// What a call of [`Session::generate`] made and what it cost.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// The new text, without special tokens and without what stopped it.
    pub text: String,
    /// The new tokens (and what stands between them, when masks in the prompt were filled in): without the stop token and what follows it; with the token that completed a stop string.
    pub ids: Vec<i32>,
    /// How likely each of these tokens was, if the request asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Told>>,
    /// Tokens of the prompt that the tokenizer put before a text.
    pub prefix: Vec<i32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the caches held already.
    pub held_tokens: usize,
    /// The setting that was picked for what the request aims at.
    pub chosen: Option<Chosen>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of passes by kind.
    pub passes: Passes,
    /// Time in the executor by kind of call.
    pub times: Times,
    /// Time of the whole call.
    pub total: Duration,
    /// What speculation made of it. Passes of a drafter then count as denoising, those of a verifier as commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
}

impl Report {
    /// New tokens per forward pass, prefill left out; 0 when nothing was decoded.
    pub fn tokens_per_forward(&self) -> f64 {
        self.passes.tokens_per_forward(self.ids.len())
    }
}

/// A call that could not be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Decoding could not start, or the model failed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The prompt could not be encoded, or tokens could not be decoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A conversation for a model that has no chat template.
    #[error("the model has no chat template: pass a plain prompt, or compile it with one")]
    NoTemplate,
    /// An empty stop string would stop everything.
    #[error("a stop string is empty: leave it out")]
    EmptyStopString,
    /// Special tokens have no text in an answer, so this would never match.
    #[error("the stop string {stop:?} holds the special token {token:?} and other text: stop at {token:?} alone")]
    StopAroundToken {
        /// The stop string.
        stop: String,
        /// The token in it.
        token: String,
    },
    /// The model never chooses the token, so this would never match.
    #[error("the stop string {stop:?} is a token that is never generated: leave it out")]
    StopNeverComes {
        /// The stop string.
        stop: String,
    },
    /// Nobody to draft.
    #[error("there is no drafter: give the session one, or let the model draft for itself")]
    NoDrafter,
    /// The drafter reads tokens differently.
    #[error(
        "the drafter does not fit this model: {0}; draft with a model of the same vocabulary, or decode without a drafter"
    )]
    Incompatible(String),
    /// A chat template wrote a token that means "to be filled in".
    #[error("the chat template writes the mask token, which would be filled in: pass a plain prompt for infilling")]
    MaskInChat,
    /// A grammar that cannot be used with this model.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// A constraint in the tokens of another model.
    #[error("the constraint was made for another model: make it with this one")]
    OtherVocabulary,
    /// What is drafted is not constrained.
    #[error("a constrained answer cannot be drafted and verified: leave out the drafter, or the constraint")]
    ConstrainedDraft,
    /// A text with gaps that this model cannot fill in.
    #[error("the text cannot be filled in: {why}")]
    NoInfill {
        /// Why.
        why: String,
    },
    /// No measured setting does what the request aims at.
    #[error("the request cannot have what it aims at: {why}")]
    Aim {
        /// Why.
        why: String,
    },
    /// Measured settings that the model cannot run.
    #[error(
        "the measured settings of section `policies` are not this model's: {why}; run `dlxc tune` on the artifact again"
    )]
    Policies {
        /// Which, and why.
        why: String,
    },
}

impl SessionError {
    /// Whether this prompt alone was refused: another one, or a shorter one, can be answered.
    pub fn is_about_prompt(&self) -> bool {
        match self {
            Self::Text(error) => matches!(error, TextError::Tokenize(_) | TextError::Render(_)),
            Self::Decode(error) => matches!(
                error,
                DecodeError::EmptyPrompt
                    | DecodeError::PromptTooLong { .. }
                    | DecodeError::PassTooLarge { .. }
                    | DecodeError::NoRoom { .. }
                    | DecodeError::TokenId { .. }
            ),
            Self::MaskInChat | Self::NoInfill { .. } => true,
            _ => false,
        }
    }
}

/// See the module.
pub struct Session {
    executor: Box<dyn Executor + Send>,
    text: TextSide,
    /// Tokens whose rows the first slot of the caches holds for good.
    held: Vec<i32>,
    policies: Option<Policies>,
    /// How long a pass takes here beside the machine that measured `policies`.
    pace: Option<f64>,
    speculator: Speculator,
}

impl Session {
    /// A session of a model; fails when its policy cannot be run on its executor.
    ///
    /// # Errors
    /// [`SessionError::Decode`] with what the policy asks for in vain.
    pub fn new(model: Model) -> Result<Self, SessionError> {
        let Model { manifest, executor, tokenizer, template, policies } = model;
        let mut session = Self::with_executor(executor.into_executor(), tokenizer, template, manifest.policy)?;
        session.set_policies(policies)?;
        Ok(session)
    }

    /// A session on an executor of one's own.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_executor(
        executor: Box<dyn Executor + Send>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        policy: DecodePolicy,
    ) -> Result<Self, SessionError> {
        policy.clone().resolve(&*executor).map_err(DecodeError::from)?;
        let (text, speculator) = (TextSide::new(tokenizer, template, policy, executor.vocab()), Speculator::default());
        Ok(Self { executor, text, held: Vec::new(), policies: None, pace: None, speculator })
    }

    /// Lets `drafter` draft for requests that ask for it.
    ///
    /// # Errors
    /// [`SessionError::Incompatible`] with the first id, or part of the tokenizers, in which both models differ.
    pub fn draft_with(&mut self, drafter: Model) -> Result<(), SessionError> {
        self.speculator.take_on(drafter, &self.text.tokenizer(), self.executor.vocab())
    }

    /// Chooses lengths of drafts by recorded costs, so that they repeat themselves; by measured ones if there are none.
    pub fn set_costs(&mut self, costs: Option<CostTable>) {
        self.speculator.set_costs(costs);
    }

    /// What passes of both sides cost, as far as speculation has measured it.
    pub fn costs(&self) -> Option<&CostTable> {
        self.speculator.costs()
    }

    /// The tokenizer, to be kept while a call runs: an observer decodes the canvas with it.
    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        self.text.tokenizer()
    }

    /// The model's own decode policy.
    pub fn policy(&self) -> &DecodePolicy {
        self.text.policy()
    }

    /// A constraint for requests of this session, see [`Request::constraint`].
    ///
    /// # Errors
    /// As [`TextSide::constraint`].
    pub fn constraint(&self, grammar: &Grammar) -> Result<Arc<Constraint>, SessionError> {
        self.text.constraint(grammar)
    }

    /// Token ids of a request's prompt.
    ///
    /// # Errors
    /// As [`TextSide::encode`].
    pub fn encode(&self, request: &Request) -> Result<Vec<i32>, SessionError> {
        self.text.encode(request)
    }

    /// Whether a request with these changes to the policy can be answered.
    ///
    /// # Errors
    /// What [`Session::generate`] would say of them.
    pub fn check(&self, overrides: &Overrides) -> Result<(), SessionError> {
        self.resolve(overrides).map(drop)
    }

    /// The policy of a request.
    fn resolve(&self, overrides: &Overrides) -> Result<Resolved, SessionError> {
        Ok(self.text.policy_of(overrides)?.resolve(&*self.executor).map_err(DecodeError::from)?)
    }

    /// Answers a request. `events` is called as things happen; breaking cancels the call, which then reports the
    /// text that was streamed and tells nothing more.
    ///
    /// # Errors
    /// An unusable prompt, request or policy before anything runs; whatever the model reports later.
    pub fn generate(
        &mut self,
        request: &Request,
        events: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Report, SessionError> {
        let begin = Instant::now();
        let chosen = self.choose(request)?;
        let resolved = match &chosen {
            Some(chosen) => self.resolve(&chosen.settings.over(&request.overrides))?,
            None => self.resolve(&request.overrides)?,
        };
        let resolved = resolved.telling(request.logprobs, &*self.executor).map_err(DecodeError::from)?;
        let resolved = match &request.constraint {
            None => resolved,
            Some(constraint) => {
                resolved.constrained(Arc::clone(constraint), &*self.executor).map_err(DecodeError::from)?
            }
        };
        let mut call = Call::new(&self.text, request, resolved.policy.clone(), begin)?;
        call.end_by(Self::end(request, begin, chosen.as_ref()));
        let prompt = Arc::clone(call.prompt());
        // Whatever ends this call early leaves caches that nothing is known of.
        let held = std::mem::take(&mut self.held);
        let held = if request.keep { common(&held, &prompt) } else { 0 };
        let mut events = |event: Event<'_>, _: usize| events(event);
        call.begin(&mut events);
        let mut observe = |moment: Moment<'_>| call.observe(moment, &mut events);
        let drafts = chosen.as_ref().and_then(|chosen| chosen.settings.draft);
        let (decoded, speculation) = match request.speculate.or(drafts.map(Speculate::fixed)) {
            None => {
                let noise = Noise::Seeded(resolved.policy.seed);
                let executor = &mut *self.executor;
                let decoded = decode(executor, resolved, &prompt, request.max_new, held, noise, &mut observe)?;
                self.held = decoded.ids[..decoded.stored].to_vec();
                (decoded, None)
            }
            Some(speculate) => {
                let (reveal, max_new) = (request.overrides.reveal.clone(), request.max_new);
                let observer = &mut observe;
                let job = Job { speculate, policy: resolved, reveal, prompt: &prompt, max_new, held, observer };
                let made = self.speculator.run(&mut *self.executor, job)?;
                let stored =
                    if speculate.drafting == Drafting::Itself { made.drafter_stored } else { made.decoded.stored };
                self.held = made.decoded.ids[..stored].to_vec();
                (made.decoded, Some(Speculation::new(speculate, made.counts, made.banned)))
            }
        };
        let report = Report { chosen, speculation, ..call.finish(decoded, &mut events)? };
        self.learn(&report);
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
