//! Checkpoints that were quantized elsewhere, read as what they are: the files of the libraries themselves beside the numbers
//! that these say the weights are, and trained models in the formats of `broken/packs.rs`, which must go on answering.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test program")]

#[path = "broken/model.rs"]
mod model;
#[path = "broken/packs.rs"]
mod packs;

use std::path::{Path, PathBuf};
use std::process::Command;

use dlx_ir::quant::{QuantizedRow, dequantize_row, quantize_row};
use dlx_ir::{DType, Data, Evaluator, QuantFormat, Tensor};
use dlx_targets::CodeRows;
use dlxc::check::source::Whole;
use dlxc::checkpoint::{Checkpoint, TextFiles};
use dlxc::hf;
use half::f16;
use model::{Model, sdar_tiny};
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Directory, the format that holds the codes or comes closest, and the largest relative error of the stored weights: none
/// where they are the library's to the last bit.
const FILES: &[(&str, &str, Option<f64>)] = &[
    ("autoround-awq-g32", "q4g32m", Some(5e-4)),
    ("autoround-gptq-g32", "q4g32", None),
    ("bnb-int8", "q8", Some(5e-4)),
    ("bnb-nf4", "→ q8g32", Some(6e-3)),
    ("bnb-nf4-dq", "→ q8g32", Some(6e-3)),
    ("ct-fp8-dynamic", "→ q8g32", Some(6e-3)),
    ("ct-mxfp4", "q8g32", None),
    ("ct-nvfp4a16", "→ q8g32", Some(6e-3)),
    ("ct-w3-g32", "q4g32", None),
    ("ct-w4a16-g32", "q4g32", None),
    ("ct-w8a8", "q8", None),
    ("gptq-g32", "q4g32", None),
    ("gptq-g32-act", "→ q8g32", Some(6e-3)),
    ("gptq-v2-g32-asym", "q4g32m", Some(5e-4)),
    ("torchao-int8", "q8", None),
    ("torchao-intx4-g32", "q4g32", None),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// The tensors of a reference, as f32.
fn reference(dir: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(dir.join("reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let ids = |data: &[u8]| data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect();
    let all = tensors.tensors().into_iter().map(|(name, t)| {
        let values = if name == "ids" { ids(t.data()) } else { floats(t.data()) };
        (name, t.shape().to_vec(), values)
    });
    all.collect()
}

/// The numbers that a weight is stored as in an artifact.
fn stored(checkpoint: &Checkpoint, name: &str, shape: &[usize], numbers: &[f32]) -> (String, Vec<f32>) {
    let view = checkpoint.tensor(name).unwrap();
    let narrow = |x: &[f32]| x.iter().map(|v| f16::from_f32(*v).to_f32()).collect::<Vec<_>>();
    let k = shape[1];
    if let DType::Quant(format) = view.dtype {
        let groups = format.groups(k);
        let (mut codes, mut scales) = (vec![0; numbers.len()], vec![0.0; shape[0] * groups]);
        let mut mins = vec![0.0; if format.has_min() { scales.len() } else { 0 }];
        let out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
        checkpoint.read_codes(name, format, 0..shape[0], out).unwrap();
        let (scales, mins) = (narrow(&scales), narrow(&mins));
        let rows = codes.chunks(k).enumerate().flat_map(|(i, codes)| {
            let mut out = vec![0.0; k];
            let mins = mins.get(i * groups..(i + 1) * groups).unwrap_or_default();
            dequantize_row(format, codes, &scales[i * groups..(i + 1) * groups], mins, &mut out);
            out
        });
        return (format.to_string(), rows.collect());
    }
    let format: QuantFormat = view.rounded.unwrap();
    let rows = numbers.chunks(k).flat_map(|row| {
        let mut q = QuantizedRow::zeroed(format, k);
        assert!(quantize_row(format, row, &mut q));
        q.dequantize(format)
    });
    (format!("→ {format}"), rows.collect())
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (error / b.iter().map(|v| square(*v)).sum::<f64>()).sqrt()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || *a == 0.0 && *b == 0.0)
}

#[test]
fn every_file_holds_the_numbers_that_its_library_says() {
    let listed = std::fs::read_dir(golden().join("quantized")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
    assert_eq!(listed.count(), FILES.len());
    for (file, format, bound) in FILES {
        let dir = golden().join("quantized").join(file);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let mut compared = 0;
        for (name, shape, wanted) in reference(&dir) {
            let Some(name) = name.strip_prefix("dequant.") else { continue };
            let mut numbers = vec![0.0; wanted.len()];
            checkpoint.require(name, &shape).unwrap();
            checkpoint.read_rows(name, 0..shape[0], &mut numbers).unwrap();
            assert!(same(&numbers, &wanted), "{file} {name}: {}", relative(&numbers, &wanted));
            // A few rows from the middle are those rows.
            let middle = shape[0] / 2;
            checkpoint.read_rows(name, middle..middle + 3, &mut numbers[..3 * shape[1]]).unwrap();
            assert!(same(&numbers[..3 * shape[1]], &wanted[middle * shape[1]..][..3 * shape[1]]), "{file} {name}");
            let (found, stored) = stored(&checkpoint, name, &shape, &wanted);
            let error = relative(&stored, &wanted);
            println!("{file} {name}: {found}, relative error {error:.1e}");
            assert_eq!(&found, format, "{file}");
            assert!(bound.map_or_else(|| same(&stored, &wanted), |bound| error < bound), "{file} {name}: {error}");
            compared += 1;
        }
        assert_eq!(compared, 2, "{file}");
    }
}

/// A golden file beside the tokenizer of the model that it was made of.
fn with_tokenizer(file: &str, dir: &Path) -> PathBuf {
    let to = dir.join(file);
    std::fs::create_dir(&to).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden().join("quantized").join(file).join(name), to.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden().join("onnx2/models/qwen3").join(name), to.join(name)).unwrap();
    }
    to
}

#[test]
fn every_file_gives_the_logits_of_its_reference() {
    FILES.par_iter().for_each(|(file, _, bound)| {
        let dir = tempfile::tempdir().unwrap();
        let model = with_tokenizer(file, dir.path());
        for numbers in [true, false] {
            // What is rounded has other logits.
            if !numbers && bound.is_some_and(|b| b > 1e-3) {
                continue;
            }
            let (mut checkpoint, text) = (Checkpoint::open(&model).unwrap(), TextFiles::read(&model).unwrap());
            if numbers {
                checkpoint = checkpoint.as_numbers();
            }
            let imported = hf::import(&checkpoint, &hf::Source::new(&checkpoint, &text)).unwrap();
            let all = reference(&golden().join("quantized").join(file));
            let of = |name: &str| all.iter().find(|(n, ..)| n == name).unwrap().2.clone();
            let ids: Vec<i32> = of("ids").iter().map(|v| *v as i32).collect();
            let positions = (0..i32::try_from(ids.len()).unwrap()).collect();
            let source = Whole { module: &imported.module, rows: &checkpoint };
            let mut evaluator = Evaluator::new(&imported.module, &source, 1);
            let args = [Tensor::i32(&[ids.len()], ids), Tensor::i32(&[10], positions)];
            let logits = evaluator.run("forward", &args, &mut |_, _| {}).unwrap();
            let Data::F32(logits) = &logits[0].data else { panic!("{:?}", logits[0].dtype) };
            let wanted = of("logits");
            let most = logits.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            println!("{file}, {}: logits within {most:.1e}", if numbers { "numbers" } else { "codes" });
            assert!(most < 1e-3, "{file}: {most}");
        }
    });
}

/// Runs the program: stdout and stderr.
fn dlxc(dir: &Path, args: &[&str]) -> Result<(String, String), String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_dlxc")).args(args).env("DLXC_CACHE", dir.join("cache")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    if output.status.success() { Ok((out, err)) } else { Err(err) }
}

#[test]
fn every_file_compiles_and_answers_and_says_what_was_done() {
    FILES.par_iter().for_each(|(file, format, bound)| {
        let dir = tempfile::tempdir().unwrap();
        let model = with_tokenizer(file, dir.path());
        let model = model.to_str().unwrap();
        let (answer, err) = dlxc(dir.path(), &["run", model, "What is the capital of France?"]).unwrap();
        println!("{file}: {} | {}", answer.trim_end(), err.trim_end().replace('\n', " | "));
        let note = match (format.strip_prefix("→ "), bound) {
            (Some(format), _) => format!("are rounded to {format}: relative error "),
            (None, Some(_)) => format!("as {format}, and their scales rounded to f16: relative error "),
            (None, None) => "14 weights keep the codes and scales that they came with".to_string(),
        };
        assert!(err.contains(&note), "{file}: no `{note}` in {err}");
        // Of three bits no particular answer is expected.
        let right = if *file == "ct-w3-g32" { answer.trim_end().to_owned() } else { "Paris".to_owned() };
        assert_eq!(answer.trim_end(), right, "{file}");
    });
}

#[test]
fn what_is_asked_for_by_name_wins_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_tokenizer("gptq-g32", dir.path());
    let out = dir.path().join("out.dlxa");
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    let compiled = |more: &[&str]| {
        let said = dlxc(dir.path(), &[&["compile", model, "-o", out], more].concat()).unwrap().0;
        let inspected: Value = serde_json::from_str(&dlxc(dir.path(), &["inspect", out, "--json"]).unwrap().0).unwrap();
        let notes = inspected["manifest"]["notes"].to_string();
        assert!(notes.contains("(GPTQ, 4 bits in groups of 32)"), "{notes}");
        (said, notes)
    };
    let kept = "14 weights keep the codes and scales that they came with (GPTQ, 4 bits in groups of 32), as q4g32";
    for more in [&[][..], &["--quant", "none"], &["--quant", "int4"], &["--quant", "int4:32"]] {
        let (said, notes) = compiled(more);
        assert!(said.contains(kept) && notes.contains(kept), "{more:?}: {notes}");
    }
    for (more, note) in [
        (&["--quant", "int8"][..], "14 weights that came as codes (GPTQ, 4 bits in groups of 32) are rounded to q8"),
        (&["--quant", "int4:64"], "are rounded to q4g64, as --quant or --keep asks: relative error "),
        (&["--quant", "f16"], "are rounded to f16, as --quant or --keep asks: relative error "),
        (&["--keep", "down_proj=int8"], "2 weights that came as codes"),
    ] {
        let (said, notes) = compiled(more);
        assert!(said.contains(note) && notes.contains(note), "{more:?}: {notes}");
    }
    // Numbers that no format holds stay numbers where what is stored is asked for.
    let model = with_tokenizer("gptq-g32-act", dir.path());
    let args = ["compile", model.to_str().unwrap(), "-o", out, "--quant", "none"];
    let (said, _) = dlxc(dir.path(), &args).unwrap();
    assert!(said.contains("that are not in order) are stored as the same numbers in f32"), "{said}");
    let export = dir.path().join("export");
    let args =
        ["compile", model.to_str().unwrap(), "--target", "onnx", "-o", export.to_str().unwrap(), "--max-seq", "64"];
    dlxc(dir.path(), &args).unwrap();
    let manifest = std::fs::read_to_string(export.join("manifest.json")).unwrap();
    assert!(manifest.contains("are read as numbers and rounded anew"), "{manifest}");
}

/// The trained model with its projections as the numbers that codes stand for, in f32.
fn dequantized(m: &mut Model, bits: usize, len: usize, symmetric: bool, apart: bool) {
    packs::replace(m, |values, k| {
        let numbers = packs::Coded::new(values, k, bits, len, symmetric, apart).numbers();
        vec![("weight", "F32", vec![numbers.len() / k, k], numbers.iter().flat_map(|v| v.to_le_bytes()).collect())]
    });
}

type Form = (&'static str, fn(&mut Model), fn(&mut Model));

/// Formats of the trained model, and the same numbers in f32.
const FORMS: &[Form] = &[
    ("gptq", packs::gptq, |m| dequantized(m, 4, 64, true, false)),
    ("gptq, groups out of order", packs::gptq_apart, |m| dequantized(m, 4, 64, true, true)),
    ("gptq v2, zero points", packs::gptq_second, |m| dequantized(m, 4, 32, false, false)),
    ("awq", packs::awq, |m| dequantized(m, 4, 64, false, false)),
    ("compressed-tensors", packs::compressed, |m| dequantized(m, 4, 64, true, false)),
];

#[test]
fn formats_asked_for_are_those_of_the_same_numbers() {
    FORMS.par_iter().for_each(|(form, quantized, plain)| {
        let compiled = |change: fn(&mut Model), quant: &str| {
            let dir = tempfile::tempdir().unwrap();
            let mut model = sdar_tiny(dir.path());
            change(&mut model);
            model.save();
            let out = dir.path().join("out.dlxa");
            let args = ["compile", model.dir.to_str().unwrap(), "-o", out.to_str().unwrap(), "--quant", quant];
            dlxc(dir.path(), &args).unwrap();
            let artifact = dlx_runtime::artifact::Artifact::open(&out).unwrap();
            artifact.weights().to_vec()
        };
        for quant in ["f16", "int8:64", "int4:128:min"] {
            let (of_codes, of_numbers) = (compiled(*quantized, quant), compiled(*plain, quant));
            let differ = of_codes.iter().zip(&of_numbers).filter(|(a, b)| a != b).count();
            let lengths = (of_codes.len(), of_numbers.len());
            assert!(differ == 0 && lengths.0 == lengths.1, "{form} {quant}: {differ} other bytes of {lengths:?}");
        }
    });
}

#[test]
fn trained_models_go_on_answering() {
    let questions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/questions.jsonl");
    let right = |change: fn(&mut Model), quant: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let mut model = sdar_tiny(dir.path());
        change(&mut model);
        model.save();
        let args = ["eval", model.dir.to_str().unwrap(), questions.to_str().unwrap(), "--json"];
        let (out, err) = dlxc(dir.path(), &[&args, quant].concat()).unwrap();
        let report: Value = serde_json::from_str(&out).unwrap();
        (report["exact_match"].as_f64().unwrap(), err)
    };
    FORMS.par_iter().for_each(|(form, quantized, plain)| {
        let ((codes, said), (numbers, _)) = (right(*quantized, &[]), right(*plain, &["--quant", "none"]));
        println!("{form}: {codes} from codes, {numbers} from the same numbers in f32; {}", said.trim_end());
        assert!(codes > 0.9 && (codes - numbers).abs() < 0.0301, "{form}: {codes} {numbers}");
    });
}

#[test]
fn files_of_quantizers_say_what_a_config_would() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = sdar_tiny(dir.path());
    packs::gptq(&mut model);
    model.unset("quantization_config");
    model.write("quantize_config.json", json!({"bits": 4, "group_size": 64, "sym": true}).to_string().as_bytes());
    // A scale of an activation is left out and said.
    let mut tensors = model.tensors();
    tensors.insert("model.layers.0.self_attn.k_scale".into(), ("F32".into(), json!([1]), vec![0; 4]));
    model.write_tensors("model.safetensors", &tensors);
    model.save();
    let inspected = dlxc(dir.path(), &["inspect", model.dir.to_str().unwrap(), "--json"]).unwrap().0;
    let report: Value = serde_json::from_str(&inspected).unwrap();
    let facts = report["facts"].to_string();
    assert!(facts.contains("28 weights: GPTQ, 4 bits in groups of 64"), "{facts}");
    assert!(report["notes"].to_string().contains("1 tensors left out: scales of activations"), "{inspected}");
    let mut unlike = packs::gptq_config();
    unlike["bits"] = json!(3);
    model.write("quantize_config.json", unlike.to_string().as_bytes());
    model.save();
    let error = dlxc(dir.path(), &["inspect", model.dir.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("quantize_config.json: `bits`: is 3, but"), "{error}");
}

#[test]
fn nested_scales_that_were_rounded_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("model");
    std::fs::create_dir(&to).unwrap();
    let from = golden().join("quantized/bnb-nf4-dq");
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    // A forward pass on a CPU leaves the element type of the model here.
    let (honest, after) = (br#""nested_dtype": "float32""#, br#""nested_dtype":"bfloat16""#);
    let places: Vec<usize> = (0..bytes.len() - honest.len()).filter(|i| bytes[*i..].starts_with(honest)).collect();
    assert_eq!(places.len(), 14);
    bytes[places[3]..][..honest.len()].copy_from_slice(after);
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(&to).unwrap_err().to_string();
    assert!(error.contains("nested_dtype") && error.contains("save before the first forward pass"), "{error}");
}
