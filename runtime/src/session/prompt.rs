//! What a request asks for, in tokens: its prompt and what ends the answer.
//!
//! Invariant: a raw text and ids may hold control tokens, a conversation holds those of its template only, unless the
//! request says otherwise. A stop string that could never match is an error.

use super::{Prompt, Request, Session, SessionError};
use crate::decode::DecodePolicy;

impl Session {
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
    pub(super) fn split_stops(&self, policy: &mut DecodePolicy) -> Result<(), SessionError> {
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
