//! Constraints of a model, made when first asked for.
//!
//! Invariant: constraints of one model share one vocabulary, by which they are told from others'. The last few are kept, as
//! far as they are not too large together, since clients ask for the same again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::constrain::{Constraint, ConstraintError, Grammar, Vocabulary};
use crate::text::Tokenizer;

/// Constraints that are kept, and their bytes together.
const KEPT: usize = 16;
const KEPT_BYTES: usize = 64 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Constraints {
    vocabulary: OnceLock<Result<Arc<Vocabulary>, ConstraintError>>,
    /// The last ones behind.
    kept: Mutex<VecDeque<(Grammar, Arc<Constraint>)>>,
}

impl Constraints {
    /// The constraint of a grammar, in the tokens of `tokenizer` below `vocab` that are not `excluded`.
    pub(super) fn get(
        &self,
        grammar: &Grammar,
        (tokenizer, vocab, excluded): (&Tokenizer, usize, &[i32]),
    ) -> Result<Arc<Constraint>, ConstraintError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |kept: &VecDeque<(Grammar, Arc<Constraint>)>| kept.iter().position(|(known, _)| known == grammar);
        {
            let mut kept = kept();
            if let Some(last) = same(&kept).and_then(|at| kept.remove(at)) {
                let constraint = Arc::clone(&last.1);
                kept.push_back(last);
                return Ok(constraint);
            }
        }
        let vocabulary = self.vocabulary.get_or_init(|| Vocabulary::new(tokenizer, vocab, excluded).map(Arc::new));
        let constraint = Arc::new(Constraint::new(grammar, vocabulary.as_ref().map_err(Clone::clone)?)?);
        let mut kept = kept();
        // Somebody may have made the same meanwhile.
        if same(&kept).is_none() {
            kept.push_back((grammar.clone(), Arc::clone(&constraint)));
        }
        while kept.len() > KEPT || kept.iter().map(|(_, kept)| kept.bytes()).sum::<usize>() > KEPT_BYTES {
            kept.pop_front();
        }
        Ok(constraint)
    }

    /// Whether a constraint is one of these.
    pub(super) fn made(&self, constraint: &Constraint) -> bool {
        self.vocabulary.get().is_some_and(|own| own.as_ref().is_ok_and(|own| Arc::ptr_eq(own, constraint.vocabulary())))
    }
}
