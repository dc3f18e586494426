//! A session: one loaded model with its tokenizer, chat template and decode policy, generating text.
//!
//! Invariant: streamed text only grows; the pieces of a call add up to its report's text. Only settled tokens become
//! text, so a decoding method that changes its mind inside a block never has to take text back. A session runs one
//! request at a time and keeps nothing of it for the next.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::decode::{
    DecodeError, DecodePolicy, FinishReason, Forward, Moment, Noise, Overrides, Passes, Times, decode,
};
use crate::exec::Executor;
use crate::text::{ChatTemplate, Detokenizer, Message, StopStrings, TextError, Tokenizer};

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, encoded as it is.
    Text(String),
    /// A conversation, rendered with the model's chat template.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// Further variables of the template.
        variables: serde_json::Map<String, serde_json::Value>,
    },
    /// Token ids.
    Ids(Vec<i32>),
}

/// A call of [`Session::generate`].
#[derive(Clone, Debug)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// Most tokens to return after the prompt. Whole blocks are decoded, and what exceeds this is cut off. May be 0 when
    /// the prompt holds masks: they are filled in, and the answer begins at the first of them.
    pub max_new: usize,
    /// Changes to the model's decode policy, stop strings and seed among them.
    pub overrides: Overrides,
    /// When to give up; looked at before every forward pass.
    pub deadline: Option<Instant>,
    /// Set to true by another thread to cancel; looked at before every forward pass.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Request {
    /// A request with the model's own policy and no deadline.
    pub fn new(prompt: Prompt, max_new: usize) -> Self {
        Self { prompt, max_new, overrides: Overrides::default(), deadline: None, cancel: None }
    }
}

/// What a running call tells its caller.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The next piece of the text. It will not change.
    Text(&'a str),
    /// A denoising step has changed the block.
    Canvas {
        /// The whole sequence, prompt included; undecided positions hold the mask id.
        ids: &'a [i32],
        /// Positions of the block that are undecided.
        masked: &'a [usize],
        /// Positions of the block.
        block: Range<usize>,
    },
    /// A finished block is in the caches for good.
    Committed {
        /// Positions of the block.
        block: Range<usize>,
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
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// Number of passes by kind.
    pub passes: Passes,
    /// Time in the executor by kind of call.
    pub times: Times,
    /// Time of the whole call.
    pub total: Duration,
}

impl Report {
    /// New tokens per forward pass, prefill left out; 0 when nothing was decoded.
    pub fn tokens_per_forward(&self) -> f64 {
        match self.passes.denoise + self.passes.commit {
            0 => 0.0,
            passes => self.ids.len() as f64 / passes as f64,
        }
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
}

/// See the module.
pub struct Session {
    executor: Box<dyn Executor + Send>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    policy: DecodePolicy,
}

impl Session {
    /// Puts a session together; fails when the policy cannot be run on this executor.
    ///
    /// # Errors
    /// [`SessionError::Decode`] with what the policy asks for in vain.
    pub fn new(
        executor: Box<dyn Executor + Send>,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        policy: DecodePolicy,
    ) -> Result<Self, SessionError> {
        policy.resolve(&*executor).map_err(DecodeError::from)?;
        Ok(Self { executor, tokenizer: Arc::new(tokenizer), template, policy })
    }

    /// The tokenizer, to be kept while a call runs: an observer decodes the canvas with it.
    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The model's own decode policy.
    pub fn policy(&self) -> &DecodePolicy {
        &self.policy
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// [`SessionError::Text`] or [`SessionError::NoTemplate`].
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<i32>, SessionError> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok(self.tokenizer.encode(text)?),
            Prompt::Chat { messages, variables } => {
                let template = self.template.as_ref().ok_or(SessionError::NoTemplate)?;
                Ok(self.tokenizer.encode(&template.render(messages, variables)?)?)
            }
        }
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
        let policy = self.policy.with(&request.overrides).map_err(DecodeError::from)?;
        if policy.stop_strings.iter().any(String::is_empty) {
            return Err(SessionError::EmptyStopString);
        }
        let prompt = self.encode(&request.prompt)?;
        let mut stream = Stream {
            tokenizer: &self.tokenizer,
            detokenizer: Detokenizer::default(),
            stops: StopStrings::new(policy.stop_strings.iter().cloned()),
            next: prompt.iter().position(|&id| id == policy.mask_id).unwrap_or(prompt.len()),
            prompt: &prompt,
            mask_id: policy.mask_id,
            end: prompt.len().saturating_add(request.max_new),
            ids: Vec::new(),
            text: String::new(),
            stopped: None,
        };
        let (mut failure, mut hung_up) = (None, false);
        let mut tell = |event: Event<'_>| {
            hung_up |= events(event).is_break();
            if hung_up { ControlFlow::Break(FinishReason::Cancelled) } else { ControlFlow::Continue(()) }
        };
        let mut observe = |moment: Moment<'_>| match moment {
            Moment::Forward(forward) => {
                if request.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return ControlFlow::Break(FinishReason::Cancelled);
                }
                if request.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return ControlFlow::Break(FinishReason::Deadline);
                }
                tell(Event::Forward(forward))
            }
            Moment::Revealed { ids, start, end } => {
                let masked: Vec<usize> = (start..end).filter(|&at| ids[at] == policy.mask_id).collect();
                tell(Event::Canvas { ids, masked: &masked, block: start..end })
            }
            Moment::Settled { ids, end } => {
                let piece = match stream.settle(&ids[..end], &policy.stop_ids) {
                    Ok(piece) => piece,
                    Err(error) => {
                        failure = Some(error);
                        return ControlFlow::Break(FinishReason::Cancelled);
                    }
                };
                if !piece.is_empty() {
                    tell(Event::Text(&piece))?;
                }
                match stream.stopped {
                    Some(FinishReason::StopString) => ControlFlow::Break(FinishReason::StopString),
                    _ => ControlFlow::Continue(()),
                }
            }
            Moment::Committed { start, end } => tell(Event::Committed { block: start..end }),
        };
        let noise = Noise::Seeded(policy.seed);
        let decoded = decode(&mut *self.executor, &policy, &prompt, request.max_new, &noise, &mut observe)?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        if !hung_up {
            let tail = stream.finish()?;
            if !tail.is_empty() {
                // The call is over: there is nothing left to cancel.
                let _ = events(Event::Text(&tail));
            }
        }
        let finish = match (stream.stopped, decoded.finish) {
            (Some(reason), _) => reason,
            // The stop token stands beyond the tokens that were asked for.
            (None, FinishReason::StopId) => FinishReason::MaxTokens,
            (None, reason) => reason,
        };
        Ok(Report {
            text: stream.text,
            ids: stream.ids,
            prompt_tokens: prompt.len(),
            finish,
            passes: decoded.passes,
            times: decoded.times,
            total: begin.elapsed(),
        })
    }
}

/// Turns settled tokens into text.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer,
    stops: StopStrings,
    prompt: &'a [i32],
    mask_id: i32,
    /// First position that is not yet text.
    next: usize,
    /// Position after the last token that was asked for.
    end: usize,
    ids: Vec<i32>,
    text: String,
    stopped: Option<FinishReason>,
}

impl Stream<'_> {
    /// Adds the settled sequence and returns the text that became certain.
    fn settle(&mut self, ids: &[i32], stop_ids: &[i32]) -> Result<String, TextError> {
        let from = self.text.len();
        while self.stopped.is_none() && self.next < ids.len().min(self.end) {
            let id = ids[self.next];
            let given = self.prompt.get(self.next).is_some_and(|&id| id != self.mask_id);
            self.next += 1;
            if !given && stop_ids.contains(&id) {
                self.stopped = Some(FinishReason::StopId);
                break;
            }
            self.ids.push(id);
            let piece = self.detokenizer.push(self.tokenizer, id)?;
            self.show(&piece);
        }
        Ok(self.text[from..].to_owned())
    }

    /// Returns the text that was held back.
    fn finish(&mut self) -> Result<String, TextError> {
        let from = self.text.len();
        if self.stopped != Some(FinishReason::StopString) {
            let piece = std::mem::take(&mut self.detokenizer).finish(self.tokenizer)?;
            self.show(&piece);
        }
        if self.stopped != Some(FinishReason::StopString) {
            self.text += &self.stops.finish();
        }
        Ok(self.text[from..].to_owned())
    }

    fn show(&mut self, piece: &str) {
        let checked = self.stops.push(piece);
        self.text += &checked.text;
        if checked.stopped {
            self.stopped = Some(FinishReason::StopString);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::mock::Mock;
    use crate::decode::{ForwardKind, PolicyError};
    use crate::text::tokenizer::tests::bytes_tokenizer;

    const STOP: i32 = 256;
    const MASK: i32 = 257;

    /// A session whose model says `answer` (a NUL is the stop token) after a prompt of `prompt` tokens.
    fn session(prompt: usize, answer: &[u8]) -> Session {
        let mut mock = Mock::new(64, 258, &[8]);
        for (at, &byte) in answer.iter().enumerate() {
            mock.say(prompt + at, if byte == 0 { STOP } else { i32::from(byte) });
        }
        let policy = DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::greedy(MASK, 4) };
        Session::new(Box::new(mock), bytes_tokenizer(&["<stop>", "<mask>"]), None, policy).unwrap()
    }

    fn run(session: &mut Session, request: &Request) -> (Report, Vec<String>) {
        let mut pieces = Vec::new();
        let report = session.generate(request, &mut |event| {
            if let Event::Text(piece) = event {
                pieces.push(piece.to_owned());
            }
            ControlFlow::Continue(())
        });
        (report.unwrap(), pieces)
    }

    fn text(prompt: &str, max_new: usize) -> Request {
        Request::new(Prompt::Text(prompt.to_owned()), max_new)
    }

    #[test]
    fn streams_settled_text_block_by_block() {
        let (report, pieces) = run(&mut session(2, b"hello world\0after"), &text("ab", 40));
        assert_eq!(report.text, "hello world");
        assert_eq!(report.ids, b"hello world".map(i32::from));
        assert_eq!(pieces, ["he", "llo ", "worl", "d"]);
        assert_eq!(report.finish, FinishReason::StopId);
        assert_eq!(report.prompt_tokens, 2);
        assert_eq!((report.passes.prefill, report.passes.denoise, report.passes.commit), (0, 14, 4));
        assert!((report.tokens_per_forward() - 11.0 / 18.0).abs() < 1e-9);
    }

    #[test]
    fn whole_blocks_are_decoded_and_cut_to_max_new() {
        let (report, _) = run(&mut session(2, b"hello world"), &text("ab", 4));
        assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::MaxTokens));
        assert_eq!(report.ids.len(), 4);
        let (report, _) = run(&mut session(2, b"hell\0"), &text("ab", 4));
        assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::MaxTokens));
    }

    #[test]
    fn a_stop_string_ends_the_text_across_blocks() {
        let mut request = text("ab", 40);
        request.overrides.stop_strings = Some(vec!["o w".into(), "zzz".into()]);
        let (report, pieces) = run(&mut session(2, b"hello world"), &request);
        assert_eq!((report.text.as_str(), report.finish), ("hell", FinishReason::StopString));
        assert_eq!(pieces, ["he", "ll"]);
        assert_eq!(report.ids, b"hello w".map(i32::from));
        assert_eq!(report.passes.commit, 2, "the block that completes it is not committed");
    }

    #[test]
    fn a_beginning_of_a_stop_string_comes_out_at_the_end() {
        let mut request = text("ab", 6);
        request.overrides.stop_strings = Some(vec!["o world".into()]);
        let (report, pieces) = run(&mut session(2, b"hello world"), &request);
        assert_eq!((report.text.as_str(), report.finish), ("hello ", FinishReason::MaxTokens));
        assert_eq!(pieces, ["he", "ll", "o "]);
    }

    #[test]
    fn text_that_ends_inside_a_character_is_replaced_at_the_end_only() {
        let (report, pieces) = run(&mut session(2, "a€b".as_bytes()), &text("ab", 3));
        assert_eq!(report.text, "a\u{FFFD}");
        assert_eq!(pieces, ["a", "\u{FFFD}"]);
    }

    #[test]
    fn canvases_show_every_denoising_step() {
        let mut snapshots = Vec::new();
        let report = session(3, b"x").generate(&text("abc", 1), &mut |event| {
            match event {
                Event::Canvas { ids, masked, block } => snapshots.push((ids.to_vec(), masked.to_vec(), block)),
                Event::Committed { block } => assert_eq!(block, 0..4),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        assert_eq!(report.unwrap().text, "x");
        assert_eq!(snapshots, [(vec![97, 98, 99, 120], vec![], 0..4)]);
    }

    #[test]
    fn the_trace_has_every_forward_pass() {
        let mut kinds = Vec::new();
        let request = Request::new(Prompt::Ids(vec![65; 5]), 3);
        let trace = &mut |event: Event<'_>| {
            if let Event::Forward(forward) = event {
                kinds.push((forward.kind, forward.q_start, forward.q_len, forward.past_len));
                assert_eq!(forward.ids.len(), 8);
            }
            ControlFlow::Continue(())
        };
        session(5, b"xyz").generate(&request, trace).unwrap();
        let block = (ForwardKind::Block, 4, 4, 4);
        assert_eq!(kinds, [(ForwardKind::Prefill, 0, 4, 0), block, block, block, (ForwardKind::Commit, 4, 4, 4)]);
    }

    #[test]
    fn cancel_and_deadline_keep_what_was_settled() {
        let cancel = Arc::new(AtomicBool::new(false));
        let request = Request { cancel: Some(Arc::clone(&cancel)), ..text("ab", 40) };
        let report = session(2, b"hello world").generate(&request, &mut |event| {
            if matches!(event, Event::Text("llo ")) {
                cancel.store(true, Ordering::Relaxed);
            }
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!((report.text.as_str(), report.finish), ("hello ", FinishReason::Cancelled));

        let request = Request { deadline: Some(Instant::now()), ..text("ab", 40) };
        let (report, _) = run(&mut session(2, b"hello"), &request);
        assert_eq!((report.text.as_str(), report.finish), ("", FinishReason::Deadline));
        assert_eq!(report.passes.forward(), 0);
        assert_eq!(report.tokens_per_forward(), 0.0);

        let report = session(2, b"hello").generate(&text("ab", 40), &mut |event| match event {
            Event::Text(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(report.unwrap().finish, FinishReason::Cancelled);
    }

    #[test]
    fn masks_in_the_prompt_are_filled_in_and_the_answer_begins_there() {
        let mut mock = Mock::new(64, 258, &[32]);
        mock.say(1, i32::from(b'x'));
        mock.say(5, STOP);
        let policy = DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::llada(MASK) };
        let tokenizer = bytes_tokenizer(&["<stop>", "<mask>"]);
        let mut session = Session::new(Box::new(mock), tokenizer, None, policy).unwrap();
        let (report, pieces) = run(&mut session, &text("a<mask>b<stop>d<mask>f", 0));
        assert_eq!(
            (report.text.as_str(), report.finish),
            ("xbd", FinishReason::StopId),
            "a given stop token stops nothing"
        );
        assert_eq!(pieces.concat(), "xbd");
    }

    #[test]
    fn the_end_of_the_caches_is_a_reason_of_its_own() {
        let (report, _) = run(&mut session(2, b""), &text("ab", 4000));
        assert_eq!((report.finish, report.ids.len()), (FinishReason::ContextFull, 62));
    }

    #[test]
    fn unusable_requests_are_typed_errors() {
        let mut session = session(2, b"hello");
        let mut fails = |request: Request| session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(fails(text("", 4)), SessionError::Decode(DecodeError::EmptyPrompt)));
        assert!(matches!(fails(text("ab", 0)), SessionError::Decode(DecodeError::ZeroMaxNew)));
        let mut request = text("ab", 4);
        request.overrides.block = Some(16);
        assert!(matches!(
            fails(request),
            SessionError::Decode(DecodeError::Policy(PolicyError::FixedBlock { block: 4 }))
        ));
        assert!(matches!(
            fails(text(&"x".repeat(64), 1)),
            SessionError::Decode(DecodeError::PromptTooLong { prompt: 64, max_seq: 64, longest: 63 })
        ));
        let chat = Prompt::Chat { messages: vec![Message::new("user", "hi")], variables: serde_json::Map::new() };
        assert!(matches!(fails(Request::new(chat, 4)), SessionError::NoTemplate));
        let mut request = text("ab", 4);
        request.overrides.stop_strings = Some(vec![String::new()]);
        assert!(matches!(fails(request), SessionError::EmptyStopString));
        let mut request = text("ab", 4);
        request.overrides.steps = Some(0);
        assert!(matches!(fails(request), SessionError::Decode(DecodeError::Policy(PolicyError::Range { .. }))));
    }

    #[test]
    fn a_policy_that_the_model_cannot_run_fails_at_once() {
        let mock = Box::new(Mock::new(64, 258, &[8]));
        let session = Session::new(mock, bytes_tokenizer(&[]), None, DecodePolicy::greedy(MASK, 32));
        assert!(matches!(session.err(), Some(SessionError::Decode(DecodeError::Policy(PolicyError::Block { .. })))));
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        let mut request = text("ab", 20);
        request.overrides = Overrides { temperature: Some(1.0), seed: Some(1), ..Overrides::default() };
        let (first, _) = run(&mut session(2, b""), &request);
        let (second, _) = run(&mut session(2, b""), &request);
        assert_eq!(first.ids, second.ids);
        request.overrides.seed = Some(2);
        assert_ne!(run(&mut session(2, b""), &request).0.ids, first.ids);
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_report(
            answer in proptest::collection::vec(0u8..255, 0..30),
            max_new in 1usize..40,
            stop in proptest::option::of("[a-e]{1,2}"),
        ) {
            let mut request = text("ab", max_new);
            request.overrides.stop_strings = Some(stop.into_iter().collect());
            let (report, pieces) = run(&mut session(2, &answer), &request);
            prop_assert_eq!(pieces.concat(), report.text);
            prop_assert!(report.ids.len() <= max_new);
            prop_assert!(!report.ids.contains(&STOP) && !report.ids.contains(&MASK));
        }
    }
}
