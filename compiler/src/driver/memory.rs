//! The memory certificates of a compile, before any weight is written; and what would fit where they exceed `--max-memory`.
//!
//! Invariant: everything is computed from types and counts, and a suggestion is the certificate of a compile with other
//! options, of this module, that keeps the limit.

use dlx_ir::{Error, VerifiedModule};
use dlx_runtime::artifact::PAGE;
use dlx_runtime::memory::count::{Held, THREADS, Usage};
use dlx_runtime::memory::{Certificate, Part};
use dlx_runtime::selftest::PROBE_ROWS;
use dlx_runtime::text::{Tokenizer, TokenizerSize};
use dlx_targets::{Settings, Target};

use super::Watch;
use super::input::Input;
use super::output::text_section;
use super::programs::{Lowered, lower};
use super::settings::settings;
use crate::options::{CompileOptions, QuantSpec};

/// Bytes that a manifest has at most, notes left out.
const MANIFEST: u64 = 64 << 10;
/// Bytes of a number of a golden vector.
const NUMBER: u64 = 24;

/// What a compile knows of an artifact before its weights are written.
pub(super) struct Sections {
    tokenizer: TokenizerSize,
    tokenizer_bytes: u64,
    text: u64,
    notes: u64,
    /// The tokenizer's tables, where it has some.
    pub(super) tables: Option<Vec<u8>>,
    /// Why it has none.
    pub(super) without_tables: Option<String>,
}

impl Sections {
    /// Counts the texts of a model, and makes the tables of its tokenizer.
    ///
    /// # Errors
    /// A tokenizer or a text file that cannot be read.
    pub(super) fn of(input: &Input<'_>) -> Result<Self, Error> {
        let failed = |e: String| Error::new("tokenizer.json", e);
        let text = serde_json::to_vec(&text_section(input.text.clone())?).map_err(|e| failed(e.to_string()))?;
        let template = input.text.chat_template.as_deref();
        let (tables, without_tables) = match Tokenizer::compile(&input.text.tokenizer, template.as_slice()) {
            Ok(tables) => (Some(tables), None),
            Err(reason) => (None, Some(format!("tokenizer.json is read as it is at every start: {reason}"))),
        };
        let size =
            tables.as_deref().map_or_else(|| TokenizerSize::of(&input.text.tokenizer), TokenizerSize::of_compiled);
        let notes = input.imported.facts.notes.iter().chain(&without_tables);
        Ok(Sections {
            tokenizer: size.map_err(|e| failed(e.to_string()))?,
            notes: notes.map(|n| 2 * n.len() as u64).sum(),
            tables,
            without_tables,
            tokenizer_bytes: input.text.tokenizer.len() as u64,
            text: text.len() as u64,
        })
    }
}

/// The certificate of each target, for an artifact with `weights` bytes of weights.
///
/// # Errors
/// A program that its executor does not run.
pub(super) fn certificates(
    lowered: &[Lowered],
    weights: u64,
    input: &Input<'_>,
    sections: &Sections,
    settings: &Settings,
) -> Result<Vec<Certificate>, Error> {
    let sizes: Vec<(u64, u64)> = lowered.iter().map(|l| l.text_bytes()).collect();
    let golden = lowered.iter().map(|l| golden_bytes(&l.placed.module)).max().unwrap_or(0);
    // A section may begin on a page of its own.
    let tables = sections.tables.as_ref().map_or(0, |tables| tables.len() as u64);
    let all = [MANIFEST + sections.notes, sections.tokenizer_bytes, tables, sections.text, golden];
    let all = all.into_iter().chain(sizes.iter().flat_map(|(program, plan)| [*program, *plan]));
    let others = PAGE as u64 + all.map(|bytes| bytes.next_multiple_of(PAGE as u64)).sum::<u64>();
    let usage = Usage::of(&input.imported.policy, settings.max_seq, input.imported.vocab, THREADS);
    let of = |(lowered, (program, plan)): (&Lowered, (u64, u64))| {
        let tokenizer = sections.tokenizer;
        let held = Held { weights, others, program, plan, golden, text: sections.text, tokenizer };
        lowered.product.certificate(&lowered.placed.module, &held, &usage)
    };
    lowered.iter().zip(sizes).map(of).collect()
}

/// Bytes that the golden vectors of a program have at most.
fn golden_bytes(module: &VerifiedModule) -> u64 {
    let hidden = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 2).filter_map(|(_, s)| s.ty.dims[1].fixed());
    let width = hidden.max().unwrap_or(0) as u64;
    let steps = module.graphs.iter().filter(|g| g.name.starts_with("step")).count() as u64;
    PAGE as u64 + steps * (PROBE_ROWS as u64 * width * NUMBER + 64)
}

/// The largest certificate of a compile with some options, and whether it could be compiled at all.
struct Search<'a> {
    input: &'a Input<'a>,
    sections: &'a Sections,
    targets: &'a [&'static Target],
    options: &'a CompileOptions,
    limit: u64,
}

/// Says nothing.
struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64) {}
    fn print(&self, _: &str, _: &str) {}
}

/// Refuses certificates above the limit, and says what would fit.
///
/// # Errors
/// One is above `--max-memory`.
pub(super) fn check_limit(
    certificates: &[Certificate],
    input: &Input<'_>,
    sections: &Sections,
    targets: &[&'static Target],
    options: &CompileOptions,
) -> Result<(), Error> {
    let Some(limit) = options.max_memory else { return Ok(()) };
    let Some(over) = certificates.iter().filter(|c| c.total > limit).max_by_key(|c| c.total) else { return Ok(()) };
    let search = Search { input, sections, targets, options, limit };
    let place = format!("--max-memory {limit}");
    let mut parts: Vec<&Part> = over.parts.iter().collect();
    parts.sort_by_key(|p| std::cmp::Reverse(p.bytes));
    let largest: Vec<String> = parts.iter().take(6).map(|p| format!("{} {}", p.name, p.bytes)).collect();
    let message = format!(
        "running this takes up to {} bytes for target {} on {THREADS} threads, {} more: {}, …",
        over.total,
        over.target,
        over.total - limit,
        largest.join(", ")
    );
    Err(Error::new(place, message).help(search.advice()))
}

impl Search<'_> {
    /// Bytes that the artifact with these options takes at most; none where it cannot be compiled.
    fn total(&self, options: &CompileOptions) -> Option<u64> {
        let settings = settings(options, &self.input.imported);
        let (lowered, _, space) = lower(options, &Silent, self.targets, &self.input.imported.module, &settings).ok()?;
        let all = certificates(&lowered, space.len(), self.input, self.sections, &settings).ok()?;
        all.iter().map(|c| c.total).max()
    }

    /// The longest sequence with which these options fit, if there is one.
    fn longest(&self, options: &CompileOptions) -> Option<(usize, u64)> {
        let now = settings(options, &self.input.imported);
        let total = |max_seq| self.total(&CompileOptions { max_seq: Some(max_seq), ..options.clone() });
        let fits = |max_seq| total(max_seq).filter(|total| *total <= self.limit);
        // Steps of 16 rows, which is what caches are kept in.
        let unit = 16;
        let (mut low, mut high) = (0, now.max_seq.div_ceil(unit));
        let mut found = None;
        while low + 1 < high {
            let middle = low.midpoint(high);
            match fits(middle * unit) {
                Some(total) => (low, found) = (middle, Some((middle * unit, total))),
                None => high = middle,
            }
        }
        found
    }

    /// What would fit, as options; each was computed.
    fn advice(&self) -> String {
        let clean = CompileOptions { dump: None, print_after: Vec::new(), ..self.options.clone() };
        if clean.pipeline.is_some() {
            return "the pipeline is fixed by --passes: change max_seq, kv or to= in it, or leave --passes out".into();
        }
        let now = settings(&clean, &self.input.imported);
        let kvs = ["f16", "int8"].into_iter().filter_map(|kv| {
            let dtype = crate::options::kv_type(kv).ok()?;
            let smaller = dtype.size().unwrap_or(1) < now.kv.size().unwrap_or(1);
            smaller.then(|| (format!("--kv {kv}"), CompileOptions { kv: Some(dtype), ..clean.clone() }))
        });
        let quants = ["bf16", "int8", "int4", "int4:64", "int4:128"].into_iter().filter_map(|quant| {
            let spec: QuantSpec = quant.parse().ok()?;
            (spec != clean.quant).then(|| {
                (format!("--quant {quant}"), CompileOptions { quant: spec, requantize: true, ..clean.clone() })
            })
        });
        let bucket = now.block;
        let buckets = (!now.whole_sequence)
            .then(|| (format!("--buckets {bucket}"), CompileOptions { buckets: vec![bucket], ..clean.clone() }));
        let single: Vec<(String, CompileOptions)> = kvs.chain(quants).chain(buckets).collect();
        let total_now = self.total(&clean);
        let mut known = Vec::new();
        let mut fitting = Vec::new();
        if let Some((max_seq, total)) = self.longest(&clean) {
            fitting.push(format!("--max-seq {max_seq} ({total} bytes)"));
        }
        for (text, options) in single {
            let Some(total) = self.total(&options).filter(|total| Some(*total) < total_now) else { continue };
            if total <= self.limit {
                fitting.push(format!("{text} ({total} bytes)"));
            }
            known.push((total, text, options));
        }
        if fitting.is_empty() {
            fitting.extend(self.together(&clean, known));
        }
        if fitting.is_empty() { unreachable_limit(total_now) } else { format!("what fits: {}", fitting.join("; or ")) }
    }

    /// All that helps together, and a shorter sequence if that is not enough.
    fn together(&self, clean: &CompileOptions, mut known: Vec<(u64, String, CompileOptions)>) -> Option<String> {
        known.sort_by_key(|(total, ..)| *total);
        let mut all = clean.clone();
        let mut words: Vec<String> = Vec::new();
        for (_, text, one) in known {
            let flag = text.split(' ').next().unwrap_or_default();
            if words.iter().any(|w| w.starts_with(flag)) {
                continue;
            }
            match flag {
                "--kv" => all.kv = one.kv,
                "--quant" => (all.quant, all.requantize) = (one.quant, true),
                _ => all.buckets = one.buckets,
            }
            words.push(text);
        }
        let text = words.join(" ");
        if let Some(total) = self.total(&all).filter(|total| *total <= self.limit && !words.is_empty()) {
            return Some(format!("{text} ({total} bytes)"));
        }
        let (max_seq, total) = self.longest(&all)?;
        Some(format!("{text} --max-seq {max_seq} ({total} bytes)").trim_start().to_owned())
    }
}

fn unreachable_limit(now: Option<u64>) -> String {
    let now = now.map_or_else(String::new, |total| format!(" instead of {total} bytes"));
    format!("nothing of --max-seq, --kv, --quant and --buckets fits: raise the limit, or take a smaller model{now}")
}
