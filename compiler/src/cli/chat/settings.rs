//! The options of [`Decode`] by name, so that a conversation can show, change, save and load them.
//!
//! Invariant: the names are the fields of `Decode` and the values pass the parsers of the command line's flags. What a
//! model says to a value is not looked at here.

use clap::{Args as _, Command, FromArgMatches as _};
use dlx_ir::Error;
use dlx_runtime::decode::DecodePolicy;
use serde_json::{Map, Value};

use super::super::run::Decode;

/// Every setting, with null for what is not set.
pub fn values(decode: &Decode) -> Map<String, Value> {
    by_text(decode)
}

/// By way of text: a number of 32 bits then reads as it was typed.
fn by_text<T: serde::de::DeserializeOwned>(value: &impl serde::Serialize) -> T {
    let text = serde_json::to_string(value).expect("it has names for keys");
    serde_json::from_str(&text).expect("it was written a line before")
}

/// Every setting with a line about it.
pub fn about(decode: &Decode) -> Vec<(String, String)> {
    let command = command();
    let help =
        |name: &str| command.get_arguments().find(|arg| arg.get_id() == name)?.get_help().map(ToString::to_string);
    let lines = values(decode).into_iter().map(|(name, _)| (help(&name).unwrap_or_default(), name));
    lines.map(|(help, name)| (name, help)).collect()
}

/// The settings with one changed. `default` takes a change back; a setting that may be repeated gets one more value.
///
/// # Errors
/// An unknown name, with those that exist; a value that the flag of that name would not take.
pub fn with(decode: &Decode, name: &str, value: &str) -> Result<Decode, Error> {
    let mut values = values(decode);
    let old = values.get_mut(&key(name)).ok_or_else(|| unknown(name, decode))?;
    match old {
        _ if value == "default" => *old = Value::Null,
        Value::Array(several) => several.push(value.into()),
        Value::Bool(flag) => {
            *flag = value
                .parse()
                .map_err(|_| Error::new("", format!("{name} cannot be {value}")).help("use true or false"))?;
        }
        _ => *old = value.into(),
    }
    parse(&values)
}

/// Settings as they were saved; what is absent is not set.
///
/// # Errors
/// As for [`with`].
pub fn read(decode: &Decode, saved: &Map<String, Value>) -> Result<Decode, Error> {
    let known = values(decode);
    match saved.keys().find(|name| !known.contains_key(*name)) {
        Some(name) => Err(unknown(name, decode)),
        None => parse(saved),
    }
}

/// The settings that a turn runs with, under the policy that they make of the model's own.
pub fn in_use(decode: &Decode, policy: &DecodePolicy) -> Vec<(String, String)> {
    let resolved: Value = by_text(&policy.with(&decode.overrides(policy)).unwrap_or_else(|_| policy.clone()));
    let used = |name: &str, set: Value| match name {
        "max_new" => decode.max_new(policy).into(),
        "rule" | "threshold" => resolved["reveal"][name].clone(),
        "cfg" => resolved["cfg_scale"].clone(),
        "stop" => resolved["stop_strings"].clone(),
        "ignore_eos" => set,
        _ => resolved[name].clone(),
    };
    let shown = |value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    values(decode).into_iter().map(|(name, set)| (shown(used(&name, set)), name)).map(|(v, name)| (name, v)).collect()
}

/// Flags are written with hyphens, fields with underscores; both are understood.
pub fn key(name: &str) -> String {
    name.replace('-', "_")
}

/// An error about a name that is no setting's.
pub fn unknown(name: &str, decode: &Decode) -> Error {
    let known: Vec<_> = values(decode).into_iter().map(|(name, _)| name).collect();
    let shown: String = name.chars().take(40).collect();
    Error::new("", format!("there is no setting {shown}")).help(format!("use one of {}", known.join(", ")))
}

fn command() -> Command {
    Decode::augment_args(Command::new("set").no_binary_name(true).disable_help_flag(true))
}

fn parse(values: &Map<String, Value>) -> Result<Decode, Error> {
    let mut arguments = Vec::new();
    for (name, value) in values {
        let flag = format!("--{}", name.replace('_', "-"));
        let several = std::slice::from_ref(value);
        for value in value.as_array().map_or(several, Vec::as_slice) {
            match value {
                Value::Null | Value::Bool(false) => {}
                Value::Bool(true) => arguments.push(flag.clone()),
                Value::String(text) => arguments.push(format!("{flag}={text}")),
                Value::Number(number) => arguments.push(format!("{flag}={number}")),
                Value::Array(_) | Value::Object(_) => {
                    return Err(Error::new("", format!("{name} is neither a number nor a text")));
                }
            }
        }
    }
    let parsed = command().try_get_matches_from(arguments).and_then(|found| Decode::from_arg_matches(&found));
    // What follows the first line is advice about the command line.
    parsed.map_err(|e| {
        let text = e.to_string();
        let line = text.lines().next().unwrap_or_default();
        Error::new("", line.strip_prefix("error: ").unwrap_or(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Decode {
        parse(&Map::new()).unwrap()
    }

    #[test]
    fn every_flag_but_that_of_threads_is_a_setting() {
        let names: Vec<_> = values(&none()).into_iter().map(|(name, _)| name).collect();
        let flags: Vec<_> = command().get_arguments().map(|arg| arg.get_id().to_string()).collect();
        assert_eq!([&names[..], &["threads".into()]].concat(), flags);
        assert!(about(&none()).iter().all(|(_, help)| !help.is_empty()));
    }

    #[test]
    fn values_are_those_of_the_flags() {
        let mut decode = none();
        for (name, value) in [
            ("max_new", "12"),
            ("top-k", "3"),
            ("temperature", "0.7"),
            ("threshold", "0.9"),
            ("cache", "dual"),
            ("seed", "18446744073709551615"),
            ("stop", "-a b"),
            ("stop", "="),
            ("ignore_eos", "true"),
            ("logit-bias", "5=-100"),
            ("logit-bias", "7=0.1"),
        ] {
            decode = with(&decode, name, value).unwrap();
        }
        assert_eq!((decode.max_new, decode.top_k, decode.temperature), (Some(12), Some(3), Some(0.7)));
        assert_eq!((decode.seed, decode.ignore_eos, decode.stop.len()), (u64::MAX, true, 2));
        let saved = values(&decode);
        assert_eq!((saved["threshold"].to_string(), &saved["cache"]), ("0.9".into(), &Value::from("dual")));
        assert_eq!(values(&read(&none(), &saved).unwrap()), saved, "what was saved is what is loaded");
        for name in
            ["max_new", "top_k", "temperature", "threshold", "cache", "seed", "stop", "ignore_eos", "logit_bias"]
        {
            decode = with(&decode, name, "default").unwrap();
        }
        assert_eq!(values(&decode), values(&none()));
    }

    #[test]
    fn wrong_settings_say_what_is_right() {
        let refused = |name: &str, value: &str| with(&none(), name, value).unwrap_err().to_string();
        assert!(refused("treshold", "1").contains("threshold, steps"));
        assert!(refused("threads", "1").contains("no setting"));
        assert!(refused("threshold", "2").contains("above 0, up to 1"));
        assert!(refused("steps", "0").contains("1..=65536"));
        assert!(refused("cache", "all").contains("none, prefix or dual"));
        assert!(refused("ignore_eos", "maybe").contains("true or false"));
        for saved in [r#"{"threads": 1}"#, r#"{"steps": true}"#, r#"{"steps": {}}"#, r#"{"top_k": [1, 2]}"#] {
            assert!(read(&none(), &serde_json::from_str(saved).unwrap()).is_err(), "{saved}");
        }
    }
}
