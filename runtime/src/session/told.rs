//! How likely the tokens of an answer were, told in order of their positions together with their text.
//!
//! Invariant: a token is told once, when text that is shown holds its end, or in the end. It decides nothing.

use std::collections::BTreeMap;

use crate::decode::sample::Logprob;

/// A token of an answer, and how likely it was where it was decided.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Told {
    /// The token.
    pub token: i32,
    /// Where its text begins in the answer, in characters.
    pub offset: usize,
    /// Natural logarithm of its probability in the law that it was chosen from; nothing where the prompt gave the token,
    /// between masks.
    pub logprob: Option<f32>,
    /// The most likely tokens there and their logarithms, by falling probability.
    pub top: Vec<(i32, f32)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// By position: what was decided and is not settled.
    decided: BTreeMap<usize, Logprob>,
    tokens: Vec<Told>,
    /// Where the texts of the first tokens end, in bytes; the others' texts are not complete.
    ends: Vec<usize>,
    bytes: usize,
    characters: usize,
    /// So many first tokens were told.
    told: usize,
}

impl Telling {
    /// A position has got a token, perhaps another one than before.
    pub(super) fn decide(&mut self, position: usize, logprob: Logprob) {
        self.decided.insert(position, logprob);
    }

    /// The next token of the answer, and the text that became certain with it.
    pub(super) fn push(&mut self, position: usize, token: i32, piece: &str) {
        let decided = self.decided.remove(&position).filter(|decided| decided.token == token);
        let (logprob, top) = decided.map_or((None, Vec::new()), |d| (Some(d.logprob), d.top));
        self.tokens.push(Told { token, offset: self.characters, logprob, top });
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.characters += piece.chars().count();
            self.ends.resize(self.tokens.len(), self.bytes);
        }
    }

    /// The tokens that so many bytes of shown text hold and that were not told before.
    pub(super) fn with_text(&mut self, shown: usize) -> &[Told] {
        let until = self.ends.partition_point(|end| *end <= shown);
        self.until(until)
    }

    /// The tokens that were not told before.
    pub(super) fn rest(&mut self) -> &[Told] {
        self.until(self.tokens.len())
    }

    fn until(&mut self, until: usize) -> &[Told] {
        let from = self.told;
        self.told = until.max(from);
        &self.tokens[from..self.told]
    }

    /// All tokens.
    pub(super) fn finish(self) -> Vec<Told> {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(telling: &mut Telling, shown: usize) -> Vec<i32> {
        telling.with_text(shown).iter().map(|told| told.token).collect()
    }

    #[test]
    fn tokens_are_told_with_the_end_of_their_text() {
        let mut telling = Telling::default();
        let decided = Logprob { token: 7, logprob: -0.5, top: vec![(7, -0.5)] };
        telling.decide(4, Logprob { token: 9, ..decided.clone() });
        telling.decide(4, decided);
        telling.push(4, 7, "é");
        // A token that is half a character waits for the other half.
        telling.push(5, 1, "");
        assert!(shown(&mut telling, 1).is_empty());
        assert_eq!(shown(&mut telling, 2), [7]);
        telling.push(6, 2, "中b");
        assert_eq!((shown(&mut telling, 5), shown(&mut telling, 6)), (vec![], vec![1, 2]));
        telling.push(7, 3, "");
        assert!(shown(&mut telling, 6).is_empty());
        assert_eq!(telling.rest().len(), 1);
        assert!(telling.rest().is_empty());
        let all = telling.finish();
        assert_eq!(all.iter().map(|told| told.offset).collect::<Vec<_>>(), [0, 1, 1, 3]);
        assert_eq!((all[0].logprob, all[1].logprob), (Some(-0.5), None), "the last decision counts");
    }
}
