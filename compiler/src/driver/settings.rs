//! What options and model together decide about the targets' passes.

use dlx_ir::{DType, Error};
use dlx_runtime::decode::policy::Attention;
use dlx_targets::{Settings, Target};

use crate::hf::Imported;
use crate::options::{CompileOptions, QuantSpec};

/// Rows of the KV caches when neither the user nor the checkpoint asks for fewer.
const DEFAULT_MAX_SEQ: usize = 4096;

/// What is asked for, and else what suits the model.
pub(super) fn settings(options: &CompileOptions, imported: &Imported) -> Settings {
    let policy = &imported.policy;
    // Caches are as exact as the weights unless asked otherwise.
    let kv = if options.quant == QuantSpec::None { DType::F32 } else { DType::F16 };
    Settings {
        max_seq: options.max_seq.unwrap_or(imported.max_positions.min(DEFAULT_MAX_SEQ)),
        kv: options.kv.unwrap_or(kv),
        block: policy.block,
        whole_sequence: policy.attention == Attention::Full,
        buckets: options.buckets.clone(),
        // A causal model has no mask token, and nothing to ban.
        ban: (policy.mask_id >= 0).then_some(policy.mask_id),
        quant: options.quant.dtype(),
        requantize: options.requantize,
        keep: options.keep.iter().map(|(name, format)| (name.clone(), format.dtype())).collect(),
        profile: options.profile.clone().unwrap_or_else(|| "plain".into()),
    }
}

/// The passes of a target, in order, with everything that the model and the options decide.
///
/// # Errors
/// Sizes that do not fit each other, or a profile that does not exist.
pub fn default_pipeline(target: &Target, options: &CompileOptions, imported: &Imported) -> Result<String, Error> {
    (target.pipeline)(&settings(options, imported))
}
