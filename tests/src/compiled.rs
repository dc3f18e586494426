//! Golden models through the real compiler: as an artifact on the CPU executor, and as the compiled module on the
//! reference evaluator. Both run exactly the entries that `dlxc compile` makes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use dlx_ir::{Entry, EntryKind, Error, Evaluator, MAX_SPANS, Module, SPAN_FIELDS, Tensor};
use dlx_passes::Step;
use dlx_runtime::artifact::Artifact;
use dlx_runtime::exec::{ExecError, Executor, RowStats, See, Span};
use dlx_runtime::{LoadOptions, Model};
use dlxc::checkpoint::{Checkpoint, TextFiles};
use dlxc::driver::{self, Watch};
use dlxc::hf::{self, Imported};
use dlxc::options::CompileOptions;

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64) {}
    fn print(&self, _: &str, _: &str) {}
}

/// Compiles a checkpoint into a temporary artifact and loads it, self-test and all.
///
/// # Errors
/// What the compiler or the loader says.
pub fn load(model: &Path, options: &CompileOptions, load: &LoadOptions) -> Result<Model, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = dir.path().join("model.dlxa");
    compile(model, &path, options).map_err(|e| e.to_string())?;
    let artifact = Artifact::open(&path).map_err(|e| e.to_string())?;
    Model::load(&artifact, load).map_err(|e| e.to_string())
}

/// Compiles a checkpoint.
///
/// # Errors
/// What the compiler says.
pub fn compile(model: &Path, output: &Path, options: &CompileOptions) -> Result<driver::Summary, Error> {
    driver::compile(model, output, options, &Silent, &AtomicBool::new(false))
}

/// The pipeline that the CPU target would run, without the passes whose name starts with `without`.
///
/// # Errors
/// What the importer says.
pub fn pipeline(model: &Path, options: &CompileOptions, without: &str) -> Result<String, Error> {
    let (_, _, steps) = import(model, options)?;
    let kept = steps.iter().filter(|s| !s.pass.name.starts_with(without)).map(ToString::to_string);
    Ok(kept.collect::<Vec<_>>().join(","))
}

/// An imported checkpoint and the passes that the CPU target runs on it.
fn import(model: &Path, options: &CompileOptions) -> Result<(Checkpoint, Imported, Vec<Step>), Error> {
    let (checkpoint, text) = (Checkpoint::open(model)?, TextFiles::read(model)?);
    let imported = hf::import(&checkpoint, &options.source(hf::Source::new(&checkpoint, &text)))?;
    let pipeline = driver::default_pipeline(driver::find_target("cpu")?, options, &imported)?;
    let steps = dlx_passes::parse_pipeline(&pipeline)?;
    Ok((checkpoint, imported, steps))
}

/// Sequences that the evaluator's caches hold.
const SLOTS: usize = 16;

/// The compiled module on the reference evaluator.
pub struct Interpreted {
    evaluator: Evaluator<'static>,
    steps: Vec<usize>,
    heads: Vec<usize>,
    vocab: usize,
    max_seq: usize,
    live: usize,
}

impl Interpreted {
    /// Imports a checkpoint and runs the target's pipeline, up to where weights would be packed into a file.
    ///
    /// # Errors
    /// What the importer or a pass says.
    pub fn load(model: &Path, options: &CompileOptions) -> Result<Self, Error> {
        let (checkpoint, imported, steps) = import(model, options)?;
        let outcome = dlx_passes::run_pipeline(imported.module, &steps, &mut |_, _, _| Ok(()));
        let ((module, _), vocab) = (outcome.map_err(|f| f.error)?, imported.vocab);
        // An evaluator borrows its module; a test process can afford to keep both.
        let module: &'static Module = Box::leak(Box::new(module.into_inner()));
        let source = Box::leak(Box::new(move |name: &str| {
            let shape = checkpoint.tensor(name).ok_or_else(|| format!("no tensor {name}"))?.shape.to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            checkpoint.read_rows(name, 0..shape[0], &mut values).map_err(|e| e.to_string())?;
            Ok(values)
        }));
        let buckets = |kind: EntryKind| {
            let entries = module.graphs.iter().filter_map(|g| Entry::of(g).ok());
            let mut sizes: Vec<usize> = entries.filter(|e| e.kind == kind).map(|e| e.rows).collect();
            sizes.sort_unstable();
            sizes
        };
        let caches = module.states.iter().filter(|(_, s)| s.ty.dims.len() == 3);
        let max_seq = caches.filter_map(|(_, s)| s.ty.dims[0].fixed()).next().unwrap_or(0);
        let (steps, heads) = (buckets(EntryKind::Step), buckets(EntryKind::Logits));
        Ok(Interpreted { evaluator: Evaluator::new(module, source, SLOTS), steps, heads, vocab, max_seq, live: 0 })
    }

    fn run(&mut self, graph: &str, args: &[Tensor]) -> Result<Vec<Tensor>, ExecError> {
        self.run_observed(graph, args, &mut |_, _| {})
    }

    fn run_observed(
        &mut self,
        graph: &str,
        args: &[Tensor],
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, ExecError> {
        self.evaluator
            .run(graph, args, &mut |name, value| see(name, value))
            .map_err(|e| ExecError::Device(e.to_string()))
    }

    fn run_head(&mut self, graph: &str, rows: &[usize]) -> Result<Vec<(Tensor, Option<Tensor>, usize)>, ExecError> {
        if let Some(row) = rows.iter().find(|r| **r >= self.live) {
            return Err(ExecError::Shape(format!("row {row} was not in the last step")));
        }
        let largest = self.heads.last().copied().ok_or(ExecError::NoEntry("logits"))?;
        let mut outs = Vec::new();
        for chunk in rows.chunks(largest) {
            let bucket = self.heads.iter().copied().find(|b| *b >= chunk.len()).expect("the largest holds a chunk");
            let mut ids: Vec<i32> = chunk.iter().map(|r| i32::try_from(*r).expect("rows fit")).collect();
            ids.resize(bucket, 0);
            let mut results = self.run(&format!("{graph}_{bucket}"), &[Tensor::i32(&[bucket], ids)])?.into_iter();
            let first = results.next().expect("an entry has results");
            outs.push((first, results.next(), chunk.len()));
        }
        Ok(outs)
    }
}

impl Executor for Interpreted {
    fn max_seq(&self) -> usize {
        self.max_seq
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn step_buckets(&self) -> &[usize] {
        &self.steps
    }

    fn slots(&self) -> usize {
        SLOTS
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        if slots <= SLOTS { Ok(()) } else { Err(ExecError::Shape(format!("{slots} slots are more than {SLOTS}"))) }
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        self.observe(spans, &mut |_, _| {}).map(drop)
    }

    fn observe(&mut self, spans: &[Span<'_>], see: See<'_>) -> Result<bool, ExecError> {
        let rows: usize = spans.iter().map(|s| s.ids.len()).sum();
        let bucket = self.steps.iter().copied().find(|b| *b >= rows);
        let bucket = bucket.ok_or_else(|| ExecError::Shape(format!("{rows} rows fit no step")))?;
        // Rows that fill up the bucket belong to no span; whatever they hold must not matter.
        let padded = |of: fn(&Span<'_>) -> Vec<i32>| {
            let mut x: Vec<i32> = spans.iter().flat_map(of).collect();
            x.resize(bucket, 1);
            Tensor::i32(&[bucket], x)
        };
        let fields = spans.iter().flat_map(|s| [s.ids.len(), s.slot, s.at, s.from, s.visible]);
        let mut table: Vec<i32> = fields.map(|v| i32::try_from(v).expect("rows fit")).collect();
        table.resize(MAX_SPANS * SPAN_FIELDS, 0);
        let table = Tensor::i32(&[MAX_SPANS, SPAN_FIELDS], table);
        let args = [padded(|s| s.ids.to_vec()), padded(|s| s.pos.to_vec()), table];
        self.run_observed(&format!("step_{bucket}"), &args, &mut |name, value| {
            if let Ok(floats) = value.floats() {
                see(name, &floats[..floats.len() / bucket * rows]);
            }
        })?;
        self.live = rows;
        Ok(true)
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        let mut stats = Vec::new();
        for (best, numbers, live) in self.run_head("head", rows)? {
            let numbers = numbers.ok_or(ExecError::NoEntry("head"))?;
            let (best, numbers) =
                (best.ints().unwrap_or_default().to_vec(), numbers.floats().unwrap_or_default().to_vec());
            let rows = best.iter().zip(numbers.chunks_exact(3)).take(live);
            stats.extend(rows.map(|(&best, n)| RowStats { best, prob: n[0], margin: n[1], entropy: n[2] }));
        }
        out.copy_from_slice(&stats);
        Ok(())
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        let mut all = Vec::new();
        for (logits, _, live) in self.run_head("logits", rows)? {
            all.extend_from_slice(&logits.floats().unwrap_or_default()[..live * self.vocab]);
        }
        out.copy_from_slice(&all);
        Ok(())
    }
}
