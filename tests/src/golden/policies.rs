//! The policy that describes what a case's reference function did.

use dlx_runtime::decode::policy::{
    BlockGrid, CacheMode, ConfidenceStage, FirstRow, Lead, PromptTail, StopAt, SubBlock,
};
use dlx_runtime::decode::{DecodePolicy, Reveal, Schedule};
use serde_json::Value;

use super::Case;

/// The policy that describes what the case's reference function did.
///
/// # Errors
/// A family or option that no policy describes.
pub fn policy(case: &Case) -> Result<DecodePolicy, String> {
    match case.text("family") {
        "a2d" | "a2d-qwen2" => a2d(case),
        "dream" => dream(case),
        "fast-dllm-v2" => fast_dllm_v2(case),
        "llada" | "llada-gqa" => llada(case),
        "qwen2" | "qwen3" => Ok(DecodePolicy::autoregressive()),
        "sdar" => sdar(case),
        other => Err(format!("no decode policy for family `{other}`")),
    }
}

/// Number of new tokens to ask for, so that our rules about whole blocks come to the reference's.
pub(super) fn max_new(case: &Case) -> Result<usize, String> {
    match case.text("family") {
        "llada" | "llada-gqa" | "sdar" => case.count("gen_length"),
        "fast-dllm-v2" => {
            let (block, prompt) = (case.count("block_size")?, case.ints("prompt_ids")?.len());
            Ok((prompt / block + case.count("max_new_tokens")? / block) * block + 1 - prompt)
        }
        _ if sampler(case) == "mdlm_infill" => Ok(0),
        _ => case.count("max_new_tokens"),
    }
}

fn number(case: &Case, key: &str) -> Result<f32, String> {
    case.number(key).map(|value| value as f32)
}

/// A parameter that a case may leave out.
fn number_or(case: &Case, key: &str, absent: f32) -> f32 {
    number(case, key).unwrap_or(absent)
}

fn flag(case: &Case, key: &str) -> bool {
    case.json["params"][key] == Value::Bool(true)
}

fn id(value: &Value) -> Result<i32, String> {
    value.as_i64().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| format!("{value} is no token id"))
}

fn mask_id(case: &Case) -> Result<i32, String> {
    id(&case.json["mask_token_id"])
}

fn sampler(case: &Case) -> &str {
    case.param("sampler").ok().and_then(Value::as_str).unwrap_or_default()
}

fn sdar(case: &Case) -> Result<DecodePolicy, String> {
    let reveal = match case.param("remasking_strategy").ok().and_then(Value::as_str) {
        Some("sequential") => Reveal::new("sequential"),
        Some("low_confidence_static") => Reveal::new("static"),
        Some("low_confidence_dynamic") => {
            Reveal::new("threshold").with("threshold", number(case, "confidence_threshold")?)
        }
        Some("entropy_bounded") => Reveal::new("entropy-bounded").with("bound", number(case, "eb_threshold")?),
        Some(other) => return Err(format!("no reveal rule for `{other}`")),
        None if number(case, "threshold")? >= 1.0 => Reveal::new("static"),
        None => Reveal::new("threshold").with("threshold", number(case, "threshold")?),
    };
    // The published generate.py samples with its own function unless the case was run with the evaluation script's.
    let reference = &case.json["reference"];
    let evaluation_sampler = reference["file"].as_str().is_some_and(|file| file.ends_with("huggingface_bd3.py"))
        || reference["patches"].as_array().is_some_and(|patches| patches.contains(&Value::from("P3")));
    let stops = case.param("stopping_criteria_idx").ok().and_then(Value::as_array);
    Ok(DecodePolicy {
        steps: case.count("denoising_steps")?,
        reveal,
        confidence_stage: if evaluation_sampler {
            ConfidenceStage::BeforeFilters
        } else {
            ConfidenceStage::AfterFilters
        },
        temperature: number(case, "temperature")?,
        top_k: case.count("top_k")?,
        top_p: number(case, "top_p")?,
        stop_ids: stops.into_iter().flatten().filter_map(|stop| id(stop).ok()).collect(),
        ..DecodePolicy::greedy(mask_id(case)?, case.count("block_length")?)
    })
}

fn llada(case: &Case) -> Result<DecodePolicy, String> {
    let block = case.count("block_length")?;
    let cache = match case.json["reference"]["function"].as_str() {
        Some("generate") => CacheMode::None,
        Some("generate_with_prefix_cache") => CacheMode::Prefix,
        Some("generate_with_dual_cache") => CacheMode::Dual,
        other => return Err(format!("no cache mode for {other:?}")),
    };
    let reveal = if let Ok(threshold) = number(case, "threshold") {
        Reveal::new("at-least").with("threshold", threshold)
    } else if let Ok(factor) = number(case, "factor") {
        Reveal::new("factor").with("factor", factor)
    } else {
        Reveal::new("static")
    };
    let temperature = number(case, "temperature")?;
    let (mut suppress_ids, mut unsure_ids) = (Vec::new(), Vec::new());
    if flag(case, "logits_eos_inf") {
        suppress_ids.push(end_ids(case)?[0]);
    }
    if flag(case, "confidence_eos_eot_inf") {
        // At temperature 0 the reference's two arrays of logits are the same one, so the first loses both tokens.
        unsure_ids.extend(end_ids(case)?.into_iter().skip(usize::from(temperature != 0.0)));
    }
    Ok(DecodePolicy {
        block,
        cache,
        steps: case.count("steps")? / (case.count("gen_length")? / block),
        reveal,
        confidence: if case.param("remasking")? == "random" { "random" } else { "probability" }.to_owned(),
        cfg_scale: number_or(case, "cfg_scale", 0.0),
        suppress_ids,
        unsure_ids,
        temperature,
        ..DecodePolicy::llada(mask_id(case)?)
    })
}

/// End-of-sequence and end-of-turn tokens, which the reference hard-codes and the tiny model replaces: "EOS 1 -> 2, ...".
fn end_ids(case: &Case) -> Result<[i32; 2], String> {
    let patch = case.json["reference"]["patches"][0].as_str().ok_or("no patch names the end tokens")?;
    let ids: Vec<i32> = patch
        .split("-> ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    ids.try_into().map_err(|_| format!("no two end tokens in `{patch}`"))
}

fn dream(case: &Case) -> Result<DecodePolicy, String> {
    let max_new = case.count("max_new_tokens")?;
    let blocks = case.count("block_length").ok();
    let block = blocks.unwrap_or(max_new);
    let alg = case.param("alg")?.as_str().unwrap_or_default();
    let threshold = |rule: &str| Ok::<_, String>(Reveal::new(rule).with("threshold", number(case, "threshold")?));
    let timesteps = Schedule::new("timesteps").with("eps", number_or(case, "eps", 1e-3));
    let (reveal, confidence, schedule) = match alg {
        "confidence_threshold" if blocks.is_some() => (threshold("at-least")?, "probability", timesteps),
        "confidence_threshold" => (threshold("capped-threshold")?, "probability", Schedule::new("even")),
        "origin" => (Reveal::new("random"), "probability", timesteps),
        "maskgit_plus" => (Reveal::new("static"), "probability", timesteps),
        "topk_margin" => (Reveal::new("static"), "margin", timesteps),
        "entropy" => (Reveal::new("static"), "neg-entropy", timesteps),
        other => return Err(format!("no reveal rule for `{other}`")),
    };
    Ok(DecodePolicy {
        block,
        cache: match case.param("dual_cache").ok() {
            None => CacheMode::None,
            Some(Value::Bool(true)) => CacheMode::Dual,
            Some(_) => CacheMode::Prefix,
        },
        steps: case.count("steps")? / (max_new / block),
        schedule,
        reveal: match number(case, "alg_temp") {
            Ok(temperature) => Reveal::new("drawn").with("temperature", temperature),
            Err(_) => reveal,
        },
        confidence: confidence.to_owned(),
        temperature: number(case, "temperature")?,
        top_p: number_or(case, "top_p", 1.0),
        top_k: case.count("top_k").unwrap_or(0),
        ..DecodePolicy::dream(mask_id(case)?)
    })
}

fn fast_dllm_v2(case: &Case) -> Result<DecodePolicy, String> {
    let batch_sample = case.json["reference"]["function"].as_str().is_some_and(|name| name.ends_with(".batch_sample"));
    Ok(DecodePolicy {
        sub_block: Some(SubBlock { length: case.count("small_block_size")?, cached: flag(case, "use_block_cache") }),
        reveal: Reveal::new("threshold").with("threshold", number(case, "threshold")?),
        temperature: number(case, "temperature")?,
        stop_at: if batch_sample { StopAt::Block } else { StopAt::Settled },
        stop_ids: case.param("stop_token").ok().and_then(|stop| id(stop).ok()).into_iter().collect(),
        ..DecodePolicy::fast_dllm_v2(mask_id(case)?, case.count("block_size")?)
    })
}

fn a2d(case: &Case) -> Result<DecodePolicy, String> {
    let (mask_id, block) = (mask_id(case)?, case.count("block_size")?);
    let sampler = sampler(case);
    let length = match sampler {
        "mdlm_infill" => case.ints("prompt_ids")?.len(),
        _ => case.count("max_new_tokens")?,
    };
    let steps = match case.count("steps_per_block") {
        Ok(steps) => steps,
        Err(_) => case.count("steps")?.div_ceil(length.div_ceil(block)),
    };
    let policy = match sampler {
        "bd3lm" => {
            let pad = id(&case.json["pad_token_id"])?;
            DecodePolicy::bd3lm(mask_id, Some(pad), block)
        }
        "bd3lm_card" => DecodePolicy {
            grid: BlockGrid::Absolute,
            prompt_tail: PromptTail::Prefilled,
            schedule: Schedule::new("even"),
            stop_at: StopAt::Revealed,
            ..DecodePolicy::bd3lm(mask_id, None, block)
        },
        "mdlm" => DecodePolicy::mdlm(mask_id),
        "mdlm_card" => DecodePolicy { schedule: Schedule::new("even"), ..DecodePolicy::mdlm(mask_id) },
        "mdlm_infill" => DecodePolicy { grid: BlockGrid::Absolute, ..DecodePolicy::mdlm(mask_id) },
        other => return Err(format!("no policy for sampler `{other}`")),
    };
    let shifted = flag(case, "right_shift_logits");
    Ok(DecodePolicy {
        block,
        steps,
        logit_shift: usize::from(shifted),
        first_row: if shifted { FirstRow::Before } else { FirstRow::Own },
        lead: Lead::None,
        cfg_scale: number_or(case, "cfg_scale", 0.0),
        temperature: number_or(case, "temperature", 0.0),
        stop_ids: if policy.commits() { vec![id(&case.json["eos_token_id"])?] } else { Vec::new() },
        ..policy
    })
}
