//! Hybrid decoding: a diffusion model drafts several tokens in one pass, a model with causal rows verifies them in one pass.
//!
//! What comes out has the law of the verifier decoding alone, whatever the drafter says: at temperature 0 its very tokens,
//! otherwise its distribution. The rules are in [`accept`], why they are exact and where they would not be in
//! `docs/hybrid.md`. Like a [`Sequence`](super::Sequence), a decode ([`rounds`]) is a state machine that asks for passes – of
//! either model – and is given what they said; [`speculate`] runs one.
//!
//! Invariant: nothing that a request asks for is left out of the verifier's law, and what does not keep that law is asked for
//! by name ([`Verdict`]). The caches of both sides hold rows of tokens that stay, and behind them what the next pass overwrites.

pub mod accept;
mod controller;
mod costs;
mod counts;
mod drafter;
mod rounds;
mod verifier;

pub use controller::Controller;
pub use costs::{CostTable, Side};
pub use counts::{Counts, Tried};
pub use drafter::Method;

use self::drafter::Drafter;
use self::rounds::Hybrid;
use self::verifier::Verifier;
use super::driver::Driver;
use super::error::DecodeError;
use super::policy::{DecodePolicy, Reveal};
use super::resolve::Resolved;
use super::sequence::{Decoded, Observer};
use crate::exec::Executor;

/// How many tokens are drafted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Always so many, as far as there is room.
    Fixed(usize),
    /// What makes most tokens per second, also none.
    Auto,
}

/// Who says whether a drafted token is accepted. All but the first say something else than the verifier's law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The verifier, by the rule that keeps its law.
    Verifier,
    /// A coin with this probability, to measure speed at a given acceptance. What comes out is nobody's text.
    Coin(f64),
    /// The drafter of the first tokens of a draft, as long as it is at least so sure of them; then the verifier. A draft that
    /// is sure as a whole takes no pass of the verifier.
    Sure(f32),
    /// The drafter wherever it is at least so sure; elsewhere stands what the verifier says behind the draft as it is. Every
    /// round gives a whole draft (semi-autoregressive decoding).
    Overwrite(f32),
    /// The verifier; behind the token that replaces the first rejected one, the drafter as long as it is surer than this (the
    /// top-up of S2D2, 2603.25702, as far as it leaves no gap).
    TopUp(f32),
}

impl Verdict {
    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verifier => "verifier",
            Self::Coin(_) => "coin",
            Self::Sure(_) => "skip",
            Self::Overwrite(_) => "semi-ar",
            Self::TopUp(_) => "s2d2",
        }
    }
}

/// What a call does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How drafts may be made; of several ways, the one that makes most tokens per second is taken.
    pub methods: &'static [Method],
    /// How long they are.
    pub length: Length,
    /// Which positions a pass of several reveals; a threshold of 0.9 if not given.
    pub reveal: Option<Reveal>,
    /// Who accepts.
    pub verdict: Verdict,
}

/// The models of a call.
pub enum Models<'e> {
    /// A drafter with its policy, and the rows of so many first tokens of the prompt that its first slot holds.
    Two {
        /// Runs the drafter.
        draft: &'e mut dyn Executor,
        /// Its own policy.
        policy: &'e DecodePolicy,
        /// Positions whose rows it has.
        held: usize,
        /// Runs the verifier.
        verify: &'e mut dyn Executor,
    },
    /// One that drafts with its own mask and verifies with causal rows, in a slot each.
    One(&'e mut dyn Executor),
}

/// What was decoded, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Speculated {
    /// As of any decode. `stored` counts rows of the verifier.
    pub decoded: Decoded,
    /// Positions before this one have their permanent rows in the drafter's caches.
    pub drafter_stored: usize,
    /// What speculation made and cost.
    pub counts: Counts,
    /// Tokens that the verifier knows and never chose, because they mean something else to the drafter, or nothing.
    pub banned: Vec<i32>,
}

/// Decodes up to `max_new` tokens after `prompt` as the verifier would, whose policy `policy` is.
///
/// # Errors
/// Models that cannot work together on this request; whatever an executor reports later.
#[allow(clippy::too_many_arguments, reason = "they are those of `decode`, and the two that speculation adds")]
pub fn speculate(
    models: Models<'_>,
    policy: Resolved,
    plan: &Plan,
    controller: &mut Controller,
    prompt: &[i32],
    max_new: usize,
    held: usize,
    observer: &mut Observer<'_>,
) -> Result<Speculated, DecodeError> {
    match models {
        Models::Two { draft, policy: own, held: drafted, verify } => {
            let banned = banned(own, &*draft, &*verify);
            let verifier = Verifier::new(policy, banned, &*verify, 0)?;
            let drafter = Drafter::new(own, &verifier, &*draft, plan.methods, plan.reveal.clone(), 0)?;
            let mut hybrid = Hybrid::new(drafter, verifier, plan, prompt, max_new)?;
            hybrid.keep(drafted, held);
            let (mut draft, mut verify) = (Driver::new(draft), Driver::new(verify));
            hybrid.run(
                &mut |side, pass, take| match side {
                    Side::Draft => draft.alone(pass, take),
                    Side::Verify => verify.alone(pass, take),
                },
                controller,
                observer,
            )?;
            hybrid.finish()
        }
        Models::One(executor) => {
            executor.reserve(2)?;
            let own = policy.policy.clone();
            let verifier = Verifier::new(policy, Vec::new(), &*executor, 1)?;
            let drafter = Drafter::new(&own, &verifier, &*executor, plan.methods, plan.reveal.clone(), 0)?;
            let mut hybrid = Hybrid::new(drafter, verifier, plan, prompt, max_new)?;
            hybrid.keep(held, 0);
            let mut driver = Driver::new(executor);
            hybrid.run(&mut |_, pass, take| driver.alone(pass, take), controller, observer)?;
            hybrid.finish()
        }
    }
}

/// Tokens that the verifier must not choose: the drafter would read its mask as a place to fill in, and knows nothing of ids
/// beyond its own.
fn banned(drafter: &DecodePolicy, draft: &dyn Executor, verify: &dyn Executor) -> Vec<i32> {
    let vocab = |executor: &dyn Executor| i32::try_from(executor.vocab()).unwrap_or(i32::MAX);
    let mask = Some(drafter.mask_id).filter(|id| (0..vocab(verify)).contains(id));
    let mut banned: Vec<i32> = mask.into_iter().chain(vocab(draft)..vocab(verify)).collect();
    banned.dedup();
    banned
}

#[cfg(test)]
mod tests;
