//! The text of conformance files: a module, and in its comments the contents of weights, calls, and what must come out.
//!
//! ```text
//! ; weight @w = 1 2 3 4                  row-major contents
//! ; run: @g(f32[2, 2] 1 2 3 4, 7)        a call; a bare number is an i32 scalar
//! ;   == f32[2, 2] 2 4 6 8               its next result
//! ;   %y == f32[2, 2] 1 1 1 1 ~ 1e-5     a value inside it, and a tolerance other than 1e-6
//! ;   == f32[2] 1 2 ~ 1e-6, cpu 1e-2     a tolerance of its own for a target
//! ;   error: part of the message         the call must fail so, on the reference evaluator
//! ```
//! Calls of one file share their states and run in order. A number is close when it differs by less than the tolerance
//! times one plus its magnitude.

use std::collections::BTreeMap;

use dlx_ir::{DType, Data, MAX_SPANS, Module, SPAN_FIELDS, SpanRows, Tensor, parse};
use dlx_runtime::exec::{RowStats, Span};

/// A conformance file.
pub(crate) struct File {
    pub(crate) module: Module,
    pub(crate) weights: BTreeMap<String, Vec<f32>>,
    pub(crate) calls: Vec<Call>,
}

/// Sequences that the caches of a file hold.
pub(crate) const SLOTS: usize = 2;

/// A call and what must come out.
pub(crate) struct Call {
    /// The line as written.
    pub(crate) line: String,
    pub(crate) graph: String,
    pub(crate) args: Vec<Tensor>,
    pub(crate) checks: Vec<Check>,
    pub(crate) error: Option<String>,
}

impl Call {
    fn ints(&self, i: usize) -> Result<&[i32], String> {
        self.args.get(i).ok_or("an argument is missing".to_owned())?.ints()
    }

    /// The call of a step entry as an executor takes it.
    pub(crate) fn step(&self) -> Result<Vec<Span<'_>>, String> {
        let (ids, pos) = (self.ints(0)?, self.ints(1)?);
        let spans = SpanRows::read(self.ints(2)?, ids.len())?.into_iter();
        let span = |SpanRows { rows, slot, at, from, visible }: SpanRows| Span {
            slot,
            ids: &ids[rows.clone()],
            pos: &pos[rows],
            at,
            from,
            visible,
        };
        Ok(spans.map(span).collect())
    }

    /// The rows that a head or logits entry is asked for.
    pub(crate) fn rows(&self) -> Result<Vec<usize>, String> {
        Ok(self.ints(0)?.iter().map(|r| usize::try_from(*r).expect("rows are not negative")).collect())
    }
}

/// The results of a head entry.
pub(crate) fn tensors(stats: &[RowStats]) -> [Tensor; 2] {
    let numbers = stats.iter().flat_map(|s| [s.prob, s.margin, s.entropy]).collect();
    [Tensor::i32(&[stats.len()], stats.iter().map(|s| s.best).collect()), Tensor::f32(&[stats.len(), 3], numbers)]
}

/// One expected tensor.
pub(crate) struct Check {
    /// Name of a value, or nothing for the next result.
    pub(crate) name: Option<String>,
    pub(crate) expected: Tensor,
    pub(crate) tolerance: f32,
    pub(crate) cpu_tolerance: f32,
}

/// Reads a file.
pub(crate) fn read(text: &str) -> Result<File, String> {
    let module = parse(text).map_err(|e| e.to_string())?;
    let mut file = File { module, weights: BTreeMap::new(), calls: Vec::new() };
    for line in text.lines() {
        let Some(comment) = line.strip_prefix(';') else { continue };
        let at = |e: String| format!("{line}: {e}");
        if let Some(rest) = comment.strip_prefix(" weight @") {
            let (name, numbers) = rest.split_once('=').ok_or_else(|| at("`=` is missing".into()))?;
            let numbers: Result<Vec<f32>, _> = numbers.split_whitespace().map(str::parse).collect();
            file.weights.insert(name.trim().into(), numbers.map_err(|e| at(e.to_string()))?);
        } else if let Some(rest) = comment.strip_prefix(" run: @") {
            file.calls.push(call(rest).map_err(at)?);
        } else if let (Some(rest), Some(call)) = (comment.strip_prefix("   "), file.calls.last_mut()) {
            match rest.strip_prefix("error: ") {
                Some(message) => call.error = Some(message.into()),
                None => call.checks.push(check(rest).map_err(at)?),
            }
        }
    }
    match file.calls.iter().find(|c| c.checks.is_empty() == c.error.is_none() && !c.graph.starts_with("step")) {
        Some(call) => Err(format!("{}: nothing is expected of it", call.line)),
        None => Ok(file),
    }
}

fn call(text: &str) -> Result<Call, String> {
    let (graph, rest) = text.split_once('(').ok_or("`(` is missing")?;
    let mut rest = rest.trim_end().strip_suffix(')').ok_or("`)` is missing")?.trim();
    let mut args = Vec::new();
    while !rest.is_empty() {
        let (arg, after) = tensor(rest)?;
        args.push(arg);
        rest = after.trim_start_matches([',', ' ']);
    }
    Ok(Call { line: text.into(), graph: graph.into(), args, checks: Vec::new(), error: None })
}

fn check(text: &str) -> Result<Check, String> {
    let (name, rest) = text.split_once("==").ok_or("`==` is missing")?;
    let name = name.trim().strip_prefix('%').map(String::from);
    let (expected, rest) = tensor(rest)?;
    let number = |t: &str| t.trim().parse::<f32>().map_err(|e| format!("`{t}`: {e}"));
    let (tolerance, cpu_tolerance) = match rest.trim().strip_prefix('~').map(|t| t.split_once(", cpu")) {
        None => (1e-6, 1e-5),
        Some(Some((all, cpu))) => (number(all)?, number(cpu)?),
        Some(None) => {
            let t = number(rest.trim().trim_start_matches('~'))?;
            (t, t)
        }
    };
    Ok(Check { name, expected, tolerance, cpu_tolerance })
}

/// Reads a tensor and gives what is behind it. `spans(2 0 4 0 6; 1 1 0 0 1)` is a table of spans: rows, slot, at, from, visible.
fn tensor(text: &str) -> Result<(Tensor, &str), String> {
    let text = text.trim_start();
    if let Some((table, rest)) = text.strip_prefix("spans(").and_then(|t| t.split_once(')')) {
        let numbers: Result<Vec<i32>, _> = table.split([' ', ';']).filter(|n| !n.is_empty()).map(str::parse).collect();
        let mut numbers = numbers.map_err(|e| format!("`{table}`: {e}"))?;
        numbers.resize(MAX_SPANS * SPAN_FIELDS, 0);
        return Ok((Tensor::i32(&[MAX_SPANS, SPAN_FIELDS], numbers), rest));
    }
    let end = text.find([',', '[']).unwrap_or(text.len());
    if !text[end..].starts_with('[') {
        let scalar = text[..end].trim().parse().map_err(|e| format!("`{}`: {e}", &text[..end]))?;
        return Ok((Tensor::i32(&[], vec![scalar]), &text[end..]));
    }
    let dtype: DType = text[..end].parse()?;
    let (dims, rest) = text[end + 1..].split_once(']').ok_or("`]` is missing")?;
    let dims = dims.split(',').map(str::trim).filter(|d| !d.is_empty());
    let shape = dims.map(|d| d.parse().map_err(|e| format!("`{d}`: {e}"))).collect::<Result<Vec<usize>, _>>()?;
    let end = rest.find([',', '~']).unwrap_or(rest.len());
    let numbers: Result<Vec<f64>, _> = rest[..end].split_whitespace().map(str::parse).collect();
    let numbers = numbers.map_err(|e| format!("`{}`: {e}", &rest[..end]))?;
    if numbers.len() != shape.iter().product::<usize>() {
        return Err(format!("{} numbers are not a tensor of shape {shape:?}", numbers.len()));
    }
    let data = match dtype {
        DType::I32 => Data::I32(numbers.iter().map(|n| *n as i32).collect()),
        DType::Bool => Data::Bool(numbers.iter().map(|n| *n != 0.0).collect()),
        DType::F64 => Data::F64(numbers),
        dtype if dtype.is_int() => Data::I64(numbers.iter().map(|n| *n as i64).collect()),
        _ => Data::F32(numbers.iter().map(|n| *n as f32).collect()),
    };
    Ok((Tensor { dtype, shape, data }, &rest[end..]))
}

/// Says how a tensor differs from what was expected.
pub(crate) fn compare(expected: &Tensor, found: &Tensor, tolerance: f32) -> Result<(), String> {
    let close = |(e, f): (&f32, &f32)| (e - f).abs() <= tolerance * (1.0 + e.abs());
    let same = expected.shape == found.shape
        && match (&expected.data, &found.data) {
            (Data::F32(e), Data::F32(f)) => e.len() == f.len() && e.iter().zip(f).all(close),
            (Data::F64(e), Data::F64(f)) => e.iter().zip(f).all(|(e, f)| close((&(*e as f32), &(*f as f32)))),
            (e, f) => e == f,
        };
    if same { Ok(()) } else { Err(format!("expected {expected:?}\n   found {found:?}")) }
}
