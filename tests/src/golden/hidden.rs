//! Cases that compare what happens inside the network: every value that the reference recorded, by its name in the IR.

use std::collections::BTreeMap;

use dlx_runtime::cpu::{CpuExecutor, Seen};
use dlx_runtime::exec::{Executor, Span};

use super::logits::close;
use super::{Case, LOGIT_TOLERANCE};

/// Compares the recorded values of a whole-sequence pass with those of a compiled program. A program without fusions
/// computes all of them; with `all` false, those that fusions have left out are passed over.
///
/// # Errors
/// The first value that differs or is missing.
pub fn run_hidden(executor: &mut CpuExecutor, case: &Case, all: bool) -> Result<(), String> {
    let ids = case.ints("input_ids")?;
    let pos: Vec<i32> = (0..).take(ids.len()).collect();
    let mut seen: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut keep = |node: Seen<'_>| drop(seen.insert(node.name.to_owned(), node.value.to_vec()));
    executor.step_observed(&[Span::new(ids, &pos, 0)], usize::MAX, &mut keep).map_err(|e| e.to_string())?;
    // One row at a time, whatever the sizes of the compiled heads.
    let mut logits = vec![0.0; executor.vocab()];
    let mut heads: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for row in 0..ids.len() {
        let mut append = |node: Seen<'_>| heads.entry(node.name.to_owned()).or_default().extend_from_slice(node.value);
        executor.logits_observed(&[row], &mut logits, &mut append).map_err(|e| e.to_string())?;
    }
    seen.extend(heads);
    let mut compared = 0;
    for (name, tensor) in case.tensors.iter().filter(|(n, _)| *n != "input_ids" && *n != "logits") {
        let ours = value_name(name).ok_or_else(|| format!("`{name}` has no name in the IR"))?;
        let super::Data::Float(expected) = &tensor.data else { return Err(format!("`{name}` holds no floats")) };
        match seen.get(&ours) {
            Some(value) => close(value, expected, LOGIT_TOLERANCE).map_err(|e| format!("`{name}` (%{ours}): {e}"))?,
            None if all => return Err(format!("%{ours}, for `{name}`, is not computed")),
            None => continue,
        }
        compared += 1;
    }
    if compared == 0 { Err("nothing was compared".into()) } else { Ok(()) }
}

/// Name in the IR of a value that the reference calls `name`.
fn value_name(name: &str) -> Option<String> {
    let fixed = match name {
        "hidden.embed" => Some("embed".to_owned()),
        "hidden.final_norm" => Some("final_norm".to_owned()),
        _ => None,
    };
    let output = name.strip_prefix("hidden.layer").map(|layer| format!("l{layer}.out"));
    let inside = || {
        let (layer, part) = name.strip_prefix("layer")?.split_once('.')?;
        let part = match part {
            "input_layernorm" | "attn_norm" => "attn_norm",
            "q_proj" => "q",
            "k_proj" => "k",
            "q_norm" => "q_norm",
            "k_norm" => "k_norm",
            "self_attn" | "attn_out" => "attn_out",
            "mlp" | "ffn_out" | "ff_out" => "mlp_out",
            "ff_norm" | "post_attention_layernorm" => "mlp_norm",
            _ => return None,
        };
        Some(format!("l{layer}.{part}"))
    };
    fixed.or(output).or_else(inside)
}
