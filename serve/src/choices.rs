//! The choices of an answer while they are made, and what every part of the answer repeats.
//!
//! Invariant: dropping the choices cancels everything that was submitted for them. It neither reads requests nor writes
//! answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dlx_runtime::decode::FinishReason;
use dlx_runtime::session::{Filled, Infill, Prompt, Report, Segment, SessionError, Told};
use dlx_runtime::text::Tokenizer;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::Answering;
use crate::canvas::Snapshot;
use crate::error::ApiError;
use crate::format::Format;
use crate::logprobs;
use crate::params::Usage;
use crate::tools::Tools;

/// Updates of a request's choices that wait for the client.
const BUFFER: usize = 256;

/// Which endpoint asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Text,
    Response,
    Infill,
}

impl Kind {
    /// The parameter that holds the prompt.
    pub(crate) fn prompt(self) -> &'static str {
        match self {
            Kind::Chat => "messages",
            Kind::Text => "prompt",
            Kind::Response => "input",
            Kind::Infill => "segments",
        }
    }

    /// What ids of its answers begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
            Kind::Response => "resp",
            Kind::Infill => "infill",
        }
    }
}

/// What an endpoint asks of the model.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) prompts: Vec<Prompt>,
    /// Texts with gaps, in place of prompts.
    pub(crate) infills: Vec<Infill>,
    /// The parts of such a text, where they are given back.
    pub(crate) segments: Vec<Segment>,
    /// Most tokens of an answer.
    pub(crate) max_new: usize,
    /// What the answers begin with, prompt by prompt; nothing unless asked for.
    pub(crate) echo: Vec<String>,
    /// How many likely tokens are told beside each token, if their probabilities are told.
    pub(crate) logprobs: Option<usize>,
    /// Choices that are made of each prompt, if not as many as are answered.
    pub(crate) best_of: Option<usize>,
    /// What an answer must be.
    pub(crate) format: Option<Format>,
    /// What the answers may call.
    pub(crate) tools: Option<Tools>,
    /// What a response object repeats of its request.
    pub(crate) repeats: Map<String, Value>,
}

/// What is told of one choice.
pub(crate) enum Note {
    Waiting,
    Begin {
        prompt_tokens: usize,
    },
    /// A piece of the text, or of what a gap becomes, how many tokens there are by then, and how likely those in the piece
    /// were.
    Text {
        gap: usize,
        piece: String,
        tokens: usize,
        told: Vec<Told>,
    },
    Canvas(Snapshot),
    /// What became of it, and what no piece had told.
    End(Box<Result<Made, SessionError>>, Vec<Told>),
}

/// A choice that has been made.
pub(crate) struct Made {
    pub(crate) report: Report,
    /// What the gaps have become, where a text with gaps was filled in.
    pub(crate) gaps: Vec<Filled>,
}

impl Made {
    /// The new text: that of the only gap, or the answer.
    pub(crate) fn text(&self) -> &str {
        self.gaps.first().map_or(&self.report.text, |gap| &gap.text)
    }

    /// New tokens.
    pub(crate) fn tokens(&self) -> usize {
        if self.gaps.is_empty() { self.report.ids.len() } else { self.gaps.iter().map(|gap| gap.tokens).sum() }
    }

    /// Why it ended.
    pub(crate) fn finish(&self) -> FinishReason {
        // The model ends a gap; the decode goes on to the next.
        let ended = !self.gaps.is_empty() && self.gaps.iter().all(|gap| gap.stopped);
        if ended { FinishReason::StopId } else { self.report.finish }
    }

    /// How likely its tokens are, if that was asked for.
    pub(crate) fn told(&self) -> &[Told] {
        self.report.logprobs.as_deref().unwrap_or_default()
    }

    /// Says in a choice why it ended.
    pub(crate) fn sign(&self, choice: &mut Value) {
        choice["finish_reason"] = finish_reason(self.finish()).into();
        choice["finish_detail"] = json!(self.finish());
    }
}

/// Cancels what was submitted when the client is gone.
pub(crate) struct Cancel(pub(crate) Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The choices of a request while they are made.
pub(crate) struct Choices {
    notes: mpsc::Receiver<(usize, Note)>,
    /// Notes that came while others were waited for.
    early: VecDeque<(usize, Note)>,
    _cancel: Cancel,
    _answering: Answering,
}

/// Tells of the choices, each by its index.
pub(crate) type Teller = mpsc::Sender<(usize, Note)>;

impl Choices {
    /// Room for the notes of `count` choices, who tells of them, and what cancels them once it is true.
    pub(crate) fn new(count: usize, answering: Answering) -> (Self, Teller, Arc<AtomicBool>) {
        let cancel = Arc::new(AtomicBool::new(false));
        let (send, notes) = mpsc::channel(BUFFER.saturating_mul(count));
        let choices =
            Self { notes, early: VecDeque::new(), _cancel: Cancel(Arc::clone(&cancel)), _answering: answering };
        (choices, send, cancel)
    }

    /// The next note; `None` when the choices were cut off.
    pub(crate) async fn next(&mut self) -> Option<(usize, Note)> {
        match self.early.pop_front() {
            Some(note) => Some(note),
            None => self.notes.recv().await,
        }
    }

    /// Waits until all of `count` choices are known to be possible.
    pub(crate) async fn accepted(&mut self, count: usize, prompt: &str) -> Result<(), ApiError> {
        let mut waiting = 0;
        while waiting < count {
            match self.notes.recv().await {
                Some((_, Note::Waiting)) => waiting += 1,
                Some((_, Note::End(result, _))) if result.is_err() => {
                    return Err(result.err().map_or_else(cut_off, |e| ApiError::session(&e, prompt)));
                }
                Some(note) => self.early.push_back(note),
                None => return Err(cut_off()),
            }
        }
        Ok(())
    }
}

/// The model's thread is gone, or has given up on a client that does not read.
pub(crate) fn cut_off() -> ApiError {
    ApiError::server("the answer was cut off")
}

/// What every part of an answer repeats.
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Choices that are made.
    pub(crate) count: usize,
    /// What the answers begin with, prompt by prompt; nothing unless asked for.
    pub(crate) echo: Vec<String>,
    /// Choices per prompt that are made, and how many of them are answered.
    pub(crate) made: usize,
    pub(crate) n: usize,
    /// Whether probabilities are told.
    pub(crate) telling: bool,
    /// What the answers may call.
    pub(crate) tools: Option<Tools>,
    pub(crate) usage: Usage,
    /// Time without an event after which a comment shows that the stream is alive.
    pub(crate) keep_alive: Duration,
    /// What a response object repeats of its request.
    pub(crate) repeats: Map<String, Value>,
    /// The parts of a text with gaps, and where these lie.
    pub(crate) segments: Vec<Segment>,
    pub(crate) infill: Option<Infill>,
    /// For the texts of tokens alone.
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Head {
    /// What choice `index` begins with.
    pub(crate) fn echoed(&self, index: usize) -> &str {
        self.echo.get(index / self.n).map_or("", String::as_str)
    }

    /// The probabilities of a choice's tokens; null unless asked for.
    pub(crate) fn logprobs(&self, told: &[Told]) -> Result<Value, ApiError> {
        if !self.telling {
            return Ok(Value::Null);
        }
        let told = match self.kind {
            Kind::Chat => logprobs::of_chat(told, &self.tokenizer),
            _ => logprobs::of_text(told, &self.tokenizer),
        };
        told.map_err(|e| ApiError::server(e.to_string()))
    }

    /// An object of this answer.
    pub(crate) fn object(&self, name: &str, choices: Value) -> Value {
        let Self { id, created, model, .. } = self;
        let fingerprint = concat!("dlxc-", env!("CARGO_PKG_VERSION"));
        json!({"id": id, "object": name, "created": created, "model": model, "system_fingerprint": fingerprint, "choices": choices})
    }
}

/// Tokens that went in and came out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    /// Of each choice; choices of one prompt count it once.
    pub(crate) prompt: Vec<usize>,
    /// Those of them whose rows were there already, known at the end.
    pub(crate) cached: Vec<usize>,
    pub(crate) completion: Vec<usize>,
}

impl Used {
    pub(crate) fn new(count: usize) -> Self {
        Self { prompt: vec![0; count], cached: vec![0; count], completion: vec![0; count] }
    }

    /// Of choices that have been made.
    pub(crate) fn of(made: &[Made]) -> Self {
        Self {
            prompt: made.iter().map(|made| made.report.prompt_tokens).collect(),
            cached: made.iter().map(|made| made.report.held_tokens).collect(),
            completion: made.iter().map(Made::tokens).collect(),
        }
    }

    /// Tokens of all prompts; `n` choices share one.
    pub(crate) fn prompt_tokens(&self, n: usize) -> usize {
        self.prompt.chunks(n.max(1)).filter_map(|c| c.iter().max()).sum()
    }

    /// Those of them whose rows were there already.
    pub(crate) fn cached_tokens(&self, n: usize) -> usize {
        // One of a prompt's choices has computed what the others share.
        self.cached.chunks(n.max(1)).filter_map(|c| c.iter().min()).sum()
    }

    /// Tokens of all answers.
    pub(crate) fn completion_tokens(&self) -> usize {
        self.completion.iter().sum()
    }

    /// As the API tells it; `n` choices share a prompt. Choices that are not answered count too.
    pub(crate) fn json(&self, n: usize) -> Value {
        let (prompt, completion) = (self.prompt_tokens(n), self.completion_tokens());
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens(n)},
        })
    }
}

/// Why a choice ended, in the API's words.
pub(crate) fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::StopId | FinishReason::StopString | FinishReason::Complete => "stop",
        FinishReason::MaxTokens | FinishReason::ContextFull | FinishReason::Cancelled | FinishReason::Deadline => {
            "length"
        }
    }
}
