//! Subgraphs and sequences: resolved while importing, or refused.

use std::sync::Arc;

use dlx_ir::{DType, Data, Tensor};

use super::super::call::{Call, axis};
use super::super::graph::Graph;
use super::super::import::{Importer, MAX_ITERATIONS, Scope};
use super::super::value::Val;
use super::{Row, one};

const CONTROL: &[Row] = &[
    ("", "ConcatFromSequence", |i, c, _| one(concat_sequence(i, c))),
    ("", "If", conditional),
    ("", "Loop", repeat),
    ("", "Optional", |_, c, _| Ok(vec![c.opt(0).cloned().unwrap_or(Val::Nothing)])),
    ("", "OptionalGetElement", |_, c, _| one(unwrap(c.arg(0)?))),
    ("", "OptionalHasElement", |_, c, _| one(Ok(boolean(has_element(c.opt(0)))))),
    ("", "Scan", scan),
    ("", "SequenceAt", |i, c, _| one(sequence_at(i, c))),
    ("", "SequenceConstruct", |_, c, _| Ok(vec![list(c.all()?.into_iter().cloned().collect())])),
    ("", "SequenceEmpty", |_, _, _| Ok(vec![list(vec![])])),
    ("", "SequenceErase", |i, c, _| one(sequence_edit(i, c, false))),
    ("", "SequenceInsert", |i, c, _| one(sequence_edit(i, c, true))),
    ("", "SequenceLength", |i, c, _| one(Ok(i.b.number(DType::I64, items(c.arg(0)?)?.len() as f64)?))),
    ("", "SequenceMap", sequence_map),
    ("", "SplitToSequence", |i, c, _| one(split_sequence(i, c))),
];

pub(super) const ROWS: &[&[Row]] = &[CONTROL];

fn list(items: Vec<Val>) -> Val {
    Val::List(Arc::new(items))
}

fn items(v: &Val) -> Result<Arc<Vec<Val>>, String> {
    if let Val::List(items) = v { Ok(items.clone()) } else { Err("is a tensor where a sequence is needed".into()) }
}

fn boolean(value: bool) -> Val {
    Tensor { dtype: DType::Bool, shape: vec![], data: Data::Bool(vec![value]) }.into()
}

fn has_element(v: Option<&Val>) -> bool {
    !matches!(v, None | Some(Val::Nothing))
}

/// What an optional holds, which is the value itself.
fn unwrap(v: &Val) -> Result<Val, String> {
    if has_element(Some(v)) { Ok(v.clone()) } else { Err("the optional has no value".into()) }
}

/// A condition that is known now.
fn condition(i: &Importer<'_>, v: &Val) -> Result<bool, String> {
    let known = i.b.known(v)?.ok_or("its condition is known only when the model runs")?;
    match &known.data {
        Data::Bool(x) if x.len() == 1 => Ok(x[0]),
        _ => Err("its condition is not one bool".into()),
    }
}

/// Imports a subgraph on these inputs and gives its outputs.
pub(super) fn body(
    i: &mut Importer<'_>,
    graph: &Graph,
    scope: &Scope<'_>,
    inputs: Vec<Val>,
) -> Result<Vec<Val>, String> {
    if graph.inputs.len() != inputs.len() {
        return Err(format!("its body takes {} inputs, not {}", graph.inputs.len(), inputs.len()));
    }
    let named = graph.inputs.iter().zip(inputs).map(|(input, v)| (input.name.clone(), Some(v)));
    let mut inner = Scope { parent: Some(scope), values: named.collect() };
    let origin = i.b.origin.clone();
    i.run(graph, &mut inner).map_err(|e| e.to_string())?;
    i.b.origin = origin;
    let out =
        graph.outputs.iter().map(|o| i.made(&inner, &o.name).ok_or_else(|| format!("its body has no `{}`", o.name)));
    out.collect()
}

fn conditional(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    if let Val::Run(_) = c.arg(0)? {
        return both_branches(i, c, scope);
    }
    let branch = if condition(i, c.arg(0)?)? { "then_branch" } else { "else_branch" };
    body(i, c.graph(branch)?, scope, vec![])
}

/// A condition that is known only when the model runs chooses between the results of both branches.
fn both_branches(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    let asked = i.b.reshape(c.arg(0)?, &[])?;
    let yes = body(i, c.graph("then_branch")?, scope, vec![])?;
    let no = body(i, c.graph("else_branch")?, scope, vec![])?;
    if yes.len() != no.len() {
        return Err(format!("its branches have {} and {} outputs", yes.len(), no.len()));
    }
    let mut out = Vec::with_capacity(yes.len());
    for (yes, no) in yes.iter().zip(&no) {
        if i.b.dtype(yes)? != i.b.dtype(no)? || i.b.shape(yes)? != i.b.shape(no)? {
            return Err(
                "its condition is known only when the model runs, and its branches make different shapes".into()
            );
        }
        out.push(i.b.select(&asked, yes, no)?);
    }
    i.b.note("both branches of a condition are computed, as it is known only when the model runs");
    Ok(out)
}

/// Stacks what each iteration gave.
fn stack(i: &mut Importer<'_>, parts: &[Val], at: usize) -> Result<Val, String> {
    let mut rows = Vec::with_capacity(parts.len());
    for part in parts {
        let mut shape = i.b.shape(part)?;
        shape.insert(at.min(shape.len()), 1);
        rows.push(i.b.reshape(part, &shape)?);
    }
    if rows.is_empty() {
        return Err("a loop without iterations has no scanned output".into());
    }
    i.b.concat(&rows.iter().collect::<Vec<_>>(), at)
}

fn repeat(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    let graph = c.graph("body")?;
    let most = match c.opt(0) {
        Some(n) => i.b.known_ints(n, "the trip count")?.first().copied().ok_or("its trip count is empty")?,
        None => i64::MAX,
    };
    let mut going = c.opt(1).map_or(Ok(true), |v| condition(i, v))?;
    let mut carried: Vec<Val> =
        c.args.iter().skip(2).map(|a| a.clone().ok_or("an input is missing")).collect::<Result<_, _>>()?;
    let count = carried.len();
    let mut scanned: Vec<Vec<Val>> = vec![Vec::new(); graph.outputs.len().saturating_sub(1 + count)];
    let mut n = 0;
    while going && n < most {
        if n as usize >= MAX_ITERATIONS {
            return Err(format!("a loop of more than {MAX_ITERATIONS} iterations is not unrolled"));
        }
        let inputs = [i.b.number(DType::I64, n as f64)?, boolean(true)].into_iter().chain(carried).collect();
        let mut out = body(i, graph, scope, inputs)?.into_iter();
        going = condition(i, &out.next().ok_or("its body has no condition")?)?;
        carried = out.by_ref().take(count).collect();
        scanned.iter_mut().zip(out).for_each(|(to, v)| to.push(v));
        n += 1;
    }
    let stacked = scanned.iter().map(|parts| stack(i, parts, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(carried.into_iter().chain(stacked).collect())
}

fn scan(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    if c.opset() < 9 {
        return scan_batches(i, c, scope);
    }
    let (graph, sources) = (c.graph("body")?, c.size("num_scan_inputs")?);
    let args: Vec<Val> = c.all()?.into_iter().cloned().collect();
    let count = args.len().checked_sub(sources).ok_or("has fewer inputs than it scans")?;
    let (states, scanned) = args.split_at(count);
    let list = |name: &str, len: usize| Ok::<_, String>(c.ints(name)?.unwrap_or_else(|| vec![0; len]));
    let outs = graph.outputs.len().saturating_sub(count);
    let (in_axes, out_axes) = (list("scan_input_axes", sources)?, list("scan_output_axes", outs)?);
    let (in_back, out_back) = (list("scan_input_directions", sources)?, list("scan_output_directions", outs)?);
    if in_axes.len() != sources || in_back.len() != sources || out_axes.len() != outs || out_back.len() != outs {
        return Err("its axes or directions are not one for each input and output".into());
    }
    let along = in_axes.iter().zip(scanned).map(|(a, x)| axis(*a, i.b.rank(x)?)).collect::<Result<Vec<_>, _>>()?;
    let directions = [in_back, out_back].map(|list| list.into_iter().map(|d| d == 1).collect());
    scan_along(i, graph, scope, states, scanned, &along, directions, &out_axes)
}

/// One dimension of a tensor gone, at one place of it.
fn row(i: &mut Importer<'_>, x: &Val, at: usize, n: usize) -> Result<Val, String> {
    let row = i.b.slice(x, at, n, n + 1)?;
    let mut shape = i.b.shape(&row)?;
    shape.remove(at);
    i.b.reshape(&row, &shape)
}

/// The first version: everything has a batch in front, and the scan runs along the second dimension of each.
fn scan_batches(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    let (graph, sources) = (c.graph("body")?, c.size("num_scan_inputs")?);
    if c.opt(0).is_some() {
        return Err("sequences of different lengths are not supported".into());
    }
    let args: Vec<Val> =
        c.args.iter().skip(1).map(|a| a.clone().ok_or("an input is missing")).collect::<Result<_, _>>()?;
    let count = args.len().checked_sub(sources).ok_or("has fewer inputs than it scans")?;
    let outs = graph.outputs.len().saturating_sub(count);
    let back = c.ints("directions")?.unwrap_or_default().iter().map(|d| *d == 1).collect::<Vec<_>>();
    let back = if back.is_empty() { vec![false; sources] } else { back };
    if back.len() != sources {
        return Err("its directions are not one for each input".into());
    }
    let batch = *i.b.shape(args.first().ok_or("has no input")?)?.first().ok_or("has no batch")?;
    let mut parts: Vec<Vec<Val>> = vec![Vec::new(); graph.outputs.len()];
    for n in 0..batch {
        let args = args.iter().map(|x| row(i, x, 0, n)).collect::<Result<Vec<_>, _>>()?;
        let (states, scanned) = args.split_at(count);
        let directions = [back.clone(), vec![false; outs]];
        let out = scan_along(i, graph, scope, states, scanned, &vec![0; sources], directions, &vec![0; outs])?;
        parts.iter_mut().zip(out).for_each(|(to, v)| to.push(v));
    }
    parts.iter().map(|parts| stack(i, parts, 0)).collect()
}

/// Scans `scanned` along one dimension each, backwards where the first list of directions says so.
#[allow(clippy::too_many_arguments, reason = "what a scan is made of")]
fn scan_along(
    i: &mut Importer<'_>,
    graph: &Graph,
    scope: &Scope<'_>,
    states: &[Val],
    scanned: &[Val],
    along: &[usize],
    [in_back, out_back]: [Vec<bool>; 2],
    out_axes: &[i64],
) -> Result<Vec<Val>, String> {
    let (count, outs) = (states.len(), out_axes.len());
    let length = *i.b.shape(&scanned[0])?.get(along[0]).ok_or("scans what has no dimension")?;
    if length > MAX_ITERATIONS {
        return Err(format!("a scan of more than {MAX_ITERATIONS} iterations is not unrolled"));
    }
    let mut carried = states.to_vec();
    let mut parts: Vec<Vec<Val>> = vec![Vec::new(); outs];
    for n in 0..length {
        let mut inputs = carried;
        for (k, x) in scanned.iter().enumerate() {
            inputs.push(row(i, x, along[k], if in_back[k] { length - 1 - n } else { n })?);
        }
        let mut out = body(i, graph, scope, inputs)?.into_iter();
        carried = out.by_ref().take(count).collect();
        parts.iter_mut().zip(out).for_each(|(to, v)| to.push(v));
    }
    for (k, parts) in parts.iter_mut().enumerate() {
        if out_back[k] {
            parts.reverse();
        }
        let rank = parts.first().map_or(Ok(0), |p| i.b.rank(p))?;
        let stacked = stack(i, parts, axis(out_axes[k], rank + 1)?)?;
        carried.push(stacked);
    }
    Ok(carried)
}

/// A place in a sequence; negative ones count from the end.
fn place(i: &Importer<'_>, v: &Val, len: usize) -> Result<usize, String> {
    let n = i.b.known_ints(v, "position")?.first().copied().ok_or("has no position")?;
    axis(n, len).map_err(|_| format!("position {n} in a sequence of {len}"))
}

fn sequence_at(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let items = items(c.arg(0)?)?;
    Ok(items[place(i, c.arg(1)?, items.len())?].clone())
}

fn sequence_edit(i: &mut Importer<'_>, c: &Call<'_>, insert: bool) -> Result<Val, String> {
    let mut items = (*items(c.arg(0)?)?).clone();
    let at = c.opt(if insert { 2 } else { 1 });
    if insert {
        let at = at.map_or(Ok(items.len()), |at| place(i, at, items.len() + 1))?;
        items.insert(at, c.arg(1)?.clone());
    } else {
        let at = at.map_or(Ok(items.len().saturating_sub(1)), |at| place(i, at, items.len()))?;
        if items.is_empty() {
            return Err("the sequence is empty".into());
        }
        items.remove(at);
    }
    Ok(list(items))
}

/// Maps a body over a sequence; of further sequences it gets the element in the same place.
fn sequence_map(i: &mut Importer<'_>, c: &Call<'_>, scope: &Scope<'_>) -> Result<Vec<Val>, String> {
    let graph = c.graph("body")?;
    let count = items(c.arg(0)?)?.len();
    let mut out = vec![Vec::with_capacity(count); graph.outputs.len()];
    for n in 0..count {
        let at = |v: &Val| match v {
            Val::List(list) => list.get(n).cloned().ok_or_else(|| format!("a sequence has less than {count} elements")),
            other => Ok(other.clone()),
        };
        let inputs = c.all()?.into_iter().map(at).collect::<Result<_, _>>()?;
        out.iter_mut().zip(body(i, graph, scope, inputs)?).for_each(|(to, v)| to.push(v));
    }
    Ok(out.into_iter().map(list).collect())
}

fn concat_sequence(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let items = items(c.arg(0)?)?;
    let rank = items.first().map_or(Err("the sequence is empty".into()), |x| i.b.rank(x))?;
    let at = c.needed("axis")?;
    if c.flag("new_axis")? {
        return stack(i, &items, axis(at, rank + 1)?);
    }
    i.b.concat(&items.iter().collect::<Vec<_>>(), axis(at, rank)?)
}

fn split_sequence(i: &mut Importer<'_>, c: &Call<'_>) -> Result<Val, String> {
    let x = c.arg(0)?;
    let shape = i.b.shape(x)?;
    let at = axis(c.int_or("axis", 0)?, shape.len())?;
    let (size, keep) = (shape[at], c.int_or("keepdims", 1)? != 0 || c.opt(1).is_some());
    let parts = match c.opt(1) {
        None => vec![1; size],
        Some(v) => {
            let given = super::shape::sizes(&i.b.known_ints(v, "split")?)?;
            match (i.b.rank(v)?, given.first()) {
                (0, Some(&part)) if part > 0 => (0..size).step_by(part).map(|n| part.min(size - n)).collect(),
                _ => given,
            }
        }
    };
    let mut out = Vec::with_capacity(parts.len());
    let mut first = 0;
    for part in parts {
        let end = first + part;
        if end > size {
            return Err(format!("parts reach beyond {size}"));
        }
        let mut piece = i.b.slice(x, at, first, end)?;
        if !keep {
            let mut dims = i.b.shape(&piece)?;
            dims.remove(at);
            piece = i.b.reshape(&piece, &dims)?;
        }
        out.push(piece);
        first = end;
    }
    Ok(list(out))
}
