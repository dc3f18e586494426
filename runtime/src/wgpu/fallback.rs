//! The self-test of a wgpu program, and what replaces a kernel that fails it.
//!
//! The fastest variant of every kernel is tried first. When results are wrong, the variants that need nothing are tried:
//! if these are wrong too the program does not load. Else the faster ones are put back role by role, and a role that is
//! wrong keeps the fastest variant that is not.
//!
//! Invariant: the choice follows from the artifact, the device's features and its results, and never from how long something
//! took, since variants round differently and the same seed must give the same tokens at every load. A replacement is
//! recorded in [`WgpuExecutor::replaced`]; there is no silent one.

use std::collections::{BTreeMap, BTreeSet};

use dlx_ir::EntryKind;

use super::executor::WgpuExecutor;
use super::pipelines::fastest;
use super::plan::Kernel;
use super::replaced::{Replaced, needs};
use crate::exec::ExecError;
use crate::selftest::{GoldenVectors, SelfTest, SelfTestError, check};

impl WgpuExecutor {
    /// Runs the golden vectors and replaces kernels that fail.
    ///
    /// # Errors
    /// When no choice of variants gives the recorded results, or the device fails.
    pub fn self_test(&mut self, golden: &GoldenVectors) -> Result<(), SelfTestError> {
        let fast = self.pipelines.chosen().to_vec();
        match check(self, golden, SelfTest::Whole) {
            Ok(()) => {}
            // No other kernel makes these right.
            Err(error @ (SelfTestError::Mismatch | SelfTestError::Exec(ExecError::DeviceLost(_)))) => {
                return Err(error);
            }
            Err(_) => self.repair(golden, &fast)?,
        }
        self.reset_counters();
        Ok(())
    }

    /// Finds for every role the fastest variants that are right, beginning with those that need nothing.
    fn repair(&mut self, golden: &GoldenVectors, fast: &[usize]) -> Result<(), SelfTestError> {
        let mut current: Vec<usize> = self.plan.kernels.iter().map(last).collect();
        self.choose(&current)?;
        check(self, golden, SelfTest::Whole)?;
        for role in self.roles() {
            let most = self.plan.kernels.iter().map(last).max().unwrap_or(0);
            let mut reason = None;
            for skip in 0..=most {
                let candidate = self.with_role(&current, &role, |i, k| (fast[i] + skip).min(last(k)));
                if candidate == current {
                    break;
                }
                match self
                    .choose(&candidate)
                    .map_err(SelfTestError::from)
                    .and_then(|()| check(self, golden, SelfTest::Whole))
                {
                    Ok(()) => {
                        current = candidate;
                        break;
                    }
                    Err(error) => reason = reason.or(Some(error.to_string())),
                }
            }
            if let Some(reason) = reason {
                self.report(&role, fast, &current, reason);
            }
        }
        Ok(self.choose(&current)?)
    }

    /// Runs the kernels of each role in a variant that many steps slower than the fastest for this device, or in the plain one
    /// if there are fewer. Gives what the variants in use need, by role.
    ///
    /// # Errors
    /// A variant that the driver does not compile; the old ones stay in use.
    pub fn slow_down(&mut self, by: &dyn Fn(&str) -> usize) -> Result<BTreeMap<String, String>, ExecError> {
        let kernels = self.plan.kernels.iter();
        let slower = kernels.map(|k| fastest(&self.device, k).saturating_add(by(&k.role)).min(last(k)));
        let chosen: Vec<usize> = slower.collect();
        self.choose(&chosen)?;
        // Of a role some shapes have a faster variant, and others only the plain one.
        let mut in_use = BTreeMap::new();
        for (kernel, v) in self.plan.kernels.iter().zip(chosen) {
            let variant = &kernel.variants[v];
            let named = in_use.entry(kernel.role.clone()).or_insert_with(|| needs(variant));
            if !variant.needs.is_empty() {
                *named = needs(variant);
            }
        }
        Ok(in_use)
    }

    /// Roles of the kernels that compute a value of the step that `rows` rows run in, behind the value before it.
    pub fn roles_of(&self, rows: usize, value: &str) -> BTreeSet<String> {
        let Some(entry) = self.entry(EntryKind::Step, rows).map(|e| &self.plan.entries[e]) else {
            return BTreeSet::new();
        };
        let Some(at) = entry.values.iter().position(|v| v.name == value) else { return BTreeSet::new() };
        let first = if at == 0 { 0 } else { entry.values[at - 1].after };
        let dispatches = entry.dispatches.iter().take(entry.values[at].after).skip(first);
        dispatches.map(|d| self.plan.kernels[d.kernel].role.clone()).collect()
    }

    fn choose(&mut self, chosen: &[usize]) -> Result<(), ExecError> {
        self.pipelines.choose(&self.device, &self.plan, chosen).map_err(|f| ExecError::Device(f.error.to_string()))
    }

    fn roles(&self) -> BTreeSet<String> {
        self.plan.kernels.iter().map(|k| k.role.clone()).collect()
    }

    /// A choice with other variants for the kernels of one role.
    fn with_role(&self, choice: &[usize], role: &str, of: impl Fn(usize, &Kernel) -> usize) -> Vec<usize> {
        let kernels = self.plan.kernels.iter().zip(choice).enumerate();
        kernels.map(|(i, (kernel, old))| if kernel.role == role { of(i, kernel) } else { *old }).collect()
    }

    fn report(&mut self, role: &str, from: &[usize], to: &[usize], reason: String) {
        let mut kernels = self.plan.kernels.iter().zip(from.iter().zip(to));
        let Some((kernel, (from, to))) = kernels.find(|(k, (from, to))| k.role == role && from != to) else { return };
        let (now, instead_of) = (needs(&kernel.variants[*to]), needs(&kernel.variants[*from]));
        self.replaced.push(Replaced { role: role.into(), now, instead_of, reason });
    }
}

fn last(kernel: &Kernel) -> usize {
    kernel.variants.len() - 1
}
