//! Logits of whole sequences, of every family: the oracle's decoder beside the reference evaluator on the imported module,
//! and beside the unquantized artifact on the CPU. `cargo test -p dlx-oracle --test families -- --nocapture` prints how far
//! they are apart.
#![allow(clippy::print_stdout, reason = "the report of a test program")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dlx_ir::{Error, Evaluator, Tensor};
use dlx_oracle::cases::Rng;
use dlx_oracle::decoder::{Decoder, FAMILIES};
use dlx_runtime::LoadOptions;
use dlx_runtime::exec::Span;
use dlx_tests::golden::Data;
use dlx_tests::{compiled, golden};
use dlxc::checkpoint::{Checkpoint, TextFiles};
use dlxc::hf;
use dlxc::options::{CompileOptions, QuantSpec};

/// Tokens of the sequences: one, fewer than a block, no whole number of blocks, several blocks of every family.
const LENGTHS: [usize; 4] = [1, 7, 45, 96];
/// Largest part of the largest logit that the evaluator may be off: sums in f64, each rounded to f32, through four layers.
const EVALUATOR: f64 = 1e-5;
/// The same of the artifact, whose sums are f32 of up to 512 terms: some tens of roundings of 6e-8 in each.
const ARTIFACT: f64 = 2e-5;
/// The same of what was recorded, in PyTorch's f32.
const RECORDED: f64 = 2e-5;

/// Differences of logits.
#[derive(Clone, Copy, Default)]
struct Apart {
    /// The largest.
    absolute: f64,
    /// As a part of the largest logit of the sequence.
    relative: f64,
    /// Rows whose likeliest token is another one.
    flips: usize,
}

impl Apart {
    fn of(got: &[f32], oracle: &[f64], vocab: usize) -> Self {
        assert_eq!(got.len(), oracle.len());
        let largest = oracle.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let differences = got.iter().zip(oracle).map(|(a, b)| (f64::from(*a) - b).abs());
        // A NaN is no difference that `max` would keep.
        let absolute = differences.fold(0.0f64, |m, d| if d > m || d.is_nan() { d } else { m });
        let got: Vec<f64> = got.iter().map(|v| f64::from(*v)).collect();
        let flips = got.chunks(vocab).zip(oracle.chunks(vocab)).filter(|(a, b)| best(a) != best(b)).count();
        Apart { absolute, relative: absolute / largest, flips }
    }

    fn and(self, other: Apart) -> Self {
        Apart {
            absolute: self.absolute.max(other.absolute),
            relative: self.relative.max(other.relative),
            flips: self.flips + other.flips,
        }
    }
}

fn best(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// The tiny checkpoints of the golden data, and the trained ones of the examples.
fn checkpoints() -> Result<Vec<PathBuf>, String> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models");
    let mut all = Vec::new();
    for dir in [golden::dir().join("models"), examples] {
        let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        all.extend(entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("config.json").exists()));
    }
    all.sort();
    Ok(all)
}

/// Logits of the imported `@forward` on the reference evaluator.
fn evaluated(dir: &Path, sequences: &[Vec<i32>]) -> Result<Vec<Vec<f32>>, String> {
    let said = |e: Error| e.to_string();
    let (checkpoint, text) = (Checkpoint::open(dir).map_err(said)?, TextFiles::read(dir).map_err(said)?);
    let imported = hf::import(&checkpoint, &hf::Source::new(&checkpoint, &text)).map_err(said)?;
    let module = imported.module.into_inner();
    let weights = |name: &str| {
        let shape = checkpoint.tensor(name).ok_or_else(|| format!("no tensor {name}"))?.shape.to_vec();
        let mut values = vec![0.0; shape.iter().product()];
        checkpoint.read_rows(name, 0..shape[0], &mut values).map_err(|e| e.to_string())?;
        Ok::<_, String>(values)
    };
    let mut evaluator = Evaluator::new(&module, &weights, 1);
    let mut run = |ids: &Vec<i32>| {
        let args = [Tensor::i32(&[ids.len()], ids.clone()), Tensor::i32(&[ids.len()], positions(ids))];
        let out = evaluator.run("forward", &args, &mut |_, _| {}).map_err(said)?;
        Ok(out[0].floats()?.to_vec())
    };
    sequences.iter().map(&mut run).collect()
}

/// Logits of the unquantized artifact on the CPU.
fn executed(dir: &Path, sequences: &[Vec<i32>], vocab: usize) -> Result<Vec<Vec<f32>>, String> {
    let options = CompileOptions {
        quant: QuantSpec::None,
        max_seq: Some(96),
        buckets: vec![32, 96],
        ..CompileOptions::default()
    };
    let mut executor = compiled::load(dir, &options, &LoadOptions::default())?.executor;
    let mut run = |ids: &Vec<i32>| {
        let pos = positions(ids);
        let span = Span { slot: 0, ids, pos: &pos, at: 0, from: 0, visible: ids.len() };
        executor.step(&[span]).map_err(|e| e.to_string())?;
        let (rows, mut out): (Vec<usize>, _) = ((0..ids.len()).collect(), vec![0.0; ids.len() * vocab]);
        executor.logits(&rows, &mut out).map_err(|e| e.to_string())?;
        Ok(out)
    };
    sequences.iter().map(&mut run).collect()
}

fn positions(ids: &[i32]) -> Vec<i32> {
    (0..).take(ids.len()).collect()
}

#[test]
fn every_family_agrees() {
    let mut met = BTreeSet::new();
    let mut rng = Rng(0x5eed_0003);
    println!("\n{:<20} {:>20} {:>9} | {:>26} | {:>26}", "checkpoint", "attends", "positions", "evaluator", "artifact");
    let head = "absolute  relative flips";
    println!("{:<20} {:>20} {:>9} | {head:>26} | {head:>26}", "", "", "");
    let mut wrong = Vec::new();
    for dir in checkpoints().unwrap() {
        let decoder = Decoder::load(&dir).unwrap();
        let vocab = decoder.vocab;
        let sequences = LENGTHS.map(|n| (0..n).map(|_| rng.whole(0, vocab as i64 - 1) as i32).collect::<Vec<_>>());
        let oracle: Vec<Vec<f64>> =
            sequences.iter().map(|ids| decoder.logits(ids).try_into_vec_as::<f64>().unwrap()).collect();
        let apart = |got: Vec<Vec<f32>>| {
            let each = got.iter().zip(&oracle).map(|(got, oracle)| Apart::of(got, oracle, vocab));
            each.fold(Apart::default(), Apart::and)
        };
        let (evaluator, artifact) =
            (apart(evaluated(&dir, &sequences).unwrap()), apart(executed(&dir, &sequences, vocab).unwrap()));
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let whose = if dir.starts_with(golden::dir()) { "golden" } else { "trained" };
        let name = format!("{} {whose}", name.trim_end_matches("-tiny"));
        let attends = decoder.family.attends.to_string();
        let positions: usize = LENGTHS.iter().sum();
        let cell = |a: Apart| format!("{:.2e} {:>9.2e} {:>5}", a.absolute, a.relative, a.flips);
        println!("{name:<20} {attends:>20} {positions:>9} | {:>26} | {:>26}", cell(evaluator), cell(artifact));
        for (what, apart, most) in [("evaluator", evaluator, EVALUATOR), ("artifact", artifact, ARTIFACT)] {
            if apart.relative.is_nan() || apart.relative > most || apart.flips > 0 {
                wrong.push(format!("{name}: the {what} is {:.2e} of the largest logit away", apart.relative));
            }
        }
        met.extend(decoder.family.model_types.iter().copied());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let known: BTreeSet<&str> = hf::FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
    let ours: BTreeSet<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
    assert_eq!(ours, known, "every family that is imported has a row in decoder.rs");
    assert!(known.is_subset(&met), "families without a checkpoint: {:?}", known.difference(&met));
}

/// The oracle itself, beside what the families' own code computed: the recorded logits of whole sequences under the family's
/// mask, which leaves out paddings and masks that a sampler brings along.
#[test]
fn the_oracle_is_what_the_families_recorded() {
    println!("\n{:<26} {:>20} {:>9} | {:>24}", "recorded case", "attends", "positions", "absolute  relative flips");
    let mut met = BTreeSet::new();
    let entries = std::fs::read_dir(golden::dir().join("cases")).unwrap();
    let families: BTreeSet<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    for family in families {
        for case in golden::family(&family).unwrap() {
            let params = &case.json["params"];
            let plain = !case.tensors.contains_key("pad_mask") && params["attention"] != "block staircase";
            if case.kind() != "forward" || !plain {
                continue;
            }
            let mut decoder = Decoder::load(&case.model_dir()).unwrap();
            // The length of a block is the caller's where a checkpoint was trained for several.
            decoder.block = decoder.block.map(|own| case.block().unwrap_or(own));
            let (Data::Int(ids), Data::Float(logits)) = (&case.tensors["input_ids"].data, &case.tensors["logits"].data)
            else {
                panic!("{family}/{}: no ids or no logits", case.name);
            };
            let oracle = decoder.logits(ids).try_into_vec_as::<f64>().unwrap();
            let apart = Apart::of(logits, &oracle, decoder.vocab);
            let (attends, positions) = (decoder.family.attends.to_string(), ids.len());
            let name = format!("{family} {}", case.name.trim_start_matches("forward__"));
            let Apart { absolute, relative, flips } = apart;
            println!("{name:<26} {attends:>20} {positions:>9} | {absolute:.2e} {relative:>9.2e} {flips:>5}");
            // Another token may be the likeliest where two are nearer to each other than that.
            assert!(relative <= RECORDED, "{name}: {absolute:e} away, {relative:e} of the largest logit");
            met.extend(decoder.family.model_types.iter().copied());
        }
    }
    let known: BTreeSet<&str> = hf::FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
    assert!(known.is_subset(&met), "families without a record: {:?}", known.difference(&met));
}
