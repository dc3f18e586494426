//! `--verify-each`: every target's passes, held to what they say they keep, on a cut of the model.

use std::path::Path;

use dlx_ir::{Error, VerifiedModule};
use dlx_passes::{Step, parse_pipeline};
use dlx_targets::{Settings, Target, WeightSource};

use super::Compile;
use super::foreign::{Foreign, is_onnx};
use super::input::Input;
use super::programs::{Checked as Finite, find_targets};
use super::settings::settings;
use crate::check::cut::{Corners, cut, cut_pipeline};
use crate::check::each::{Checked, SEED, verify_each, verify_target};
use crate::options::CompileOptions;

impl Compile<'_> {
    /// Runs every pass of every target on seeded inputs.
    ///
    /// # Errors
    /// A pass that does not keep what it says, named with the node and its source tensors; or one that cannot be run.
    pub(super) fn verify(
        &self,
        targets: &[&'static Target],
        input: &Input<'_>,
        settings: &Settings,
    ) -> Result<(), Error> {
        let tolerances = &self.options.tolerances;
        let weights = Finite { weights: &*input.weights, allow_nonfinite: self.options.allow_nonfinite };
        let patterns: Vec<String> = self.options.keep.iter().map(|(name, _)| name.clone()).collect();
        let cut = cut(&input.imported.module, &patterns)?;
        let corners = Corners { weights: &weights, cut: &cut };
        for target in targets {
            let pipeline = self.options.pipeline.clone().map_or_else(|| (target.pipeline)(settings), Ok)?;
            let (steps, note) = cut_pipeline(&parse_pipeline(&pipeline)?, &cut);
            let notes: Vec<String> = cut.notes.iter().cloned().chain(note).collect();
            self.watch.verifying(target.name, &notes);
            let mut tell = |checked: &Checked| self.watch.checked(target.name, checked);
            let (mut all, module) = verify_each(&cut.module, &steps, &corners, SEED, tolerances, &mut tell)?;
            all.extend(verify_target((target, settings), &module, &corners, SEED, tolerances, &mut tell)?);
            if let Some(error) = all.iter().find_map(Checked::error) {
                return Err(Error { place: format!("target {}: {}", target.name, error.place), ..error });
            }
        }
        Ok(())
    }
}

/// A model, the passes of its target, and where the weights lie: what is bisected.
///
/// # Errors
/// What cannot be read, or options that do not fit.
pub fn with_passes<T>(
    model: &Path,
    options: &CompileOptions,
    work: impl FnOnce(&VerifiedModule, &[Step], &dyn WeightSource) -> Result<T, Error>,
) -> Result<T, Error> {
    let targets = find_targets(options)?;
    let foreign = is_onnx(model).then(|| Foreign::read(model, options)).transpose()?;
    let input = match &foreign {
        Some(foreign) => foreign.input()?,
        None => Input::read(model, options)?,
    };
    let settings = settings(options, &input.imported);
    let pipeline = options.pipeline.clone().map_or_else(|| (targets[0].pipeline)(&settings), Ok)?;
    let weights = Finite { weights: &*input.weights, allow_nonfinite: options.allow_nonfinite };
    work(&input.imported.module, &parse_pipeline(&pipeline)?, &weights)
}
