//! Cases that check one function without a model: schedules and samplers.

use dlx_runtime::decode::noise::{Noise, NoiseRow};
use dlx_runtime::decode::policy::{ConfidenceStage, DecodePolicy, FilterOrder};
use dlx_runtime::decode::reveal::even_schedule;
use dlx_runtime::decode::{confidence, sample};

use super::logits::close;
use super::{Case, Data};

/// Compares a case of kind `unit`.
///
/// # Errors
/// The first difference, or why the case cannot be checked.
pub fn run_unit(case: &Case) -> Result<(), String> {
    match case.name.as_str() {
        "num_transfer_tokens" => schedule(case),
        "top_p_top_k_filters" => filters(case),
        "dream_sample_tokens" => dream_sample_tokens(case),
        other => Err(format!("no check for unit `{other}`")),
    }
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
            let at = NoiseRow { pass: 0, position: 0, row: 0 };
            let drawn = sample::choose(logits, &policy, &Noise::Seeded(0), at).ok_or("nothing to choose")?;
            if drawn.stats.best != case.ints(&format!("{name}.x0"))?[row] {
                return Err(format!("{name}, row {row}: token {}", drawn.stats.best));
            }
            for (key, measure) in [("prob", "probability"), ("margin", "margin"), ("negent", "neg-entropy")] {
                let ours = (confidence::find(measure).ok_or("no such measure")?.of)(&drawn.stats);
                let expected = case.floats(&format!("{name}.{key}.conf"))?[row];
                close(&[ours], &[expected], 1e-5).map_err(|error| format!("{name}.{key}, row {row}: {error}"))?;
            }
        }
    }
    Ok(())
}
