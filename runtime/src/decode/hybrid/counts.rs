//! What speculation made and cost, for a report.
//!
//! Plain data: nothing here decides anything.

use std::time::Duration;

use serde::Serialize;

/// Acceptance of a position of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// Drafts in which everything before it was accepted, so that it was looked at.
    pub tried: usize,
    /// Those in which it was accepted too.
    pub accepted: usize,
}

/// Counts of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Times that tokens were decided, by a pass of the verifier but for [`Counts::unverified`]; each gives at least one.
    pub rounds: usize,
    /// Those of them without a draft.
    pub undrafted: usize,
    /// Those of them that had none because the drafter's caches or steps had no room for one.
    pub no_room: usize,
    /// Those of them whose draft was taken without a pass of the verifier, as a request may ask for.
    pub unverified: usize,
    /// Tokens that were proposed to the verifier.
    pub drafted: usize,
    /// Those of them that are part of the text.
    pub accepted: usize,
    /// All tokens that rounds gave.
    pub tokens: usize,
    /// Acceptance by position of the draft.
    pub by_position: Vec<Tried>,
    /// Passes of the drafter, those among them that only caught up.
    pub draft_passes: usize,
    /// Passes of the verifier, the prompt's left out.
    pub verify_passes: usize,
    /// Time of the drafter.
    pub draft: Duration,
    /// Time of the verifier, the prompt's left out.
    pub verify: Duration,
}

impl Counts {
    /// Tokens that a round gives.
    pub fn tokens_per_round(&self) -> f64 {
        self.tokens as f64 / self.rounds.max(1) as f64
    }

    /// Tokens for every pass of either side.
    pub fn tokens_per_pass(&self) -> f64 {
        self.tokens as f64 / (self.draft_passes + self.verify_passes).max(1) as f64
    }

    /// Counts a round: a draft of which the first tokens were looked at and `kept` or not, and `tokens` that came of it.
    pub(super) fn round(&mut self, drafted: usize, kept: &[bool], tokens: usize) {
        self.rounds += 1;
        self.undrafted += usize::from(drafted == 0);
        self.drafted += drafted;
        self.accepted += kept.iter().filter(|kept| **kept).count();
        self.tokens += tokens;
        self.by_position.resize(self.by_position.len().max(drafted), Tried::default());
        for (position, kept) in self.by_position.iter_mut().zip(kept) {
            position.tried += 1;
            position.accepted += usize::from(*kept);
        }
    }

    /// Adds those of another call.
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.undrafted += other.undrafted;
        self.no_room += other.no_room;
        self.unverified += other.unverified;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.tokens += other.tokens;
        self.by_position.resize(self.by_position.len().max(other.by_position.len()), Tried::default());
        for (own, other) in self.by_position.iter_mut().zip(&other.by_position) {
            own.tried += other.tried;
            own.accepted += other.accepted;
        }
        self.draft_passes += other.draft_passes;
        self.verify_passes += other.verify_passes;
        self.draft += other.draft;
        self.verify += other.verify;
    }
}
