//! Cases that check one function without a model: schedules and samplers.

use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use dlx_runtime::decode::reveal::{self, Candidate, Pass};
use dlx_runtime::decode::sample::{Choice, Needs, Sampler};
use dlx_runtime::decode::schedule::{self, Due, Plan, even_schedule, linear_schedule};
use dlx_runtime::decode::{confidence, sample};

use super::logits::close;
use super::{Case, Data};
use crate::naive::rotation;

/// A check, and the tensors by which its cases are known, whatever they are called; `*` stands for any beginning.
type Check = (&'static [&'static str], fn(&Case) -> Result<(), String>);

const CHECKS: &[Check] = &[
    (&["table"], schedule),
    (&["timesteps", "counts"], dream_schedule),
    (&["n", "steps", "effective_steps", "counts"], linear),
    (&["logits", "mask", "*.transfer"], fd_transfer_index),
    (&["logits", "*.x0"], dream_sample_tokens),
    (&["logits", "*top_p.*"], filters),
    (&["positions"], rope_tables),
];

/// Compares a case of kind `unit` or `units`.
///
/// # Errors
/// The first difference, or why the case cannot be checked.
pub fn run_unit(case: &Case) -> Result<(), String> {
    let has = |tensor: &str| match tensor.strip_prefix('*').map(|rest| rest.trim_end_matches('*')) {
        Some(part) => case.tensors.keys().any(|name| name.contains(part)),
        None => case.tensors.contains_key(tensor),
    };
    let check = CHECKS.iter().find(|(tensors, _)| tensors.iter().all(|tensor| has(tensor)));
    let (_, check) = check.ok_or_else(|| {
        let tensors: Vec<&str> = case.tensors.keys().map(String::as_str).collect();
        format!("no check for a unit of the tensors {}", tensors.join(", "))
    })?;
    check(case)
}

/// Columns: tokens, steps, then tokens per step, padded with −1.
fn schedule(case: &Case) -> Result<(), String> {
    let width = case.tensor("table")?.shape[1];
    for row in case.ints("table")?.chunks(width) {
        let row: Vec<usize> = row.iter().map_while(|&count| usize::try_from(count).ok()).collect();
        if even_schedule(row[0], row[1]) != row[2..] {
            return Err(format!("{} tokens in {} steps: {:?}", row[0], row[1], even_schedule(row[0], row[1])));
        }
    }
    Ok(())
}

/// Filtered logits per family and filter; removed entries hold the family's filler.
fn filters(case: &Case) -> Result<(), String> {
    let logits = case.floats("logits")?;
    let vocab = case.tensor("logits")?.shape[1];
    let mut checked = 0;
    for (name, tensor) in case.tensors.iter().filter(|(name, _)| *name != "logits") {
        let (order, filler) = match name {
            name if name.starts_with("dream_") => (FilterOrder::TopPTopK, f32::MIN),
            name if name.starts_with("sdar_") => (FilterOrder::TopKTopP, f32::NEG_INFINITY),
            other => return Err(format!("no check for `{other}`")),
        };
        let (kind, value) = name.split_once('.').ok_or("no parameter in the name")?;
        let bad = |_| format!("`{name}`: no parameter in the name");
        let (top_k, top_p) = if kind.ends_with("top_k") {
            (value.parse().map_err(|e: std::num::ParseIntError| bad(e.to_string()))?, 1.0)
        } else {
            (0, value.parse().map_err(|e: std::num::ParseFloatError| bad(e.to_string()))?)
        };
        let Data::Float(expected) = &tensor.data else { return Err(format!("`{name}` holds no floats")) };
        for (row, expected) in logits.chunks(vocab).zip(expected.chunks(vocab)) {
            let mut entries: Vec<sample::Entry> = (0..).zip(row.iter().copied()).collect();
            sample::filter(&mut entries, order, top_k, top_p);
            let mut ours = vec![filler; vocab];
            for (id, logit) in entries {
                ours[usize::try_from(id).map_err(|e| e.to_string())?] = logit;
            }
            close(&ours, expected, 0.0).map_err(|error| format!("{name}: {error}"))?;
        }
        checked += 1;
    }
    if checked == 0 { Err("no filters".to_owned()) } else { Ok(()) }
}

/// Dream's greedy `sample_tokens`: token and confidence after filtering, by every measure.
fn dream_sample_tokens(case: &Case) -> Result<(), String> {
    let logits = case.floats("logits")?;
    let vocab = case.tensor("logits")?.shape[1];
    let params = case.json["params"].as_object().ok_or("no parameters")?;
    for (name, params) in params {
        let top_k = params["top_k"].as_u64().unwrap_or(0);
        let policy = DecodePolicy {
            top_p: params["top_p"].as_f64().unwrap_or(1.0) as f32,
            top_k: usize::try_from(top_k).map_err(|e| e.to_string())?,
            filter_order: FilterOrder::TopPTopK,
            confidence_stage: ConfidenceStage::AfterFilters,
            // The reference knows no mask; a token outside the row bans nothing.
            ..DecodePolicy::greedy(-1, 1)
        };
        for (row, logits) in logits.chunks(vocab).enumerate() {
            let at = NoiseRow { pass: 0, position: 0 };
            let drawn = Sampler::default().choose(logits, &policy, Choice::AsPolicy, Needs::ALL, &Noise::Seeded(0), at);
            let drawn = drawn.ok_or("nothing to choose")?;
            if drawn.stats.best != case.ints(&format!("{name}.x0"))?[row] {
                return Err(format!("{name}, row {row}: token {}", drawn.stats.best));
            }
            for (key, measure) in [("prob", "probability"), ("margin", "margin"), ("negent", "neg-entropy")] {
                let ours = (confidence::find(measure).ok_or("no such measure")?.of)(&drawn.stats, 1.0);
                let expected = case.floats(&format!("{name}.{key}.conf"))?[row];
                close(&[ours], &[expected], 1e-5).map_err(|error| format!("{name}.{key}, row {row}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// Columns: eps, steps, then timesteps; eps in thousandths, steps, masks, then tokens per step. Padded with -1.
fn dream_schedule(case: &Case) -> Result<(), String> {
    let width = case.tensor("timesteps")?.shape[1];
    for row in case.floats("timesteps")?.chunks(width) {
        let (eps, steps) = (row[0], row[1] as usize);
        close(&schedule::timesteps(steps, eps), &row[2..steps + 3], 0.0)
            .map_err(|error| format!("timesteps of {steps} steps to {eps}: {error}"))?;
    }
    let timesteps = schedule::find("timesteps").ok_or("no such schedule")?;
    let width = case.tensor("counts")?.shape[1];
    for row in case.ints("counts")?.chunks(width) {
        let row: Vec<usize> = row.iter().map_while(|&count| usize::try_from(count).ok()).collect();
        let (eps, steps, mut masked) = (row[0] as f32 / 1000.0, row[1], row[2]);
        let due = (timesteps.due)(&Plan { masked, block: masked, steps, params: &[eps] });
        let mut ours = Vec::new();
        for due in due {
            ours.push(due.count(masked));
            masked -= due.count(masked);
        }
        if ours != row[3..] {
            return Err(format!("{steps} steps to {eps} from {}: {ours:?} instead of {:?}", row[2], &row[3..]));
        }
    }
    Ok(())
}

/// Fast-dLLM's choice of positions from one row of logits per position, by every rule.
fn fd_transfer_index(case: &Case) -> Result<(), String> {
    let (logits, mask) = (case.floats("logits")?, case.ints("mask")?);
    let vocab = case.tensor("logits")?.shape[2];
    let policy = DecodePolicy { mask_id: -1, ..DecodePolicy::llada(0) };
    let mut candidates = Vec::new();
    for (position, row) in logits.chunks(vocab).enumerate().filter(|(position, _)| mask[*position] != 0) {
        let at = NoiseRow { pass: 0, position };
        let drawn = Sampler::default().choose(row, &policy, Choice::AsPolicy, Needs::ALL, &Noise::Seeded(0), at);
        let drawn = drawn.ok_or("nothing to choose")?;
        let (token, confidence, entropy) = (drawn.stats.best, drawn.stats.prob, drawn.entropy);
        candidates.push(Candidate { position, token, confidence, entropy, noise: 1.0 });
    }
    let mut checked = 0;
    for name in case.tensors.keys().filter_map(|name| name.strip_suffix(".transfer")) {
        let (rule, number) = name.split_at(name.find(|c: char| c.is_ascii_digit()).ok_or("no parameter in the name")?);
        let number: f32 = number.parse().map_err(|error| format!("{name}: {error}"))?;
        let (rule, quota, params) = match rule {
            "fixed" => ("static", number as usize, vec![]),
            "thr" => ("at-least", 1, vec![number]),
            "factor" => ("factor", 1, vec![number]),
            other => return Err(format!("no rule for `{other}`")),
        };
        let mut changes = Vec::new();
        let pass = Pass { candidates: &candidates, quota, part: 0.0, params: &params };
        (reveal::find(rule).ok_or("no such rule")?.reveal)(&pass, &mut changes);
        let mut ours = vec![0; mask.len()];
        for change in &changes {
            ours[change.position] = 1;
            let tokens = case.ints(&format!("{name}.x0"));
            if tokens.is_ok_and(|tokens| tokens[change.position] != change.token) {
                return Err(format!("{name}: token {} at {}", change.token, change.position));
            }
        }
        let expected = case.ints(&format!("{name}.transfer"))?;
        if ours != expected {
            return Err(format!("{name}: {ours:?} instead of {expected:?}"));
        }
        checked += 1;
    }
    if checked == 0 { Err("no choices".to_owned()) } else { Ok(()) }
}

/// Cosines and sines at a few positions: the reference's angles are f32, which moves those of late positions.
fn rope_tables(case: &Case) -> Result<(), String> {
    let positions = case.ints("positions")?;
    for (name, tensor) in case.tensors.iter().filter(|(name, _)| *name != "positions") {
        let (function, rest) = name.split_once(".theta").ok_or("no base in the name")?;
        let (theta, head_dim) = rest.split_once(".hd").ok_or("no head size in the name")?;
        let theta: f64 = theta.parse().map_err(|error| format!("{name}: {error}"))?;
        let head_dim: usize = head_dim.parse().map_err(|error| format!("{name}: {error}"))?;
        let Data::Float(expected) = &tensor.data else { return Err(format!("`{name}` holds no floats")) };
        for (&pos, expected) in positions.iter().zip(expected.chunks(head_dim)) {
            let ours: Vec<f32> = (0..head_dim)
                .map(|column| {
                    let (sin, cos) = rotation(pos, column % (head_dim / 2), head_dim, theta);
                    if function == "cos" { cos as f32 } else { sin as f32 }
                })
                .collect();
            let rounding = 1e-6 + pos as f32 * f32::EPSILON;
            close(&ours, expected, rounding).map_err(|error| format!("{name} at {pos}: {error}"))?;
        }
    }
    Ok(())
}

/// dllm's transfer schedule, one row per number of masks and steps.
fn linear(case: &Case) -> Result<(), String> {
    let width = case.tensor("counts")?.shape[1];
    let rows = case.ints("n")?.iter().zip(case.ints("steps")?).zip(case.ints("effective_steps")?);
    let curve = schedule::find("linear").ok_or("no such schedule")?;
    for (((&n, &steps), &effective), counts) in rows.zip(case.ints("counts")?.chunks(width)) {
        let (masked, steps, effective) = (n as usize, steps as usize, effective as usize);
        let expected: Vec<usize> = counts[..effective].iter().map(|&count| count as usize).collect();
        let due = (curve.due)(&Plan { masked, block: masked, steps, params: &[] });
        if linear_schedule(masked, steps) != expected
            || due != expected.iter().map(|&n| Due::Count(n)).collect::<Vec<_>>()
        {
            return Err(format!("{n} in {steps}: {:?} instead of {expected:?}", linear_schedule(masked, steps)));
        }
    }
    Ok(())
}
