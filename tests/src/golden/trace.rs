//! What a reference did, pass by pass, and what it drew, in the terms of our own loop.
//!
//! Differences of bookkeeping are removed here and nowhere else: references pad on the left, grow their sequence block by
//! block, compute a cache anew where we extend it, batch guided passes, and run a few passes that decide nothing.

use std::collections::BTreeMap;

use dlx_runtime::decode::noise::Recorded;
use dlx_runtime::decode::{DecodePolicy, ForwardKind, Noise};

use super::{Case, Data};

/// A forward pass: kind, first position, length, positions cached before, and the sequence before it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pass {
    pub(super) kind: &'static str,
    pub(super) q_start: usize,
    pub(super) q_len: usize,
    pub(super) past_len: usize,
    pub(super) before: Vec<i32>,
}

impl Pass {
    fn end(&self) -> usize {
        self.q_start + self.q_len
    }

    /// Whether the passes are the same, up to masks after the reference's sequence.
    pub(super) fn matches(&self, reference: &Pass, mask_id: i32) -> bool {
        let at = |pass: &Pass| (pass.kind, pass.q_start, pass.q_len, pass.past_len);
        at(self) == at(reference) && extends(&self.before, &reference.before, mask_id)
    }
}

/// Whether `ids` is `reference` and then masks.
pub(super) fn extends(ids: &[i32], reference: &[i32], mask_id: i32) -> bool {
    ids.strip_prefix(reference).is_some_and(|rest| rest.iter().all(|&id| id == mask_id))
}

pub(super) fn left_pad(case: &Case) -> usize {
    case.json["left_pad"].as_u64().and_then(|pad| usize::try_from(pad).ok()).unwrap_or(0)
}

/// Name of a kind in the golden data.
pub(super) fn kind_name(kind: ForwardKind) -> &'static str {
    match kind {
        ForwardKind::Prefill => "prefill",
        ForwardKind::Full => "full",
        ForwardKind::Suffix => "suffix",
        ForwardKind::DualBlock => "dual_block",
        ForwardKind::Block => "block",
        ForwardKind::BlockRefresh => "block_refresh",
        ForwardKind::SubBlock => "subblock",
        ForwardKind::Commit => "commit",
        ForwardKind::Draft => "draft",
        ForwardKind::Verify => "verify",
    }
}

const KINDS: [ForwardKind; 8] = [
    ForwardKind::Prefill,
    ForwardKind::Full,
    ForwardKind::Suffix,
    ForwardKind::DualBlock,
    ForwardKind::Block,
    ForwardKind::BlockRefresh,
    ForwardKind::SubBlock,
    ForwardKind::Commit,
];

/// The passes that our loop should make for a case; `None` when it recorded none.
pub(super) fn reference(case: &Case, policy: &DecodePolicy) -> Result<Option<Vec<Pass>>, String> {
    let Some(mut passes) = recorded(case)? else { return Ok(None) };
    if matches!(case.text("family"), "a2d" | "a2d-qwen2") {
        commit_instead_of_prefilling_again(&mut passes, policy);
    }
    passes.retain(|pass| !decides_nothing(pass, policy));
    if policy.cfg_scale > 0.0 && !case.text("family").starts_with("llada") {
        // Two passes where others, and we, run one over both sequences.
        passes.dedup();
    }
    Ok(Some(passes))
}

fn recorded(case: &Case) -> Result<Option<Vec<Pass>>, String> {
    let Some(forwards) = case.json["forwards"].as_array() else { return Ok(None) };
    let width = case.tensor("states")?.shape[1];
    let states = case.ints("states")?.chunks(width);
    let pad = left_pad(case);
    let passes = forwards.iter().zip(states).map(|(forward, state)| {
        let field = |key: &str| {
            forward[key].as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("no `{key}`"))
        };
        let kind = forward["kind"].as_str().unwrap_or_default();
        let known = KINDS.into_iter().map(kind_name).find(|name| *name == kind);
        let (start, end) = (field("q_start")?, field("q_start")? + field("q_len")?);
        Ok(Pass {
            kind: known.ok_or_else(|| format!("no pass of kind `{kind}`"))?,
            q_start: start.saturating_sub(pad),
            q_len: end.saturating_sub(pad) - start.saturating_sub(pad),
            past_len: field("past_len")?.saturating_sub(pad),
            before: state.iter().copied().filter(|&id| id >= 0).skip(pad).collect(),
        })
    });
    passes.collect::<Result<_, String>>().map(Some)
}

/// The reference prefills the whole sequence before every block; we prefill once and commit every finished block.
fn commit_instead_of_prefilling_again(passes: &mut [Pass], policy: &DecodePolicy) {
    let (mut first, mut previous, mut current) = (None, 0, 0);
    for pass in passes.iter_mut().filter(|pass| pass.kind == "prefill") {
        let end = pass.end();
        if end != current {
            (previous, current) = (current, end);
        }
        if *first.get_or_insert(end) == end {
            continue;
        }
        // A block that shares its first positions with the prompt is committed as a whole.
        let start = match policy.grid {
            dlx_runtime::decode::policy::BlockGrid::Absolute => previous / policy.block * policy.block,
            dlx_runtime::decode::policy::BlockGrid::PromptEnd => previous,
        };
        (pass.kind, pass.q_start, pass.q_len, pass.past_len) = ("commit", start, end - start, start);
    }
}

/// A denoising pass over a finished block: Fast-dLLM's first version looks only after a cached pass whether anything is
/// left, and BD3LM's model card runs steps that reveal nothing.
fn decides_nothing(pass: &Pass, policy: &DecodePolicy) -> bool {
    let block = pass.q_start..pass.before.len().min(pass.q_start + policy.block.min(pass.q_len));
    matches!(pass.kind, "suffix" | "dual_block" | "block") && !pass.before[block].contains(&policy.mask_id)
}

/// Compiled steps may need several passes for a prefill that the reference does in one.
pub(super) fn join_prefills(passes: Vec<Pass>) -> Vec<Pass> {
    let mut joined: Vec<Pass> = Vec::new();
    for pass in passes {
        let continues = |last: &&mut Pass| {
            last.kind == "prefill" && pass.kind == "prefill" && pass.q_start > 0 && last.end() == pass.q_start
        };
        match joined.last_mut().filter(continues) {
            Some(last) => last.q_len += pass.q_len,
            None => joined.push(pass),
        }
    }
    joined
}

/// The recorded draws of the case, one entry per denoising pass and by absolute position.
pub(super) fn noise(case: &Case, policy: &DecodePolicy) -> Result<Noise, String> {
    let names: Vec<&String> = case.tensors.keys().filter(|name| name.starts_with("rng.")).collect();
    if names.is_empty() {
        return Ok(Noise::Seeded(0));
    }
    let calls = case.json["rng_calls"].as_array().ok_or("random draws without `rng_calls`")?;
    let denoising = recorded(case)?.ok_or("random draws without passes")?.into_iter();
    let mut denoising = denoising.filter(|pass| !matches!(pass.kind, "prefill" | "commit"));
    let mut noise = Vec::new();
    for (name, call) in names.iter().zip(calls) {
        let call = call.as_str().unwrap_or_default();
        // SDAR's script draws numbers of another shape that it never uses.
        if case.text("family") == "sdar" && !call.starts_with("multinomial") {
            continue;
        }
        let pass = denoising.next().ok_or("more draws than passes")?;
        noise.push(draws(case.tensor(name)?, call, &pass, policy)?);
    }
    Ok(Noise::Recorded(noise))
}

/// A tensor of draws covers the whole sequence, the window of the pass, or the masked positions, and has one number per
/// position or one per token.
fn draws(tensor: &super::Tensor, call: &str, pass: &Pass, policy: &DecodePolicy) -> Result<Recorded, String> {
    let uniform = !call.starts_with("multinomial");
    let variates: Vec<f32> = match &tensor.data {
        Data::Float(floats) if uniform => floats.iter().map(|&u| -f64::from(u).ln() as f32).collect(),
        Data::Float(floats) => floats.clone(),
        Data::Double(doubles) => doubles.iter().map(|u| -u.ln() as f32).collect(),
        Data::Int(_) => return Err("draws are no integers".to_owned()),
    };
    let masked: Vec<usize> =
        (0..pass.before.len()).filter(|&position| pass.before[position] == policy.mask_id).collect();
    let window: Vec<usize> = (pass.q_start..pass.end()).collect();
    let positions = |count: usize| match count {
        count if count == window.len() => Ok(window.clone()),
        count if count == masked.len() => Ok(masked.clone()),
        count => Err(format!("{count} draws for {} masks in {}", masked.len(), window.len())),
    };
    let mut recorded = Recorded::default();
    let per_token = tensor.shape.last().copied().filter(|&width| width == 512);
    if let Some(vocab) = per_token {
        let rows = variates.chunks(vocab).map(<[f32]>::to_vec);
        recorded.tokens = positions(rows.len())?.into_iter().zip(rows).collect();
    } else {
        let positions = positions(variates.len())?;
        recorded.positions = positions.into_iter().zip(variates).collect::<BTreeMap<_, _>>();
    }
    Ok(recorded)
}
