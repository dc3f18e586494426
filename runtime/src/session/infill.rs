//! Filling in: a text with gaps, each of so many tokens, and what they become.
//!
//! Invariant: the text around the gaps is part of the prompt and never decoded, so whoever gave it has it to the byte. A gap
//! is decoded with the tokens around it as context, and ends early at a stop token: what follows the token up to the end of
//! the gap is not text. Every gap sees all of the text, before and behind it, or filling in is refused.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{Prompt, Request, SessionError, TextSide};
use crate::decode::policy::Attention;
use crate::decode::{DecodeError, DecodePolicy};
use crate::text::{Detokenizer, TextError, Tokenizer};

/// Tokens before a gap that its text is decoded after.
const CONTEXT: usize = 8;

/// A part of a text with gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Text that stays. Special tokens in it are special tokens, but it must not hold a mask.
    Text(String),
    /// The same in token ids.
    Ids(Vec<i32>),
    /// A gap of so many tokens.
    Gap(usize),
}

/// A text with gaps as a prompt.
#[derive(Clone, Debug)]
pub struct Infill {
    prompt: Vec<i32>,
    gaps: Vec<Range<usize>>,
    stop_ids: Vec<i32>,
}

/// What a gap has become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Its text, without special tokens.
    pub text: String,
    /// Its tokens, without the stop token that ended it.
    pub tokens: usize,
    /// Whether a stop token ended it.
    pub stopped: bool,
}

impl Infill {
    /// A text of these parts for a model; `max_seq` is the longest sequence that the model takes, in tokens. A gap ends at
    /// the stop tokens of `policy`.
    ///
    /// # Errors
    /// [`SessionError::NoInfill`] for a model whose gaps would not see what follows them, for a text without a gap, and for
    /// a mask in what stays; [`SessionError::Decode`] for gaps that do not fit, and [`SessionError::Text`] for what cannot be
    /// encoded.
    pub fn new(
        side: &TextSide,
        policy: &DecodePolicy,
        segments: &[Segment],
        max_seq: usize,
    ) -> Result<Self, SessionError> {
        let refuse = |why: String| Err(SessionError::NoInfill { why });
        if policy.attention != Attention::Full {
            return refuse("this model does not look ahead: a gap would not see the text behind it".into());
        }
        if policy.commits() {
            let why = "this way of decoding finishes a block before it looks at the next: a gap would not see the text \
                       behind it; compile the model with --sampler mdlm";
            return refuse(why.into());
        }
        let mut prompt = side.tokenizer().prefix().to_vec();
        let mut gaps = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            let ids = match segment {
                Segment::Text(text) => side.tokenizer().encode(text)?,
                Segment::Ids(ids) => ids.clone(),
                Segment::Gap(0) => return refuse(format!("segment {i} is a gap of no tokens")),
                Segment::Gap(tokens) => {
                    let length = prompt.len().saturating_add(*tokens);
                    if length > max_seq {
                        return Err(DecodeError::PromptTooLong { prompt: length, max_seq, longest: max_seq }.into());
                    }
                    gaps.push(prompt.len()..prompt.len() + tokens);
                    prompt.resize(prompt.len() + tokens, policy.mask_id);
                    continue;
                }
            };
            if ids.contains(&policy.mask_id) {
                return refuse(format!("segment {i} holds the mask token: make it a gap"));
            }
            prompt.extend(ids);
        }
        if gaps.is_empty() {
            return refuse("no segment is a gap".into());
        }
        Ok(Self { prompt, gaps, stop_ids: policy.stop_ids.clone() })
    }

    /// A request that fills it in. Nothing that is decoded ends it early, so every gap is filled.
    pub fn request(&self) -> Request {
        let mut request = Request::new(Prompt::Ids(self.prompt.clone()), 0);
        request.overrides.stop_ids = Some(Vec::new());
        request
    }

    /// The gaps as positions of the prompt, in order; they begin at [`Infill::begin`] or later.
    pub fn gaps(&self) -> &[Range<usize>] {
        &self.gaps
    }

    /// Position of the first token that is filled in.
    pub fn begin(&self) -> usize {
        self.gaps.first().map_or(0, |gap| gap.start)
    }

    /// What reads the gaps while they are filled.
    pub fn filling(&self, tokenizer: Arc<Tokenizer>) -> Filling {
        let filled = vec![Filled::default(); self.gaps.len()];
        let gaps = self.gaps.iter().cloned().enumerate().collect();
        Filling { tokenizer, gaps, filled, open: None, stop_ids: self.stop_ids.clone() }
    }
}

/// See [`Infill::filling`].
pub struct Filling {
    tokenizer: Arc<Tokenizer>,
    /// Gaps that have not ended, by their numbers.
    gaps: VecDeque<(usize, Range<usize>)>,
    filled: Vec<Filled>,
    /// The text of the first of them as far as it is read, and the position that comes next.
    open: Option<(Detokenizer, usize)>,
    stop_ids: Vec<i32>,
}

impl Filling {
    /// Takes the settled part of the sequence, and returns the text that became certain, with the gap's number.
    ///
    /// # Errors
    /// Tokens that cannot be decoded.
    pub fn settle(&mut self, ids: &[i32]) -> Result<Vec<(usize, String)>, TextError> {
        let mut pieces = Vec::new();
        while let Some((number, gap)) = self.gaps.front().cloned().filter(|(_, gap)| gap.start < ids.len()) {
            let (mut text, from) = match self.open.take() {
                Some(open) => open,
                None => (self.after(&ids[gap.start.saturating_sub(CONTEXT)..gap.start])?, gap.start),
            };
            let filled = &mut self.filled[number];
            let before = filled.text.len();
            let end = gap.end.min(ids.len());
            for &id in &ids[from..end] {
                if self.stop_ids.contains(&id) {
                    filled.stopped = true;
                    break;
                }
                filled.tokens += 1;
                filled.text += &text.push(&self.tokenizer, id)?;
            }
            if filled.stopped || end == gap.end {
                filled.text += &text.finish(&self.tokenizer)?;
                self.gaps.pop_front();
            } else {
                self.open = Some((text, end));
            }
            let piece = &self.filled[number].text[before..];
            if !piece.is_empty() {
                pieces.push((number, piece.to_owned()));
            }
            if self.open.is_some() {
                break;
            }
        }
        Ok(pieces)
    }

    /// A detokenizer that has read what stands before a gap.
    fn after(&self, context: &[i32]) -> Result<Detokenizer, TextError> {
        let mut text = Detokenizer::default();
        for &id in context {
            text.push(&self.tokenizer, id)?;
        }
        Ok(text)
    }

    /// The gaps as far as they are filled.
    pub fn filled(&self) -> &[Filled] {
        &self.filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::FinishReason;
    use crate::decode::mock::Mock;
    use crate::session::{Event, Session};
    use crate::text::tokenizer::tests::bytes_tokenizer;
    use std::ops::ControlFlow;

    const STOP: i32 = 256;
    const MASK: i32 = 257;

    fn policy() -> DecodePolicy {
        DecodePolicy { stop_ids: vec![STOP], ..DecodePolicy::llada(MASK) }
    }

    fn side(policy: DecodePolicy) -> TextSide {
        TextSide::new(bytes_tokenizer(&["<stop>", "<mask>"]), None, policy, 258)
    }

    fn infill(segments: &[Segment]) -> Result<Infill, SessionError> {
        Infill::new(&side(policy()), &policy(), segments, 64)
    }

    fn text(text: &str) -> Segment {
        Segment::Text(text.into())
    }

    #[test]
    fn gaps_become_masks_between_the_texts() {
        let infill = infill(&[text("ab"), Segment::Gap(2), Segment::Ids(vec![99]), Segment::Gap(1)]).unwrap();
        assert_eq!(infill.prompt, [97, 98, MASK, MASK, 99, MASK]);
        assert_eq!((infill.gaps(), infill.begin()), (&[2..4, 5..6][..], 2));
        assert_eq!(infill.request().max_new, 0);
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        let why = |result: Result<Infill, SessionError>| match result {
            Err(SessionError::NoInfill { why }) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(infill(&[text("ab")])).contains("no segment"));
        assert!(why(infill(&[text("ab"), Segment::Gap(0)])).contains("segment 1"));
        for gaps in [&[Segment::Gap(60), Segment::Gap(5)][..], &[text("ab"), Segment::Gap(usize::MAX)]] {
            assert!(matches!(infill(gaps), Err(SessionError::Decode(DecodeError::PromptTooLong { .. }))));
        }
        assert!(why(infill(&[Segment::Gap(1), text("a<mask>b")])).contains("segment 1 holds"));
        let ahead = |policy: DecodePolicy| why(Infill::new(&side(policy.clone()), &policy, &[Segment::Gap(1)], 64));
        assert!(ahead(DecodePolicy::greedy(MASK, 4)).contains("look ahead"));
        assert!(ahead(DecodePolicy::bd3lm(MASK, None, 4)).contains("--sampler mdlm"));
    }

    #[test]
    fn settled_tokens_become_the_text_of_their_gap_and_end_at_a_stop_token() {
        let infill = infill(&[text("é"), Segment::Gap(3), text("xyz"), Segment::Gap(2), Segment::Gap(2)]).unwrap();
        let mut filling = infill.filling(side(policy()).tokenizer());
        let whole = ["é".as_bytes(), b"a", "ß".as_bytes(), b"xyz"].concat();
        let mut ids: Vec<i32> = whole.iter().map(|&b| i32::from(b)).collect();
        ids.extend([STOP, 97, 0xC3, 0xC3]);
        // A character that is not whole is held back.
        assert_eq!(filling.settle(&ids[..4]).unwrap(), [(0, "a".into())]);
        assert_eq!(filling.settle(&ids[..6]).unwrap(), [(0, "ß".into())]);
        assert_eq!(filling.settle(&ids[..8]).unwrap(), []);
        assert_eq!(filling.settle(&ids).unwrap(), [(2, "\u{FFFD}\u{FFFD}".into())]);
        let filled = |text: &str, tokens, stopped| Filled { text: text.into(), tokens, stopped };
        assert_eq!(
            filling.filled(),
            [filled("aß", 3, false), filled("", 0, true), filled("\u{FFFD}\u{FFFD}", 2, false)]
        );
    }

    #[test]
    fn a_session_fills_every_gap_and_settles_what_it_reports() {
        let tokenizer = || bytes_tokenizer(&["<stop>", "<mask>"]);
        let mut session =
            Session::with_executor(Box::new(Mock::new(64, 258, &[64])), tokenizer(), None, policy()).unwrap();
        let infill = infill(&[text("ab"), Segment::Gap(5), text("cd"), Segment::Gap(3), text("!")]).unwrap();
        let mut filling = infill.filling(session.tokenizer());
        let mut settled = Vec::new();
        let report = session
            .generate(&infill.request(), &mut |event| {
                if let Event::Settled { ids } = event {
                    settled = ids.to_vec();
                    filling.settle(ids).unwrap();
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!((report.finish, settled.len()), (FinishReason::MaxTokens, infill.prompt.len()));
        assert_eq!(settled[infill.begin()..], report.ids);
        assert!(!settled.contains(&MASK));
        assert_eq!((&settled[7..9], settled.last()), (&[99, 100][..], Some(&33)));
        let read = filling.filled().iter().zip(infill.gaps());
        for (filled, gap) in read {
            let ids = settled[gap.clone()].iter().take_while(|id| **id != STOP).copied().collect::<Vec<_>>();
            assert_eq!(filled.tokens, ids.len());
        }
    }
}
