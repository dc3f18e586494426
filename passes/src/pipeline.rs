//! Pipelines: the text that names passes, and the one function that runs, verifies, times and records them.
//!
//! A pipeline is `pass,pass{key=value, key=value},…`. Every pass is followed by the verifier; there is no way to skip it.

use crate::PASSES;
use dlx_ir::{Error, Module, VerifiedModule};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// One row of the pass table.
#[derive(Clone, Copy)]
pub struct PassInfo {
    /// Name in pipelines.
    pub name: &'static str,
    /// What it turns into what, and its parameters.
    pub doc: &'static str,
    /// Parameters that it knows; `*` allows any.
    pub params: &'static [&'static str],
    /// What it keeps of the numbers that a module computes, with these parameters.
    pub keeps: fn(&Params) -> Keeps,
    /// Changes the module, says how many nodes, weights or graphs changed, and notes what it left alone and why.
    pub run: fn(&mut Module, &Params, &mut Vec<Note>) -> Result<usize, Error>,
}

/// What a pass keeps of the numbers that a module computes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Keeps {
    /// Every bit.
    Bits,
    /// All but the last ones: sums in another order, one rounding more or less.
    Rounding,
    /// What a coarser format leaves: at most this much of a result, as the RMS of the difference over that of the result.
    Format(f32),
}

/// Something that looked like what a pass is after and is not, or is left as it is, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// What the pass was after, such as `rotary`.
    pub what: &'static str,
    /// Text of the node, with what it comes from.
    pub node: String,
    /// Why not.
    pub why: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.node, self.why)
    }
}

/// Parameters of one pass, in the order written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Params(pub Vec<(String, String)>);

impl Params {
    /// Text of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A required parameter, parsed.
    pub(crate) fn require<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<T, Error> {
        let text = self.get(key).ok_or_else(|| Error::new(format!("parameter `{key}`"), "is required"))?;
        parse(key, text)
    }

    /// An optional parameter, parsed.
    pub(crate) fn optional<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<Option<T>, Error> {
        self.get(key).map(|text| parse(key, text)).transpose()
    }
}

pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(key: &str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|e| Error::new(format!("parameter `{key}`"), format!("`{text}` is not a valid value ({e})")))
}

/// A pass with its parameters.
#[derive(Clone)]
pub struct Step {
    /// The pass.
    pub pass: &'static PassInfo,
    /// Its parameters.
    pub params: Params,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params: Vec<_> = self.params.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        write!(f, "{}", self.pass.name)?;
        if params.is_empty() { Ok(()) } else { write!(f, "{{{}}}", params.join(", ")) }
    }
}

/// Parses a pipeline.
///
/// # Errors
/// An unknown pass or parameter, or malformed text.
pub fn parse_pipeline(text: &str) -> Result<Vec<Step>, Error> {
    let bad = |what: String| Error::new("pipeline", what).help("write pass,pass{key=value}; `dlxc passes` lists them");
    let mut steps = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find([',', '{']).unwrap_or(rest.len());
        let name = rest[..end].trim();
        let pass = PASSES.iter().find(|p| p.name == name).ok_or_else(|| bad(format!("there is no pass `{name}`")))?;
        rest = &rest[end..];
        let mut params = Params::default();
        if let Some(body) = rest.strip_prefix('{') {
            let (list, after) = body.split_once('}').ok_or_else(|| bad(format!("`{name}{{` is never closed")))?;
            for pair in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                let (k, v) = pair.split_once('=').ok_or_else(|| bad(format!("`{pair}` is not key=value")))?;
                let (k, v) = (k.trim().to_owned(), v.trim().to_owned());
                if k.is_empty() || v.is_empty() {
                    return Err(bad(format!("`{pair}` is not key=value")));
                }
                if params.get(&k).is_some() && pass.params != ["*"] {
                    return Err(bad(format!("`{name}` is given `{k}` twice")));
                }
                if !pass.params.contains(&k.as_str()) && !pass.params.contains(&"*") {
                    return Err(bad(format!("`{name}` has no parameter `{k}`")));
                }
                params.0.push((k, v));
            }
            rest = after.trim_start();
        }
        steps.push(Step { pass, params });
        rest = match rest.strip_prefix(',') {
            Some(after) if after.trim().is_empty() => return Err(bad("a pass is missing after the last comma".into())),
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(bad(format!("`{rest}` stands where a comma was expected"))),
        };
    }
    Ok(steps)
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The pass.
    pub name: &'static str,
    /// The pass with its parameters.
    pub pass: String,
    /// Nodes, weights or graphs that it changed.
    pub changes: usize,
    /// What it left alone, and why.
    pub notes: Vec<Note>,
    /// Time of the pass itself.
    pub time: Duration,
    /// Time of the verifier after it.
    pub verify_time: Duration,
}

/// A pipeline that stopped.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong, with the pass in its place.
    pub error: Error,
    /// A runnable file test: the failing pass and the module before it.
    pub repro: String,
}

/// Runs a pipeline and gives the module it ends with. `observe` is called after each pass with its number from 1, its
/// report and the module.
///
/// # Errors
/// A pass that fails or leaves an invalid module; the failure carries a file that reproduces it.
pub fn run_pipeline(
    mut module: VerifiedModule,
    steps: &[Step],
    observe: &mut dyn FnMut(usize, &Report, &Module) -> Result<(), Error>,
) -> Result<(VerifiedModule, Vec<Report>), Box<Failure>> {
    let mut reports = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        let (after, report) = run_step(&module, step).map_err(|error| failure(step, &module, error))?;
        observe(i + 1, &report, &after).map_err(|error| failure(step, &module, error))?;
        module = after;
        reports.push(report);
    }
    Ok((module, reports))
}

/// Runs one pass on a copy of the module.
fn run_step(before: &Module, step: &Step) -> Result<(VerifiedModule, Report), Error> {
    let mut module = before.clone();
    let start = Instant::now();
    let mut notes = Vec::new();
    let changes = (step.pass.run)(&mut module, &step.params, &mut notes)?;
    let time = start.elapsed();
    let start = Instant::now();
    let after = VerifiedModule::new(module).map_err(|errors| {
        let error = Error::first_of(errors);
        Error { message: format!("invalid IR: {}", error.message), ..error }
    })?;
    let verify_time = start.elapsed();
    Ok((after, Report { name: step.pass.name, pass: step.to_string(), changes, notes, time, verify_time }))
}

fn failure(step: &Step, before: &Module, error: Error) -> Box<Failure> {
    let error = Error { place: format!("pass {step}: {}", error.place), ..error };
    Box::new(Failure { error, repro: format!("; test: opt {step}\n{before}") })
}
