//! What `dlxc bench` says, for people and as JSON.

use dlx_runtime::cpu::{Isa, kernel_variants};
use serde_json::{Value, json};

use super::kernels::Product;
use super::measure::{Line, OpKind, OpTime, Split, Timing};
use super::{KernelReport, Limits, Report, millis, object};
use crate::cli::table::{self, Align};

impl Limits {
    fn to_text(&self) -> String {
        let rate = |gops: Option<f64>, unit: &str, what: &str| {
            gops.map_or(format!("no {what} instructions"), |g| format!("{g:.0} {unit} {what} peak"))
        };
        let int8 = rate(self.int8_gops, "GOPS", "int8");
        let f32 = rate(self.f32_gops, "GFLOPS", "f32");
        format!("{}: {int8}, {f32}, {:.1} GB/s read\n", counted(self.threads, "thread"), self.read_gbs)
    }

    fn to_json(&self) -> Value {
        object(json!({
            "threads": self.threads,
            "int8_peak_gops": self.int8_gops,
            "f32_peak_gflops": self.f32_gops,
            "read_gbs": self.read_gbs,
        }))
    }
}

fn limits_text(limits: &[Limits]) -> String {
    limits.iter().map(Limits::to_text).collect()
}

fn limits_json(limits: &[Limits]) -> Vec<Value> {
    limits.iter().map(Limits::to_json).collect()
}

/// The limits on that many threads.
fn on(limits: &[Limits], threads: usize) -> &Limits {
    limits.iter().find(|l| l.threads == threads).expect("limits are measured on every number of threads")
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn percent_of(value: f64, limit: Option<f64>) -> String {
    limit.map_or("–".into(), |limit| percent(value / limit))
}

impl Report {
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{}, opened in {}\n", self.isa, table::duration(self.open));
        text.push_str(&limits_text(&self.limits));
        let resident = self.peak_resident.map_or(String::new(), |b| format!("{} at most resident; ", table::bytes(b)));
        let certified = self.memory.iter().find(|c| c.target == "cpu");
        if let Some(certified) = certified {
            let (total, threads) = (table::bytes(certified.total), certified.threads);
            text.push_str(&format!("memory: {resident}certified {total} on {threads} threads, with full caches\n"));
        }
        text.push_str(&self.line_table());
        for line in &self.lines {
            let Some(split) = &line.split else { continue };
            let limits = on(&self.limits, line.threads);
            let (rows, threads) = (counted(line.rows, "row"), counted(line.threads, "thread"));
            text.push_str(&format!("\n{rows} at depth {} on {threads}\n", line.depth));
            text.push_str(&op_table(split));
            text.push_str(&split_text(split, limits));
        }
        text
    }

    fn line_table(&self) -> String {
        let mut columns = vec!["rows", "depth", "step", "p10–p90", "head", "step+head"];
        columns.extend(["rows/s", "GOPS", "of peak", "GB/s", "of read"]);
        let several = self.limits.len() > 1;
        let draws = self.lines.iter().any(|l| l.drawn.is_some());
        if draws {
            columns.extend(["drawn head", "drawing adds"]);
        }
        if several {
            columns.insert(2, "threads");
            columns.push("speed-up");
        }
        let columns: Vec<_> = columns.into_iter().map(|c| (c, Align::Right)).collect();
        let cells = self.lines.iter().map(|l| {
            let limits = on(&self.limits, l.threads);
            let (gops, gbs) = l.work.rates(l.both());
            let mut cells = vec![
                l.rows.to_string(),
                l.depth.to_string(),
                table::duration(l.step.median),
                format!("{}–{}", table::duration(l.step.p10), table::duration(l.step.p90)),
                table::duration(l.head.median),
                table::duration(l.both()),
                format!("{:.1}", l.rows as f64 / l.both().as_secs_f64()),
                format!("{gops:.0}"),
                percent_of(gops, limits.int8_gops),
                format!("{gbs:.1}"),
                percent(gbs / l.read_gbs),
            ];
            if draws {
                let time = l.drawn.as_ref().map(|d| table::duration(d.median));
                cells.extend([time.unwrap_or_default(), l.drawing().map(percent).unwrap_or_default()]);
            }
            if several {
                cells.insert(2, l.threads.to_string());
                cells.push(format!("{:.2} ×", self.speed_up(l)));
            }
            cells
        });
        table::table(&columns, &cells.collect::<Vec<_>>())
    }

    /// How many times faster than the same size on the first number of threads.
    fn speed_up(&self, line: &Line) -> f64 {
        let first = self.lines.iter().find(|l| (l.rows, l.depth) == (line.rows, line.depth)).unwrap_or(line);
        first.both().as_secs_f64() / line.both().as_secs_f64()
    }

    pub(super) fn to_json(&self) -> Value {
        let lines: Vec<_> = self.lines.iter().map(|l| self.line_json(l)).collect();
        object(json!({
            "artifact": self.artifact,
            "isa": self.isa.to_string(),
            "open_ms": millis(self.open),
            "peak_resident_bytes": self.peak_resident,
            "memory": self.memory,
            "limits": limits_json(&self.limits),
            "lines": lines,
        }))
    }

    fn line_json(&self, line: &Line) -> Value {
        let limits = on(&self.limits, line.threads);
        let (gops, gbs) = line.work.rates(line.both());
        object(json!({
            "rows": line.rows,
            "depth": line.depth,
            "threads": line.threads,
            "step_ms": timing_json(&line.step),
            "head_ms": timing_json(&line.head),
            "drawn_head_ms": line.drawn.as_ref().map(timing_json),
            "drawing_adds": line.drawing(),
            "gops": gops,
            "of_int8_peak": limits.int8_gops.map(|peak| gops / peak),
            "weight_gbs": gbs,
            "read_gbs": line.read_gbs,
            "of_read": gbs / line.read_gbs,
            "speed_up": (self.limits.len() > 1).then(|| self.speed_up(line)),
            "split": line.split.as_ref().map(|s| split_json(s, limits)),
        }))
    }
}

fn timing_json(t: &Timing) -> Value {
    json!({"median": millis(t.median), "p10": millis(t.p10), "p90": millis(t.p90), "fastest": millis(t.fastest)})
}

fn op_table(split: &Split) -> String {
    let columns = [("node", Align::Left), ("count", Align::Right), ("time", Align::Right), ("share", Align::Right)];
    let columns = columns.into_iter().chain([("GOPS", Align::Right), ("GB/s", Align::Right)]);
    let rows = split.ops.iter().map(|o| {
        let (gops, gbs) = o.work.rates(o.time);
        let rate = |r: f64| if r == 0.0 { String::new() } else { format!("{r:.1}") };
        let share = format!("{:.1} %", 100.0 * part(o.time, split));
        vec![o.name.clone(), o.nodes.to_string(), table::duration(o.time), share, rate(gops), rate(gbs)]
    });
    table::table(&columns.collect::<Vec<_>>(), &rows.collect::<Vec<_>>())
}

/// Share of a step.
fn part(time: std::time::Duration, split: &Split) -> f64 {
    time.as_secs_f64() / split.step.as_secs_f64().max(1e-12)
}

/// Shares of a step by what limits them; they add up to one.
struct Shares {
    matrix: f64,
    attention: f64,
    other: f64,
    /// Part of `other` that is in no node.
    gaps: f64,
    attention_gflops: Option<f64>,
}

impl Shares {
    fn of(split: &Split) -> Self {
        let [matrix, attention] = [OpKind::Matrix, OpKind::Attention].map(|kind| part(split.time(kind), split));
        let gaps = split.gaps();
        let other = part(split.time(OpKind::Other) + gaps, split);
        let nodes = || split.ops.iter().filter(|o| o.kind == OpKind::Attention);
        let operations = 2.0 * nodes().map(|o| o.work.products as f64).sum::<f64>();
        let time = split.time(OpKind::Attention).as_secs_f64();
        let attention_gflops = (time > 0.0).then(|| operations / time / 1e9);
        Shares { matrix, attention, other, gaps: part(gaps, split), attention_gflops }
    }
}

fn split_text(split: &Split, limits: &Limits) -> String {
    let s = Shares::of(split);
    let [matrix, attention, other, gaps] = [s.matrix, s.attention, s.other, s.gaps].map(|x| 100.0 * x);
    let speed = s.attention_gflops.map_or(String::new(), |g| {
        let share = limits.f32_gops.map_or(String::new(), |peak| format!(", {} of the f32 peak", percent(g / peak)));
        format!(" ({g:.1} GFLOPS{share})")
    });
    format!(
        "matrix products {matrix:.1} %, attention {attention:.1} %{speed}, everything else {other:.1} % \
         (of it outside nodes {gaps:.1} %)\n"
    )
}

fn split_json(split: &Split, limits: &Limits) -> Value {
    let s = Shares::of(split);
    object(json!({
        "step_ms": millis(split.step),
        "matrix": s.matrix,
        "attention": s.attention,
        "other": s.other,
        "gaps": s.gaps,
        "attention_gflops": s.attention_gflops,
        "attention_of_f32_peak": s.attention_gflops.zip(limits.f32_gops).map(|(g, peak)| g / peak),
        "ops": split.ops.iter().map(op_json).collect::<Vec<_>>(),
    }))
}

fn op_json(o: &OpTime) -> Value {
    let (gops, gbs) = o.work.rates(o.time);
    let known = o.kind != OpKind::Other;
    object(json!({
        "node": o.name,
        "count": o.nodes,
        "ms": millis(o.time),
        "gops": known.then_some(gops),
        "weight_gbs": (o.kind == OpKind::Matrix).then_some(gbs),
    }))
}

/// The instruction sets of this architecture, slowest first.
fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| kernel_variants().any(|v| v.isa == *isa)).collect()
}

impl KernelReport {
    pub(super) fn to_text(&self) -> String {
        let mut text = limits_text(&self.limits);
        let mut rows: Vec<Vec<String>> = Vec::new();
        for v in kernel_variants() {
            match rows.last_mut().filter(|row| row[0] == v.role) {
                Some(row) => row.push(v.kernel.into()),
                None => rows.push(vec![v.role.into(), v.kernel.into()]),
            }
        }
        let titles: Vec<String> = isas().into_iter().map(|isa| self.title(isa)).collect();
        let columns = titles.iter().map(|t| (t.as_str(), Align::Left));
        let columns: Vec<_> = [("role", Align::Left)].into_iter().chain(columns).collect();
        text.push_str(&format!("\n{}\n", table::table(&columns, &rows)));
        text.push_str(
            "GOPS of a product with weights [2048, 4096], and how near the kernel in use comes to the limits\n",
        );
        text.push_str(&self.product_table());
        text
    }

    /// An instruction set as the head of its column.
    fn title(&self, isa: Isa) -> String {
        let note = match isa {
            _ if isa == self.isa => " (in use)",
            _ if !isa.available() => " (not on this CPU)",
            _ => "",
        };
        format!("{isa}{note}")
    }

    fn product_table(&self) -> String {
        let isas: Vec<Isa> = isas().into_iter().filter(|isa| isa.available()).collect();
        let titles: Vec<String> = isas.iter().map(|isa| self.title(*isa)).collect();
        let mut columns = vec!["weights", "rows", "threads"];
        columns.extend(titles.iter().map(String::as_str));
        columns.extend(["of peak", "GB/s", "of read"]);
        let mut columns: Vec<_> = columns.into_iter().map(|c| (c, Align::Right)).collect();
        columns[0].1 = Align::Left;
        let used = self.products.iter().filter(|p| p.isa == self.isa);
        let rows = used.map(|p| {
            let limits = on(&self.limits, p.threads);
            let same = |q: &&Product| (q.format, q.rows, q.threads) == (p.format, p.rows, p.threads);
            let gops = |isa: &Isa| {
                let product = self.products.iter().filter(same).find(|q| q.isa == *isa);
                product.map_or(String::new(), |q| format!("{:.1}", q.work.rates(q.time.median).0))
            };
            let (rate, gbs) = p.work.rates(p.time.median);
            let mut cells = vec![p.format.to_string(), p.rows.to_string(), p.threads.to_string()];
            cells.extend(isas.iter().map(gops));
            cells.extend([percent_of(rate, p.peak(limits)), format!("{gbs:.1}"), percent(gbs / limits.read_gbs)]);
            cells
        });
        table::table(&columns, &rows.collect::<Vec<_>>())
    }

    pub(super) fn to_json(&self) -> Value {
        let variants = kernel_variants().map(|v| {
            json!({
                "role": v.role,
                "isa": v.isa.to_string(),
                "kernel": v.kernel,
                "available": v.isa.available(),
                "in_use": v.isa == self.isa,
            })
        });
        let products = self.products.iter().map(|p| {
            let limits = on(&self.limits, p.threads);
            let (gops, gbs) = p.work.rates(p.time.median);
            object(json!({
                "weights": p.format.to_string(),
                "rows": p.rows,
                "threads": p.threads,
                "isa": p.isa.to_string(),
                "in_use": p.isa == self.isa,
                "ms": timing_json(&p.time),
                "gops": gops,
                "of_peak": p.peak(limits).map(|peak| gops / peak),
                "weight_gbs": gbs,
                "of_read": gbs / limits.read_gbs,
            }))
        });
        json!({
            "isa": self.isa.to_string(),
            "limits": limits_json(&self.limits),
            "kernels": variants.collect::<Vec<_>>(),
            "products": products.collect::<Vec<_>>(),
        })
    }
}
