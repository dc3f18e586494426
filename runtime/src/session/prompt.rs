//! The text side of a model, and what a request asks for in tokens: its prompt and what ends the answer.
//!
//! Invariant: a raw text and ids may hold control tokens, a conversation holds those of its template only, unless the
//! request says otherwise. A stop string that could never match is an error.

use std::sync::Arc;

use super::constraints::Constraints;
use super::{Prompt, Request, SessionError};
use crate::constrain::{Constraint, Grammar};
use crate::decode::{DecodeError, DecodePolicy, Overrides};
use crate::text::{ChatTemplate, Controls, Tokenizer};

/// What turns requests into tokens and tokens into text; it runs nothing, so any thread may ask it.
pub struct TextSide {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<ChatTemplate>,
    policy: DecodePolicy,
    controls: Controls,
    /// Tokens of the model.
    vocab: usize,
    constraints: Constraints,
}

impl TextSide {
    /// The text side of a model of `vocab` tokens with this policy.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, policy: DecodePolicy, vocab: usize) -> Self {
        let others = policy.stop_ids.iter().copied().chain([policy.mask_id]).chain(policy.hidden_id);
        let controls = Controls::new(&tokenizer, others);
        let constraints = Constraints::default();
        Self { tokenizer: Arc::new(tokenizer), template, policy, controls, vocab, constraints }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The model's own decode policy.
    pub fn policy(&self) -> &DecodePolicy {
        &self.policy
    }

    /// Whether the model has a chat template that reads this variable.
    pub fn template_reads(&self, variable: &str) -> bool {
        self.template.as_ref().is_some_and(|template| template.reads(variable))
    }

    /// The model's policy with a request's changes, its stop strings told apart from stop tokens.
    ///
    /// # Errors
    /// A stop string that could never match, or a change that the model does not allow.
    pub fn policy_of(&self, overrides: &Overrides) -> Result<DecodePolicy, SessionError> {
        let mut policy = self.policy.with(overrides).map_err(DecodeError::from)?;
        self.split_stops(&mut policy)?;
        Ok(policy)
    }

    /// A constraint for requests of this model. The last ones are kept, so that asking again costs nothing.
    ///
    /// # Errors
    /// [`SessionError::Constraint`].
    pub fn constraint(&self, grammar: &Grammar) -> Result<Arc<Constraint>, SessionError> {
        let policy = &self.policy;
        let own = [policy.mask_id].into_iter().chain(policy.hidden_id);
        let excluded: Vec<i32> = policy.stop_ids.iter().chain(&policy.suppress_ids).copied().chain(own).collect();
        Ok(self.constraints.get(grammar, (&self.tokenizer, self.vocab, &excluded))?)
    }

    /// Refuses constraints of other models, and answers that cannot have one.
    pub(super) fn check_constraint(&self, request: &Request) -> Result<(), SessionError> {
        match &request.constraint {
            Some(_) if request.speculate.is_some() => Err(SessionError::ConstrainedDraft),
            Some(constraint) if !self.constraints.made(constraint) => Err(SessionError::OtherVocabulary),
            _ => Ok(()),
        }
    }

    /// Token ids of a request's prompt.
    ///
    /// # Errors
    /// [`SessionError::Text`], [`SessionError::NoTemplate`] or [`SessionError::MaskInChat`].
    pub fn encode(&self, request: &Request) -> Result<Vec<i32>, SessionError> {
        match &request.prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => Ok([self.prefix(request)?, self.tokenizer.encode(text)?].concat()),
            Prompt::Chat { messages, variables } => {
                let template = self.template.as_ref().ok_or(SessionError::NoTemplate)?;
                if request.allow_special {
                    return Ok(self.tokenizer.encode(&template.render(messages, variables)?)?);
                }
                let ids = self.controls.encode(&self.tokenizer, template, messages, variables)?;
                if ids.contains(&self.policy.mask_id) { Err(SessionError::MaskInChat) } else { Ok(ids) }
            }
        }
    }

    /// Token ids of a text whose control tokens are text, too.
    ///
    /// # Errors
    /// [`SessionError::Text`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i32>, SessionError> {
        Ok(self.controls.encode_plain(&self.tokenizer, text)?)
    }

    /// What the tokenizer puts before the request's prompt.
    pub(super) fn prefix(&self, request: &Request) -> Result<Vec<i32>, SessionError> {
        let prefix = self.tokenizer.prefix();
        match &request.prompt {
            Prompt::Text(text) if !request.no_prefix && !prefix.is_empty() => {
                let given = self.tokenizer.encode(text)?.starts_with(prefix);
                Ok(if given { Vec::new() } else { prefix.to_vec() })
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Adds the tokens whose text is a stop string: special tokens are no part of the answer's text.
    fn split_stops(&self, policy: &mut DecodePolicy) -> Result<(), SessionError> {
        let special = self.tokenizer.special_tokens();
        for stop in &policy.stop_strings {
            if stop.is_empty() {
                return Err(SessionError::EmptyStopString);
            }
            let longest = special.iter().filter(|(_, token)| stop.contains(token.as_str())).max_by_key(|t| t.1.len());
            match longest {
                None => {}
                Some((&id, token)) if token == stop => {
                    if id == policy.mask_id || policy.suppress_ids.contains(&id) {
                        return Err(SessionError::StopNeverComes { stop: stop.clone() });
                    }
                    policy.stop_ids.push(id);
                }
                Some((_, token)) => {
                    return Err(SessionError::StopAroundToken { stop: stop.clone(), token: token.clone() });
                }
            }
        }
        Ok(())
    }
}
