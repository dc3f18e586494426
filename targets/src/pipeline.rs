//! The passes of targets that run entries against KV caches, and what a compile decides about them.
//!
//! Which passes run, in which order and with which parameters is decided here; what they do is the passes' business.
//! Nothing here looks at a module.

use dlx_ir::{DType, Error, MAX_SPANS};
use dlx_runtime::cpu::MAX_WEIGHTS;

/// What a compile decides about a target's passes and its product.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rows of the KV caches.
    pub max_seq: usize,
    /// Element type of the KV caches.
    pub kv: DType,
    /// Positions of a block.
    pub block: usize,
    /// Whether the largest step must hold a whole sequence, as full attention asks.
    pub whole_sequence: bool,
    /// Rows of the steps; chosen by the block if empty.
    pub buckets: Vec<usize>,
    /// Token that no head chooses.
    pub ban: Option<i32>,
    /// Element type of matrices; that of the checkpoint if there is none.
    pub quant: Option<DType>,
    /// Whether matrices that come quantized are converted to it too.
    pub requantize: bool,
    /// Element types of matrices by name or part of it, later ones winning.
    pub keep: Vec<(String, Option<DType>)>,
    /// Name of the limits of devices, for targets that plan for some.
    pub profile: String,
}

/// Rows of the largest step: prefill is compute bound well before this many.
const LARGEST_STEP: usize = 512;
/// Rows of the largest head entry; more rows run in several calls.
const LARGEST_HEAD: usize = 64;

/// From `@forward` to planned entries whose weights and caches have the layouts of `lowering`, read in pieces of at most
/// `piece` bytes if that is limited.
///
/// # Errors
/// Sizes that do not fit each other.
pub(crate) fn entries(settings: &Settings, lowering: &str, piece: Option<u64>) -> Result<String, Error> {
    let (max_seq, block) = (settings.max_seq, settings.block);
    if max_seq < block {
        return Err(Error::new("--max-seq", format!("{max_seq} rows do not hold one block of {block}"))
            .help("use a longer --max-seq or a smaller --block"));
    }
    let steps = steps(settings)?;
    let largest = steps.iter().copied().max().unwrap_or(block);
    let head = LARGEST_HEAD.max(block);
    let mut heads: Vec<usize> = steps.iter().copied().filter(|s| *s <= head).collect();
    if heads.is_empty() {
        heads.push(head);
    }
    let ban = settings.ban.map_or_else(String::new, |id| format!(", ban={id}"));
    let join = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(":");
    let mut quantize: Vec<String> = settings.quant.map(|d| format!("to={d}")).into_iter().collect();
    if settings.requantize {
        quantize.push("again=true".into());
    }
    for (name, dtype) in &settings.keep {
        quantize.push(format!("{name}={}", dtype.map_or("none".into(), |d| d.to_string())));
    }
    let passes = [
        "block-attention".to_owned(),
        format!("cache-kv{{max_seq={max_seq}, kv={}}}", settings.kv),
        "fold".into(),
        "cse".into(),
        "fuse-rope".into(),
        format!("fuse-linears{{max={MAX_WEIGHTS}}}"),
        "fuse-swiglu".into(),
        "fuse-residual".into(),
        format!("split-head{{rows={largest}{ban}}}"),
        "dce".into(),
        "fuse-norm".into(),
        "hoist-weights".into(),
        format!("quantize{{{}}}", quantize.join(", ")),
        format!("lower{{{lowering}}}"),
        "dce".into(),
        piece.map_or_else(String::new, |bytes| format!("shard-weights{{limit={bytes}}}")),
        format!("specialize{{T={}, R={}}}", join(&steps), join(&heads)),
        "plan-memory".into(),
    ];
    Ok(passes.iter().filter(|p| !p.is_empty()).map(String::as_str).collect::<Vec<_>>().join(","))
}

/// Step sizes: those asked for, or the block and powers of four above it.
fn steps(settings: &Settings) -> Result<Vec<usize>, Error> {
    let (max_seq, block) = (settings.max_seq, settings.block);
    if settings.buckets.is_empty() {
        let largest = if settings.whole_sequence { max_seq } else { LARGEST_STEP.max(block).min(max_seq) };
        let growing = std::iter::successors(Some(block), |s| s.checked_mul(4)).take_while(|s| *s < largest);
        return Ok(growing.chain([largest]).collect());
    }
    let mut sizes = settings.buckets.clone();
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.last() {
        // A step may serve several sequences.
        Some(&largest) if largest < block || largest > max_seq.saturating_mul(MAX_SPANS) => {
            Err(Error::new("--buckets", format!("the largest step has {largest} rows")).help(format!(
                "it must hold a block of {block}, and {MAX_SPANS} sequences of --max-seq {max_seq} at most"
            )))
        }
        _ => Ok(sizes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            max_seq: 4096,
            kv: DType::F16,
            block: 4,
            whole_sequence: false,
            buckets: Vec::new(),
            ban: Some(7),
            quant: Some(DType::BF16),
            requantize: false,
            keep: vec![("head".into(), None)],
            profile: "plain".into(),
        }
    }

    #[test]
    fn steps_grow_from_the_block() {
        assert_eq!(steps(&settings()).unwrap(), [4, 16, 64, 256, 512]);
        assert_eq!(steps(&Settings { max_seq: 64, ..settings() }).unwrap(), [4, 16, 64]);
        assert_eq!(steps(&Settings { block: 1024, ..settings() }).unwrap(), [1024]);
        assert_eq!(steps(&Settings { whole_sequence: true, block: 600, ..settings() }).unwrap(), [600, 2400, 4096]);
        assert_eq!(steps(&Settings { buckets: vec![64, 8, 8], ..settings() }).unwrap(), [8, 64]);
    }

    #[test]
    fn a_head_has_at_most_its_own_rows() {
        let text = |buckets: &[usize]| entries(&Settings { buckets: buckets.into(), ..settings() }, "", None).unwrap();
        assert!(text(&[16, 256]).contains("T=16:256, R=16"));
        assert!(text(&[128, 256]).contains("T=128:256, R=64"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for wrong in [
            Settings { max_seq: 3, ..settings() },
            Settings { buckets: vec![2], ..settings() },
            Settings { buckets: vec![4096 * MAX_SPANS + 1], ..settings() },
        ] {
            assert!(entries(&wrong, "", None).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_left_out() {
        let text = entries(&settings(), "pack=n16", Some(4096)).unwrap();
        for part in ["ban=7", "quantize{to=bf16, head=none}", "lower{pack=n16}", "shard-weights{limit=4096}"] {
            assert!(text.contains(part), "{text}");
        }
        let bare = Settings { ban: None, quant: None, keep: Vec::new(), ..settings() };
        let text = entries(&bare, "pack=n16", None).unwrap();
        assert!(text.contains("split-head{rows=512},") && text.contains("quantize{},"), "{text}");
        assert!(!text.contains("shard-weights") && !text.contains(",,"), "{text}");
        let again = entries(&Settings { requantize: true, ..settings() }, "pack=n16", None).unwrap();
        assert!(again.contains("quantize{to=bf16, again=true, head=none}"), "{again}");
    }
}
