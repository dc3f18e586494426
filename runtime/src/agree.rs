//! What an artifact says twice: manifest, program, tokenizer and section table must agree, or nothing loads.
//!
//! | said in the manifest | and in |
//! |---|---|
//! | `model.vocab`, `model.max_seq` | the program: width of the logits, rows of the caches |
//! | `model.tokenizer_hash` | the tokenizer section: its BLAKE3, which `tokenizer:tables` names too |
//! | `policy.attention`, `policy.block` | the program: the mask of every attention |
//! | `policy.mask_id` | the program: the token that heads never report |
//! | `targets` | the section table: the programs, and the plans of targets that have one |
//! | `memory`: weights, activations, hidden states, caches | the program, the plan and the section table: their sizes |
//!
//! Within a program all attentions have one mask, all heads ban one token, logits are what the heads look at, and heads
//! read rows that every step stores. The rest of `memory`, `options`, `pipelines`, `notes`, `quality`, `compiler`, `family`,
//! `parameters` and `config_hash` are for people: nothing is decided or allocated by them.
//!
//! Invariant: every error names both places.

use std::collections::BTreeSet;

use dlx_ir::{Graph, Mask, Module, Op, Post};

use crate::artifact::{self, Artifact};
use crate::decode::policy::{Attention, DecodePolicy};
use crate::manifest::Manifest;
use crate::memory::{Certificate, FACTS};

/// Checks a manifest against the section table and the tokenizer.
///
/// # Errors
/// The first two places that contradict each other.
pub(crate) fn sections(artifact: &Artifact, manifest: &Manifest) -> Result<(), String> {
    let listed: BTreeSet<&str> = manifest.targets.iter().map(String::as_str).collect();
    if listed.len() != manifest.targets.len() {
        return Err(format!("the manifest lists a target twice: {}", manifest.targets.join(", ")));
    }
    for name in artifact.sections().iter().map(|s| s.name.as_str()) {
        let target = name.strip_prefix("program:").or_else(|| name.strip_prefix("plan:"));
        let known = [
            artifact::WEIGHTS,
            artifact::MANIFEST,
            artifact::TOKENIZER,
            artifact::TOKENIZER_TABLES,
            artifact::TEXT,
            artifact::GOLDEN,
            artifact::POLICIES,
        ];
        if !target.map_or_else(|| known.contains(&name), |t| listed.contains(t)) {
            let targets = manifest.targets.join(", ");
            return Err(format!("there is a section `{name}`, but the manifest lists the targets {targets}"));
        }
    }
    let hash = artifact.hash(artifact::TOKENIZER).copied().unwrap_or_else(|| *blake3::hash(&[]).as_bytes());
    let hash = blake3::Hash::from_bytes(hash).to_hex();
    if manifest.model.tokenizer_hash != hash.as_str() {
        let said = &manifest.model.tokenizer_hash;
        return Err(format!("the manifest says that the tokenizer's hash is {said}, but the section's is {hash}"));
    }
    Ok(())
}

/// Checks a manifest against the verified program of `target`, and the program's entries against each other.
///
/// # Errors
/// The first two places that contradict each other.
pub(crate) fn program(manifest: &Manifest, module: &Module, target: &str) -> Result<(), String> {
    let program = artifact::program_section(target);
    let differ = |what: &str, said: String, found: String| {
        Err(format!("the manifest says {what} {said}, but section `{program}` has {found}"))
    };
    let of = |prefix: &'static str| module.graphs.iter().filter(move |g| g.name.split('_').next() == Some(prefix));
    let (Some(_), Some(head), Some(logits)) = (of("step").next(), of("head").next(), of("logits").next()) else {
        return Err(format!("section `{program}` lacks a step, a head or a logits entry"));
    };
    let vocab = logits.results.first().and_then(|r| logits.values[*r].ty.dims.get(1)?.fixed());
    if vocab != Some(manifest.model.vocab) {
        return differ("vocab", manifest.model.vocab.to_string(), format!("logits of width {}", vocab.unwrap_or(0)));
    }
    let caches = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 3);
    for (_, cache) in caches {
        if cache.ty.dims.first().and_then(|d| d.fixed()) != Some(manifest.model.max_seq) {
            return differ("max_seq", manifest.model.max_seq.to_string(), format!("@{}: {}", cache.name, cache.ty));
        }
    }
    let nodes = || module.graphs.iter().flat_map(|g| &g.nodes);
    for node in nodes() {
        match node.op {
            Op::CachedAttention { mask, .. } if mask != mask_of(&manifest.policy) => {
                return differ("attention and block", mask_of(&manifest.policy).to_string(), format!("mask={mask}"));
            }
            Op::HeadStats { ban, .. } if ban != u32::try_from(manifest.policy.mask_id).ok() => {
                let found = ban.map_or_else(|| "no ban".into(), |ban| format!("ban={ban}"));
                return differ("mask_id", manifest.policy.mask_id.to_string(), found);
            }
            _ => {}
        }
    }
    if !same_head(head, logits) {
        return Err(format!("section `{program}`: @{} and @{} look at different logits", head.name, logits.name));
    }
    let mut rows = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 2).map(|(id, _)| id);
    let takes = |id| head.nodes.iter().any(|n| matches!(n.op, Op::TakeRows {}) && n.inputs[0].state() == Some(id));
    if !(rows.next().is_some_and(takes) && rows.next().is_none()) {
        return Err(format!("section `{program}` must have one state of rows, the one that @{} reads", head.name));
    }
    for taken in head.nodes.iter().filter(|n| matches!(n.op, Op::TakeRows {})).map(|n| n.inputs[0]) {
        let stores = |n: &dlx_ir::Node| matches!(n.op, Op::StoreRows {}) && n.inputs[1] == taken;
        if let Some(step) = of("step").find(|g| !g.nodes.iter().any(stores)) {
            return Err(format!("section `{program}`: @{} reads rows that @{} does not store", head.name, step.name));
        }
    }
    Ok(())
}

/// Checks what a manifest says of a target's memory against what its program or plan takes.
///
/// # Errors
/// The first part that differs.
pub(crate) fn memory(manifest: &Manifest, found: &Certificate) -> Result<(), String> {
    let target = &found.target;
    let listed = manifest.memory.iter().map(|c| &c.target).eq(&manifest.targets);
    let Some(said) = manifest.memory.iter().find(|c| c.target == *target).filter(|_| listed) else {
        let targets = manifest.targets.join(", ");
        return Err(format!("the manifest's memory is not that of its targets {targets}, in this order"));
    };
    for part in FACTS {
        let (said, found) = (said.part(part), found.part(part));
        if said != found {
            let program = artifact::program_section(target);
            return Err(format!("the manifest says {said} bytes of {part}, but section `{program}` takes {found}"));
        }
    }
    Ok(())
}

/// The mask of a policy's attention.
fn mask_of(policy: &DecodePolicy) -> Mask {
    match policy.attention {
        Attention::Full => Mask::Full,
        Attention::Causal => Mask::Causal,
        Attention::BlockCausal => Mask::BlockCausal(u32::try_from(policy.block).unwrap_or(u32::MAX)),
    }
}

/// Whether a logits entry is a head entry with a linear in the place of its `head_stats`.
fn same_head(head: &Graph, logits: &Graph) -> bool {
    head.nodes.len() == logits.nodes.len()
        && head.nodes.iter().zip(&logits.nodes).all(|(a, b)| match (&a.op, &b.op) {
            (Op::HeadStats { norm, .. }, Op::Linear { n: 1, bias: false, norm: other, post: Post::None }) => {
                norm == other && a.inputs == b.inputs
            }
            (op, other) => op == other && a.inputs == b.inputs,
        })
}
