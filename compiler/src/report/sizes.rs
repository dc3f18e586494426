//! Where an artifact's bytes are: weights by element type and by what they are for, and the memory of each entry.
//!
//! Invariant: bytes that several programs share are counted once, and shares add up to the whole.

use std::collections::{BTreeMap, BTreeSet};

use dlx_ir::{Graph, WeightDef, live_ranges};
use serde::Serialize;

use super::lines::layer_of;
use super::programs::Program;
use crate::cli::table;

/// A row of a table with a bar.
#[derive(PartialEq, Debug, Serialize)]
pub(super) struct Row {
    name: String,
    /// Type, or nothing.
    ty: String,
    /// How many weights.
    count: usize,
    bytes: u64,
    size: String,
    /// Of all bytes, in percent.
    percent: String,
    /// Width of the bar, of 100: a part of the largest.
    bar: String,
}

/// A weight.
#[derive(Serialize)]
struct Weight {
    name: String,
    ty: String,
    size: String,
    origin: String,
}

/// How much an entry keeps in its arena.
#[derive(Serialize)]
struct Memory {
    target: String,
    entry: String,
    values: usize,
    arena: String,
    peak: String,
    /// The node at which most bytes are alive.
    at: String,
}

/// Everything about sizes.
#[derive(Serialize)]
pub(super) struct Sizes {
    total: String,
    dtypes: Vec<Row>,
    roles: Vec<Row>,
    weights: Vec<Weight>,
    memory: Vec<Memory>,
}

/// The sizes of programs.
pub(super) fn sizes(programs: &[Program]) -> Sizes {
    let mut seen = BTreeSet::new();
    let (mut dtypes, mut roles) = (BTreeMap::new(), BTreeMap::new());
    let mut weights = Vec::new();
    let mut total = 0u64;
    for (_, weight) in programs.iter().flat_map(|p| p.module.weights.iter()) {
        let WeightDef::Stored { offset, bytes, .. } = weight.def else { continue };
        if !seen.insert((offset, bytes)) {
            continue;
        }
        total = total.saturating_add(bytes);
        let ty = weight.ty.to_string();
        add(&mut dtypes, (weight.ty.dtype.to_string(), String::new()), bytes);
        add(&mut roles, (role(&weight.name), ty.clone()), bytes);
        let origin: Vec<&str> = weight.origin.names().collect();
        weights.push((
            bytes,
            Weight { name: weight.name.clone(), ty, size: table::bytes(bytes), origin: origin.join(", ") },
        ));
    }
    weights.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let memory = programs.iter().flat_map(|p| p.module.graphs.iter().filter_map(|g| memory(&p.target, g)));
    Sizes {
        total: table::bytes(total),
        dtypes: rows(dtypes, total),
        roles: rows(roles, total),
        weights: weights.into_iter().map(|(_, weight)| weight).collect(),
        memory: memory.collect(),
    }
}

/// Name and type, and how many weights of how many bytes.
type Sums = BTreeMap<(String, String), (usize, u64)>;

fn add(sums: &mut Sums, key: (String, String), bytes: u64) {
    let (count, sum) = sums.entry(key).or_default();
    *count += 1;
    *sum = sum.saturating_add(bytes);
}

/// Rows, the largest first.
fn rows(sums: Sums, total: u64) -> Vec<Row> {
    let largest = sums.values().map(|(_, bytes)| *bytes).max().unwrap_or(1).max(1);
    let share = |bytes: u64, of: u64| 100.0 * bytes as f64 / of.max(1) as f64;
    let row = |((name, ty), (count, bytes))| Row {
        name,
        ty,
        count,
        bytes,
        size: table::bytes(bytes),
        percent: format!("{:.1} %", share(bytes, total)),
        bar: format!("{:.2}", share(bytes, largest)),
    };
    let mut rows: Vec<Row> = sums.into_iter().map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

/// A weight's name with a star for the number of its layer.
fn role(name: &str) -> String {
    let Some(layer) = layer_of(name) else { return name.to_owned() };
    let number = layer.to_string();
    let words = name.split_inclusive(['.', '/', '_']);
    let mut open = true;
    let star = |word: &str| {
        let bare = word.trim_end_matches(['.', '/', '_']);
        let digits = bare.strip_prefix('l').unwrap_or(bare);
        if open && digits == number {
            open = false;
            return word.replacen(digits, "*", 1);
        }
        word.to_owned()
    };
    words.map(star).collect()
}

/// The arena of an entry: how much of it values fill at most, and when.
fn memory(target: &str, graph: &Graph) -> Option<Memory> {
    let mut deltas = vec![0i128; graph.nodes.len() + 3];
    let mut values = 0;
    for ((_, value), (from, to)) in graph.values.iter().zip(live_ranges(graph)) {
        let (Some(_), Some(bytes)) = (value.slot, value.ty.bytes()) else { continue };
        values += 1;
        deltas[from] += bytes as i128;
        deltas[to + 1] -= bytes as i128;
    }
    if values == 0 {
        return None;
    }
    let mut sum = 0;
    let sums: Vec<i128> = deltas
        .iter()
        .map(|delta| {
            sum += delta;
            sum
        })
        .collect();
    let (at, peak) = sums.iter().enumerate().fold((0, 0), |best, (i, n)| if *n > best.1 { (i, *n) } else { best });
    let node = at.checked_sub(1).and_then(|i| graph.nodes.get(i));
    let name = node.and_then(|n| n.outputs.first()).map(|o| format!(" %{}", graph.values[*o].name)).unwrap_or_default();
    Some(Memory {
        target: target.to_owned(),
        entry: graph.name.clone(),
        values,
        arena: table::bytes(graph.arena_bytes()),
        peak: table::bytes(u64::try_from(peak).unwrap_or(u64::MAX)),
        at: node.map_or_else(|| "the beginning or the end".to_owned(), |n| format!("node {at}, {}{name}", n.op.name())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_summed_over_layers_and_counted_once() {
        let text = "module @m {
          weight @l0.q: q8[64, 64] @n16 = stored {offset=0, bytes=8448}
          weight @l1.q: q8[64, 64] @n16 = stored {offset=8448, bytes=8448}
          weight @norm: f32[64] = stored {offset=16896, bytes=256}
          graph @g(%x: f32[64] at 0) -> (f32[64]) {
            %a = silu %x: f32[64] at 256
            %b = add %a, %a: f32[64] at 0
            return %b
          }
        }";
        let program = |target: &str| Program { target: target.into(), module: dlx_ir::parse(text).unwrap() };
        let sizes = sizes(&[program("cpu"), program("wgpu")]);
        let rows: Vec<_> =
            sizes.roles.iter().map(|r| (r.name.as_str(), r.count, r.bytes, r.percent.as_str())).collect();
        assert_eq!(rows, [("l*.q", 2, 16896, "98.5 %"), ("norm", 1, 256, "1.5 %")]);
        let dtypes: Vec<_> = sizes.dtypes.iter().map(|r| (r.name.as_str(), r.bytes)).collect();
        assert_eq!(dtypes, [("q8", 16896), ("f32", 256)]);
        assert_eq!((sizes.weights.len(), sizes.total.as_str()), (3, "17.2 kB"));
        // While %a is made from %x both are alive; %b may lie where %x was.
        let memory = &sizes.memory[0];
        assert_eq!((memory.values, memory.arena.as_str(), memory.peak.as_str()), (3, "512 B", "512 B"));
        assert_eq!((memory.at.as_str(), sizes.memory.len()), ("node 1, silu %a", 2));
    }

    #[test]
    fn a_star_stands_for_the_layer_alone() {
        assert_eq!(role("model.layers.4.mlp.4.weight"), "model.layers.*.mlp.4.weight");
        assert_eq!(role("l12.qkv"), "l*.qkv");
        assert_eq!(role("lm_head"), "lm_head");
    }
}
