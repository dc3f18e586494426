//! What a request aims at: a setting picked from those measured of the model, and the pace of this machine.
//!
//! The pace is how long a pass takes here beside the machine that measured. A probe says it first; afterwards every call
//! that picked a setting does. It rises at once and falls by a tenth per call, so that a deadline is met on a machine that
//! has just become slow. It decides which measured setting a deadline gets, never what a setting generates.

use std::time::{Duration, Instant};

use super::{Report, Request, Session, SessionError};
use crate::decode::{DecodeError, Overrides};
use crate::policies::{Aim, Call, Chosen, Policies};

/// Runs of a probe; the median counts.
const PROBES: usize = 3;

impl Session {
    /// The measured settings of the model.
    pub fn policies(&self) -> Option<&Policies> {
        self.policies.as_ref()
    }

    /// Gives the session measured settings, or takes them away.
    ///
    /// # Errors
    /// A setting that this model cannot run.
    pub fn set_policies(&mut self, policies: Option<Policies>) -> Result<(), SessionError> {
        if let Some(policies) = &policies {
            policies.check().map_err(|why| SessionError::Policies { why })?;
            for (i, point) in policies.points.iter().enumerate() {
                let checked = self.check(&point.settings.over(&Overrides::default()));
                checked.map_err(|e| SessionError::Policies { why: format!("point {i}: {e}") })?;
            }
        }
        (self.policies, self.pace) = (policies, None);
        Ok(())
    }

    /// Time of a pass over one block at the beginning of the caches, with the head. What the caches held is lost.
    ///
    /// # Errors
    /// When the model fails.
    pub fn probe(&mut self) -> Result<Duration, SessionError> {
        self.held.clear();
        let largest = self.executor.step_buckets().last().copied().unwrap_or(1);
        let rows = self.text.policy().block.min(largest).min(self.executor.max_seq()).max(1);
        Ok(crate::probe::pass(&mut *self.executor, rows, PROBES).map_err(DecodeError::from)?)
    }

    /// Finds the pace of this machine, which the first request with a deadline to meet does otherwise, in its own time.
    ///
    /// # Errors
    /// When the model fails.
    pub fn measure_pace(&mut self) -> Result<(), SessionError> {
        if let Some(there) = self.policies.as_ref().map(|policies| policies.probe) {
            self.pace = Some(self.probe()?.as_secs_f64() / there);
        }
        Ok(())
    }

    /// The setting for a request that aims at something.
    pub(super) fn choose(&mut self, request: &Request) -> Result<Option<Chosen>, SessionError> {
        let Some(aim) = request.aim else { return Ok(None) };
        let Overrides { block, cache, steps, schedule, reveal, confidence, .. } = &request.overrides;
        let given = [
            ("block", block.is_some()),
            ("cache", cache.is_some()),
            ("steps", steps.is_some()),
            ("schedule", schedule.is_some()),
            ("reveal", reveal.is_some()),
            ("confidence", confidence.is_some()),
        ];
        if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(SessionError::Aim { why: format!("it fixes `{field}`: leave that out, or the aim") });
        }
        if self.policies.is_some() && self.pace.is_none() && matches!(aim, Aim::Within(_)) {
            self.measure_pace()?;
        }
        let untuned = "nothing was measured of this model: run `dlxc tune` on its artifact";
        let policies = self.policies.as_ref().ok_or_else(|| SessionError::Aim { why: untuned.into() })?;
        let call = Call { prompt: self.text.encode(request)?.len(), max_new: request.max_new };
        let chosen = policies.pick(aim, &call, self.pace.unwrap_or(1.0)).map_err(|why| SessionError::Aim { why })?;
        if chosen.settings.draft.is_some() && request.speculate.is_none() && !self.speculator.has_drafter() {
            let why = "the measured setting drafts with another model: give the one it was tuned with (`--draft`)";
            return Err(SessionError::Aim { why: why.into() });
        }
        Ok(Some(chosen))
    }

    /// When a call ends in any case. A pass that has begun is not broken off, so the last one must begin in time.
    pub(super) fn end(request: &Request, begin: Instant, chosen: Option<&Chosen>) -> Option<Instant> {
        let (Some(Aim::Within(limit)), Some(chosen)) = (request.aim, chosen) else { return request.deadline };
        let pass = Duration::try_from_secs_f64(chosen.pass).unwrap_or(limit);
        let end = begin.checked_add(limit.saturating_sub(pass));
        request.deadline.into_iter().chain(end).min()
    }

    /// Learns the pace from a call.
    pub(super) fn learn(&mut self, report: &Report) {
        let (Some(policies), Some(chosen)) = (&self.policies, &report.chosen) else { return };
        let passes = report.passes.denoise + report.passes.commit;
        let expected = policies.points.get(chosen.point).map_or(0.0, |p| p.cost.pass) * passes as f64;
        if expected > 0.0 {
            let now = report.total.saturating_sub(report.times.prefill).as_secs_f64() / expected;
            self.pace = Some(self.pace.map_or(now, |before| now.max(0.9 * before + 0.1 * now)));
        }
    }
}
