//! The base of rotary embeddings, which four keys may state, and everything about them that is not supported.
//!
//! `rope_theta` is the old key; `rope_parameters` is what transformers 5 writes, flat or one object per kind of layer; and
//! `rope_scaling` may hold a type or, in files of the time between, a base. A class that takes the base as an argument is saved
//! again by transformers 5 with its own default beside the value that counts, so a default gives way to what differs from it.

use dlx_ir::Error;

use super::facts::Facts;
use crate::checkpoint::Config;

/// Base of every class here when a file states none.
const DEFAULT: f64 = 10_000.0;

/// Kinds of layers that `rope_parameters` may name, the one in use first.
const LAYERS: &[&str] = &["full_attention", "sliding_attention", "chunked_attention", "linear_attention"];

/// Keys of an object about rotary embeddings that change nothing by themselves.
const NEUTRAL: &[&str] = &["rope_type", "type", "rope_theta", "factor", "partial_rotary_factor"];

/// Reads the base.
///
/// # Errors
/// A scaled or partial rotation, or two bases of which neither is the default.
pub(super) fn base(config: &Config, facts: &mut Facts) -> Result<f32, Error> {
    let mut stated: Vec<(String, f64)> = Vec::new();
    let mut state = |owner: &Config| -> Result<(), Error> {
        if let Some(theta) = owner.opt_f64("rope_theta")? {
            stated.push((owner.path("rope_theta"), theta));
        }
        Ok(())
    };
    state(config)?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(object) = config.object(key)? else { continue };
        let nested: Vec<Config> =
            LAYERS.iter().map(|l| object.object(l)).filter_map(Result::transpose).collect::<Result<_, _>>()?;
        // Of several kinds of layers only those that attend everything are compiled; sliding ones are refused elsewhere.
        let object = nested.into_iter().next().unwrap_or(object);
        unscaled(&object)?;
        state(&object)?;
    }
    whole(config)?;

    let differing: Vec<&(String, f64)> = stated.iter().filter(|(_, theta)| *theta != DEFAULT).collect();
    let (source, theta) = match (differing.first(), stated.first()) {
        (Some((source, theta)), _) => (source.clone(), *theta),
        (None, Some((source, theta))) => (source.clone(), *theta),
        (None, None) => ("the class's default".into(), DEFAULT),
    };
    if let Some((other, value)) = differing.iter().find(|(_, value)| *value != theta) {
        return Err(config
            .error("rope_theta", format!("{source} is {theta} and {other} is {value}"))
            .help("give both the base that the model was trained with, which the model card or an older commit of config.json states"));
    }
    if let Some((other, value)) = stated.iter().find(|(_, value)| *value != theta) {
        facts
            .note(format!("rope base {theta} ({source}) is used; {other} is {value}, the class's default, and is not"));
    }
    if stated.is_empty() {
        facts.note(format!("config.json states no rope base: {DEFAULT}, the class's default, is used"));
    }
    facts.add("rope base", theta, source);
    Ok(theta as f32)
}

/// Refuses an object that scales or splits the rotation.
fn unscaled(object: &Config) -> Result<(), Error> {
    let refuse = |key: &str, what: String| {
        Err(object.error(key, what).help("this model cannot be compiled yet; a checkpoint without rotary scaling can"))
    };
    for key in ["rope_type", "type"] {
        let kind = object.opt_str(key)?.unwrap_or("default");
        // A linear scaling by one is none.
        let none = kind == "default" || kind == "linear" && object.opt_f64("factor")? == Some(1.0);
        if !none {
            return refuse(key, format!("rotary embeddings of type `{kind}` are not supported"));
        }
    }
    if object.opt_f64("factor")?.is_some_and(|factor| factor != 1.0) {
        return refuse("factor", "scaled rotary embeddings are not supported".into());
    }
    if let Some(key) = object.keys().find(|k| !NEUTRAL.contains(k) && object.get(k).is_some()) {
        return refuse(key, "is not a key that unscaled rotary embeddings have".into());
    }
    whole(object)
}

/// Refuses a rotation of a part of each head.
fn whole(config: &Config) -> Result<(), Error> {
    for key in ["partial_rotary_factor", "rotary_pct", "rope_pct"] {
        if config.opt_f64(key)?.is_some_and(|part| part != 1.0) {
            let what = "rotating a part of each head is not supported";
            return Err(config.error(key, what).help("this model cannot be compiled yet"));
        }
    }
    Ok(())
}
