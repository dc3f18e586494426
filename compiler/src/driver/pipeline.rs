//! The passes of a target: the default pipeline, with everything that the model and the options decide.

use dlx_ir::{DType, Error};
use dlx_runtime::decode::policy::{Attention, DecodePolicy};
use dlx_runtime::wgpu::plan::Profile;
use dlx_targets::Target;

use crate::hf::Imported;
use crate::options::{CompileOptions, QuantSpec};

/// Rows of the KV caches when neither the user nor the checkpoint asks for fewer.
const DEFAULT_MAX_SEQ: usize = 4096;
/// Rows of the largest step: prefill is compute bound well before this many.
const LARGEST_STEP: usize = 512;

/// Element type of the KV caches: as exact as the weights unless asked otherwise.
pub(super) fn kv_type(options: &CompileOptions) -> DType {
    options.kv.unwrap_or(if options.quant == QuantSpec::None { DType::F32 } else { DType::F16 })
}

/// Rows of the KV caches.
pub(super) fn max_seq(options: &CompileOptions, imported: &Imported) -> usize {
    options.max_seq.unwrap_or(imported.max_positions.min(DEFAULT_MAX_SEQ))
}

/// The passes of a target, in order, with everything that the model and the options decide.
///
/// # Errors
/// Sizes that do not fit each other.
pub fn default_pipeline(target: &Target, options: &CompileOptions, imported: &Imported) -> Result<String, Error> {
    let (max_seq, block) = (max_seq(options, imported), imported.policy.block);
    if max_seq < block {
        return Err(Error::new("--max-seq", format!("{max_seq} rows do not hold one block of {block}"))
            .help("use a longer --max-seq or a smaller --block"));
    }
    let steps = buckets(options, &imported.policy, max_seq)?;
    let largest = steps.iter().copied().max().unwrap_or(block);
    let heads: Vec<usize> = steps.iter().copied().filter(|s| *s <= LARGEST_HEAD.max(block)).collect();
    // A causal model has no mask token, and nothing to ban.
    let ban = if imported.policy.mask_id < 0 { String::new() } else { format!(", ban={}", imported.policy.mask_id) };
    let join = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(":");
    let mut quantize: Vec<String> = options.quant.dtype().map(|d| format!("to={d}")).into_iter().collect();
    for (name, format) in &options.keep {
        quantize.push(format!("{name}={}", format.dtype().map_or("none".into(), |d| d.to_string())));
    }
    let shard = match target.plan {
        Some(_) => format!("shard-weights{{limit={}}}", find_profile(&options.profile)?.max_binding),
        None => String::new(),
    };
    let passes = [
        "block-attention".to_owned(),
        format!("cache-kv{{max_seq={max_seq}, kv={}}}", kv_type(options)),
        "fold".into(),
        "cse".into(),
        "fuse-rope".into(),
        "fuse-linears".into(),
        "fuse-swiglu".into(),
        "fuse-residual".into(),
        format!("split-head{{rows={largest}{ban}}}"),
        "dce".into(),
        "fuse-norm".into(),
        "hoist-weights".into(),
        format!("quantize{{{}}}", quantize.join(", ")),
        format!("lower{{{}}}", target.lowering),
        "dce".into(),
        shard,
        format!("specialize{{T={}, R={}}}", join(&steps), join(&heads)),
        "plan-memory".into(),
    ];
    Ok(passes.iter().filter(|p| !p.is_empty()).map(String::as_str).collect::<Vec<_>>().join(","))
}

/// The device profile of that name, or `plain:BYTES` for one whose bindings hold fewer bytes.
///
/// # Errors
/// There is none.
pub fn find_profile(name: &str) -> Result<Profile, Error> {
    let profiles = dlx_targets::wgpu::profiles();
    if let Some(profile) = profiles.iter().find(|p| p.name == name) {
        return Ok(profile.clone());
    }
    if let Some((base, bytes)) = name.split_once(':') {
        let base = profiles.iter().find(|p| p.name == base);
        let bytes = bytes.parse().ok().filter(|b| *b >= 4096 && *b % 256 == 0);
        if let (Some(base), Some(max_binding)) = (base, bytes) {
            return Ok(Profile { name: name.into(), max_binding, ..base.clone() });
        }
    }
    let known: Vec<_> = profiles.iter().map(|p| p.name.as_str()).collect();
    let help = format!("use one of {}, or NAME:BYTES for bindings of at most that many bytes", known.join(", "));
    Err(Error::new("--profile", format!("there is no profile `{name}`")).help(help))
}

/// Rows of the largest head entry; more rows run in several calls.
const LARGEST_HEAD: usize = 64;

/// Step sizes: those asked for, or the block and powers of four above it. Full attention sees a whole sequence at once, so
/// its largest step holds one.
fn buckets(options: &CompileOptions, policy: &DecodePolicy, max_seq: usize) -> Result<Vec<usize>, Error> {
    let block = policy.block;
    if options.buckets.is_empty() {
        let largest = if policy.attention == Attention::Full { max_seq } else { LARGEST_STEP.max(block).min(max_seq) };
        let growing = std::iter::successors(Some(block), |s| s.checked_mul(4)).take_while(|s| *s < largest);
        return Ok(growing.chain([largest]).collect());
    }
    let mut sizes = options.buckets.clone();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.last() {
        Some(&largest) if largest < block || largest > max_seq => {
            Err(Error::new("--buckets", format!("the largest step has {largest} rows"))
                .help(format!("it must hold a block of {block} and fit --max-seq {max_seq}")))
        }
        _ => Ok(sizes),
    }
}
