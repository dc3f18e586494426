//! What `dlxc explain` says, for people and as JSON.

use std::time::Duration;

use dlx_ir::Module;
use serde_json::{Value, json};

use super::profile::Profile;
use super::{Pass, Report};
use crate::cli::table::{self, Align};
use crate::explain::{Answers, Change, Entry, Estimate, Line, TokenCost, Work};

impl Report<'_> {
    pub(super) fn to_text(&self, nodes: bool) -> String {
        let mut text = format!("{}: {}\n", self.artifact, self.device);
        if let Some((file, machine, limits)) = &self.machine {
            text.push_str(&format!("limits of {} in {}\n", machine.cpu, file.display()));
            let [cached, memory] = [limits.read_gbs(limits.cache_bytes()), limits.memory_gbs()];
            text.push_str(&format!(
                "memory reads {memory:.1} GB/s, caches of about {} {cached:.0} GB/s; a parallel region takes {}\n",
                table::bytes(limits.cache_bytes()),
                time(1e-6 * limits.region_us),
            ));
        }
        if let Some(now) = self.read_gbs {
            text.push_str(&format!("beside the measurements, the weights were read at {now:.1} GB/s\n"));
        }
        self.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        for pass in &self.passes {
            text.push('\n');
            text.push_str(&pass.to_text(self.module, nodes));
        }
        text
    }

    pub(super) fn to_json(&self, nodes: bool) -> Value {
        let machine = self.machine.as_ref().map(|(file, machine, limits)| {
            json!({
                "file": file.display().to_string(),
                "cpu": machine.cpu,
                "isa": machine.isa,
                "cores": machine.cores,
                "threads": limits.threads,
                "memory_gbs": limits.memory_gbs(),
                "cache_bytes": limits.cache_bytes(),
                "region_us": limits.region_us,
            })
        });
        json!({
            "artifact": self.artifact,
            "device": self.device,
            "machine": machine,
            "read_gbs": self.read_gbs,
            "notes": self.notes,
            "passes": self.passes.iter().map(|p| p.to_json(self.module, nodes)).collect::<Vec<_>>(),
        })
    }
}

impl Pass<'_> {
    fn to_text(&self, module: &Module, nodes: bool) -> String {
        let mut text = String::new();
        for (i, (entry, profile)) in self.entries.iter().enumerate() {
            let (rows, depth) = (self.rows, self.depth);
            let what = if i == 0 { format!("behind {depth} others") } else { "of that step".to_owned() };
            let s = if rows == 1 { "" } else { "s" };
            text.push_str(&format!("{}: {rows} row{s} {what}\n", entry.graph.name));
            text.push_str(&entry_table(module, entry, profile.as_ref(), nodes));
            text.push_str(&profile.as_ref().map_or_else(String::new, |p| measured_text(module, entry, p)));
            text.push('\n');
        }
        if let Some(both) = &self.both {
            let work = self.work();
            let rate = |n: u64| n as f64 * 1e-9 / both.median.as_secs_f64();
            text.push_str(&format!(
                "step and head take {} ({} at best), {:.1} GB/s and {:.0} GOPS of the counts above\n",
                table::duration(both.median),
                table::duration(both.fastest),
                rate(work.bytes()),
                rate(work.operations),
            ));
        }
        text.push_str(&changes_text(&self.changes));
        if !self.changes.is_empty() {
            text.push_str(&tokens_text(self.tokens.as_deref().map_err(ToString::to_string)));
        }
        text
    }

    fn work(&self) -> Work {
        let mut sum = Work::default();
        self.entries.iter().for_each(|(entry, _)| sum.add(&entry.work()));
        sum
    }

    fn to_json(&self, module: &Module, nodes: bool) -> Value {
        let entries = self.entries.iter().map(|(entry, profile)| {
            let shown = if nodes { entry.clone() } else { entry.folded(module) };
            let lines = shown.lines.iter().map(|l| line_json(module, &shown, l, profile.as_ref()));
            let mut value = json!({"entry": entry.graph.name, "lines": lines.collect::<Vec<_>>()});
            merge(&mut value, figures_json(&entry.work(), entry.estimate()));
            if let Some(p) = profile {
                let fields = json!({
                    "measured_ms": millis(p.plain.median),
                    "fastest_ms": millis(p.plain.fastest),
                    "nodes_sum_ms": millis(p.sum()),
                    "nodes_fastest_ms": millis(p.undisturbed()),
                    "predicted_of_measured": entry.estimate().map(|e| e.seconds / p.plain.median.as_secs_f64()),
                });
                merge(&mut value, fields);
            }
            value
        });
        let tokens = self.tokens.as_ref().map(|costs| costs.iter().map(token_json).collect::<Vec<_>>());
        json!({
            "rows": self.rows,
            "depth": self.depth,
            "entries": entries.collect::<Vec<_>>(),
            "step_and_head_ms": self.both.as_ref().map(|b| millis(b.median)),
            "changes": self.changes.iter().map(change_json).collect::<Vec<_>>(),
            "tokens": tokens.as_ref().ok(),
            "no_tokens": self.tokens.as_ref().err().map(ToString::to_string),
        })
    }
}

/// A table of the lines and their sum.
fn entry_table(module: &Module, entry: &Entry<'_>, profile: Option<&Profile>, nodes: bool) -> String {
    let shown = if nodes { entry.clone() } else { entry.folded(module) };
    let mut columns = vec![("node", Align::Left), ("count", Align::Right)];
    let figures = ["weights", "caches", "values", "operations", "op/byte", "bound", "predicted"];
    columns.extend(figures.map(|c| (c, Align::Right)));
    columns.extend(["measured", "gap", "predicted/measured"].map(|c| (c, Align::Right)));
    let sum = |line: &Line| profile.map(|p| measured(line, p));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in &shown.lines {
        let mut row = vec![line.name.clone(), line.nodes.len().to_string()];
        row.extend(cells(&line.work, line.estimate, sum(line)));
        rows.push(row);
    }
    let mut total = vec!["all".to_owned(), entry.lines.len().to_string()];
    total.extend(cells(&entry.work(), entry.estimate(), profile.map(|p| p.plain.median.as_secs_f64())));
    rows.push(total);
    let mut text = table::table(&columns, &rows);
    if nodes {
        for line in &shown.lines {
            line.nodes.iter().for_each(|n| text.push_str(&format!("  {}\n", node_text(module, entry, *n))));
        }
    }
    text
}

/// A node as the program has it, with what its weights come from.
fn node_text(module: &Module, entry: &Entry<'_>, node: usize) -> String {
    let Some(node) = entry.graph.nodes.get(node) else { return String::new() };
    let weights = node.inputs.iter().filter_map(|i| i.weight()).map(|w| &module.weights[w]);
    let known = weights.filter(|w| !w.origin.is_empty()).map(|w| format!("; @{}{}", w.name, w.origin));
    // Names come from the file, and a terminal obeys control characters.
    let text = [module.node_text(entry.graph, node)].into_iter().chain(known).collect::<String>();
    text.replace(char::is_control, "\u{fffd}")
}

fn cells(work: &Work, estimate: Option<Estimate>, measured: Option<f64>) -> Vec<String> {
    let bytes = |n: u64| if n == 0 { String::new() } else { table::bytes(n) };
    let mut cells: Vec<String> = [work.weight_bytes, work.cache_bytes, work.value_bytes].map(bytes).into();
    let counted = work.operations > 0;
    cells.push(if counted { table::count(work.operations) } else { String::new() });
    cells.push(if counted { format!("{:.1}", work.intensity()) } else { String::new() });
    cells.push(estimate.map_or_else(String::new, |e| e.bound().name().to_owned()));
    cells.push(estimate.map_or_else(String::new, |e| time(e.seconds)));
    cells.push(measured.map_or_else(String::new, time));
    let both = estimate.map(|e| e.seconds).zip(measured);
    cells.push(both.map_or_else(String::new, |(p, m)| signed(m - p)));
    cells.push(both.map_or_else(String::new, |(p, m)| format!("{:.2}", p / m.max(1e-12))));
    cells
}

fn measured(line: &Line, profile: &Profile) -> f64 {
    line.nodes.iter().filter_map(|n| profile.nodes.get(*n)).map(|t| t.median.as_secs_f64()).sum()
}

/// The fastest runs of a line's nodes.
fn fastest(line: &Line, profile: &Profile) -> f64 {
    line.nodes.iter().filter_map(|n| profile.nodes.get(*n)).map(|t| t.fastest.as_secs_f64()).sum()
}

/// What the measurement says of itself, and where the prediction is farthest from it.
fn measured_text(module: &Module, entry: &Entry<'_>, profile: &Profile) -> String {
    let (whole, sum) = (profile.plain.median.as_secs_f64(), profile.sum().as_secs_f64());
    let difference = 100.0 * (sum - whole) / whole.max(1e-12);
    let undisturbed = profile.undisturbed().as_secs_f64();
    let ratio = entry
        .estimate()
        .map_or_else(String::new, |e| format!(", of which {:.2} is predicted", e.seconds / undisturbed.max(1e-12)));
    let mut text = format!(
        "nodes timed one by one add up to {} ({difference:+.1} %), their fastest runs to {}{ratio}; the fastest whole run took {}\n",
        time(sum),
        time(undisturbed),
        table::duration(profile.plain.fastest),
    );
    let gaps = entry.folded(module).lines.into_iter().filter_map(|line| {
        let gap = fastest(&line, profile) - line.estimate?.seconds;
        Some((gap, line.name))
    });
    if let Some((gap, name)) = gaps.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs())) {
        text.push_str(&format!("largest gap between prediction and fastest runs: {name}, {}\n", signed(gap)));
    }
    text
}

fn changes_text(changes: &[Change]) -> String {
    let Some(now) = changes.first() else { return String::new() };
    let columns = ["predicted, step and head", "time", "change", "per row"];
    let columns: Vec<_> =
        columns.iter().enumerate().map(|(i, c)| (*c, if i == 0 { Align::Left } else { Align::Right })).collect();
    let rows = changes.iter().enumerate().map(|(i, c)| {
        let change = 100.0 * (c.seconds / now.seconds.max(1e-12) - 1.0);
        let change = if i == 0 { String::new() } else { format!("{change:+.0} %") };
        vec![c.what.clone(), time(c.seconds), change, time(c.seconds / c.rows as f64)]
    });
    format!("{}\n", table::table(&columns, &rows.collect::<Vec<_>>()))
}

fn tokens_text(costs: Result<&[TokenCost], String>) -> String {
    let costs = match costs {
        Ok(costs) => costs,
        Err(error) => return format!("no prediction per token: {error}\n"),
    };
    let columns = ["predicted per token", "behind", "forwards", "tokens per forward", "time", "tokens/s"];
    let columns: Vec<_> =
        columns.iter().enumerate().map(|(i, c)| (*c, if i == 0 { Align::Left } else { Align::Right })).collect();
    let rows = costs.iter().map(|c| {
        vec![
            format!("block of {}, {}", c.block, answers(c.answers)),
            c.behind.to_string(),
            c.forwards.to_string(),
            format!("{:.2}", c.block as f64 / c.forwards.max(1) as f64),
            time(c.seconds),
            format!("{:.1}", 1.0 / c.seconds.max(1e-12)),
        ]
    });
    table::table(&columns, &rows.collect::<Vec<_>>())
}

/// What is assumed of the model's answers.
fn answers(answers: Answers) -> &'static str {
    match answers {
        Answers::Certain => "if it is sure of everything (fewest passes)",
        Answers::Uncertain => "if it is sure of nothing (most passes)",
    }
}

fn time(seconds: f64) -> String {
    table::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
}

fn signed(seconds: f64) -> String {
    format!("{}{}", if seconds < 0.0 { "−" } else { "+" }, time(seconds.abs()))
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn line_json(module: &Module, entry: &Entry<'_>, line: &Line, profile: Option<&Profile>) -> Value {
    let mut value = json!({"node": line.name, "count": line.nodes.len()});
    merge(&mut value, figures_json(&line.work, line.estimate));
    if let Some(profile) = profile {
        let [measured, fastest] = [measured(line, profile), fastest(line, profile)].map(|s| 1e3 * s);
        merge(&mut value, json!({"measured_ms": measured, "fastest_ms": fastest}));
    }
    if let [node] = line.nodes[..] {
        merge(&mut value, json!({"text": node_text(module, entry, node)}));
    }
    value
}

fn figures_json(work: &Work, estimate: Option<Estimate>) -> Value {
    let mut value = json!({
        "weight_bytes": work.weight_bytes,
        "cache_bytes": work.cache_bytes,
        "value_bytes": work.value_bytes,
        "operations": work.operations,
        "operations_per_byte": work.intensity(),
    });
    if let Some(e) = estimate {
        let [predicted, memory, compute, overhead] =
            [e.seconds, e.memory, e.compute, e.overhead].map(|seconds| 1e3 * seconds);
        let fields = json!({
            "bound": e.bound().name(),
            "predicted_ms": predicted,
            "memory_ms": memory,
            "compute_ms": compute,
            "overhead_ms": overhead,
        });
        merge(&mut value, fields);
    }
    value
}

fn change_json(c: &Change) -> Value {
    json!({"what": c.what, "rows": c.rows, "predicted_ms": 1e3 * c.seconds})
}

fn token_json(c: &TokenCost) -> Value {
    let answers = match c.answers {
        Answers::Certain => "certain",
        Answers::Uncertain => "uncertain",
    };
    json!({
        "block": c.block, "behind": c.behind, "answers": answers, "forwards": c.forwards,
        "predicted_ms": 1e3 * c.seconds,
    })
}

/// Adds the fields of an object to another.
fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}
