//! Directories that are no model, or weights that were quantized elsewhere; the error, and its advice as an action.

use serde_json::{Value, json};

use super::model::{Model, Tensors};
use super::{Remedy, Row, packs};
use Remedy::{Do, Elsewhere, Fetch, Informs, Original};

const WEIGHTS: &str = "model.safetensors";
const WHOLE: Remedy = Fetch(&[WEIGHTS]);
const UNQUANTIZED: &str = "use the unquantized checkpoint that this one was made from";

/// What is no model.
pub(crate) const OTHERS: &[Row] = &[
    (
        "an adapter",
        |m| {
            adapter(m);
            m.remove("config.json");
            m.remove(WEIGHTS)
        },
        "is an adapter (LoRA or the like) for another model",
        "merge it first: load its base model, Org/Base,",
        Original,
    ),
    (
        "an adapter with a config",
        |m| {
            adapter(m);
            m.remove(WEIGHTS)
        },
        "is an adapter (LoRA or the like) for another model",
        "merge it first",
        Original,
    ),
    (
        "an adapter without its config",
        |m| {
            m.remove("config.json");
            m.remove(WEIGHTS);
            m.write_tensors("adapter_model.safetensors", &lora());
        },
        "adapter_model.safetensors: this is an adapter",
        "merge it first",
        Original,
    ),
    (
        "an adapter beside its base",
        adapter,
        "beside a whole model",
        "move the adapter_* files away",
        Do(|m| {
            m.remove("adapter_config.json");
            m.remove("adapter_model.safetensors")
        }),
    ),
    (
        "adapter tensors under the model's name",
        |m| m.write_tensors(WEIGHTS, &lora()),
        "belongs to an adapter",
        "merge the adapter into its base model",
        Original,
    ),
    (
        "the vision part alone",
        |m| m.write_tensors(WEIGHTS, &named("vision_tower.patch.weight", "F32", 4)),
        "the vision part",
        "give the directory of the whole language model",
        Original,
    ),
    (
        "an optimizer's tensors",
        |m| m.write_tensors(WEIGHTS, &named("exp_avg.0", "F32", 4)),
        "state of an optimizer",
        "the model that was saved with it",
        Original,
    ),
    (
        "FP8 whose codes were cast",
        |m| {
            packs::fp8(m);
            m.unset("quantization_config");
            cast(m);
        },
        "belongs to weights that were quantized with FP8",
        UNQUANTIZED,
        Original,
    ),
    ("HQQ", |m| words(m, &["W_q"]), "with HQQ", UNQUANTIZED, Original),
    (
        "MLX",
        |m| {
            words(m, &["weight"]);
            m.set("quantization", json!({"group_size": 64, "bits": 4}))
        },
        "`quantization`: the weights are quantized already, with MLX",
        UNQUANTIZED,
        Original,
    ),
    (
        "torchao in a pickle",
        |m| {
            m.take(WEIGHTS, "pytorch_model.bin");
            declare(m, "torchao");
        },
        "quantized already, with torchao, and there are no *.safetensors",
        UNQUANTIZED,
        Original,
    ),
    (
        "another method",
        |m| {
            words(m, &["weight"]);
            declare(m, "quanto")
        },
        "with quanto",
        UNQUANTIZED,
        Original,
    ),
    (
        "integers",
        |m| words(m, &["weight"]),
        "has element type I32",
        "use the checkpoint as its publisher made it",
        Original,
    ),
    ("64-bit floats", doubles, "has element type F64", "store the checkpoint as float32", Do(floats)),
    (
        "PyTorch pickles",
        |m| m.take(WEIGHTS, "pytorch_model.bin"),
        "PyTorch pickles (pytorch_model.bin)",
        "save_file(",
        Do(|m| m.take("pytorch_model.bin", "pytorch_model.safetensors")),
    ),
    (
        "GGUF",
        |m| m.take(WEIGHTS, "model.Q4_K_M.gguf"),
        "GGUF files for llama.cpp",
        "use the safetensors checkpoint",
        Original,
    ),
    (
        "Flax weights",
        |m| m.take(WEIGHTS, "flax_model.msgpack"),
        "Flax weights",
        "use the safetensors checkpoint",
        Original,
    ),
    ("ONNX", |m| m.take(WEIGHTS, "model.onnx"), "ONNX graphs", "use the safetensors checkpoint", Original),
    (
        "a training state alone",
        |m| m.take(WEIGHTS, "optimizer.pt"),
        "the state of a training run without its model",
        "give the directory of the model",
        Original,
    ),
    (
        "DeepSpeed",
        |m| m.take(WEIGHTS, "global_step100/mp_rank_00_model_states.pt"),
        "the state of a DeepSpeed training run",
        "zero_to_fp32.py",
        Original,
    ),
    (
        "a distributed checkpoint",
        |m| m.take(WEIGHTS, "pytorch_model_fsdp_0/__0_0.distcp"),
        "a distributed training checkpoint",
        "accelerate merge-weights",
        Original,
    ),
    (
        "half a download",
        |m| m.take(WEIGHTS, "model.safetensors.incomplete"),
        "a download that was not finished",
        "run the same download again",
        WHOLE,
    ),
    (
        "half a download in a cache",
        |m| m.take(WEIGHTS, ".cache/huggingface/download/abc.incomplete"),
        "a download that was not finished",
        "run the same download again",
        WHOLE,
    ),
    (
        "weights a level too low",
        |m| m.take(WEIGHTS, "weights/model.safetensors"),
        "a directory in it has some",
        "move the files of",
        Do(|m| m.take("weights/model.safetensors", WEIGHTS)),
    ),
    (
        "a directory too high",
        |m| m.move_into("checkpoint-100"),
        "a directory in it does",
        "give that one: ",
        Elsewhere("checkpoint-100"),
    ),
    (
        "a download cache",
        |m| m.move_into("models--Org--Name/snapshots/0a1b"),
        "a directory in it does",
        "give that one: ",
        Elsewhere("models--Org--Name/snapshots/0a1b"),
    ),
    (
        "an entry of a download cache",
        |m| m.move_into("snapshots/0a1b"),
        "a directory in it does",
        "give that one: ",
        Elsewhere("snapshots/0a1b"),
    ),
    (
        "several models",
        |m| {
            let c = m.bytes("config.json").to_vec();
            m.move_into("a");
            m.write("b/config.json", &c)
        },
        "2 directories in it do",
        "give one of them, such as",
        Elsewhere("a"),
    ),
    (
        "a pipeline for images",
        |m| {
            m.remove("config.json");
            m.write("model_index.json", b"{}")
        },
        "is a diffusers pipeline",
        "lists what can be compiled",
        Informs,
    ),
];

fn adapter(m: &mut Model) {
    m.write("adapter_config.json", b"{\"peft_type\": \"LORA\", \"base_model_name_or_path\": \"Org/Base\"}");
    m.write_tensors("adapter_model.safetensors", &lora());
}

fn lora() -> Tensors {
    named("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "F32", 4)
}

/// A single tensor of eight elements.
fn named(name: &str, dtype: &str, size: usize) -> Tensors {
    [(name.to_owned(), (dtype.to_owned(), json!([8]), vec![0; 8 * size]))].into()
}

fn declare(m: &mut Model, method: &str) {
    m.set("quantization_config", json!({"quant_method": method}));
}

/// Codes in one byte as numbers in two, as an unwitting conversion would write them.
fn cast(m: &mut Model) {
    let mut tensors = m.tensors();
    for (dtype, _, bytes) in tensors.values_mut().filter(|(dtype, ..)| dtype == "F8_E4M3") {
        (*dtype, *bytes) = ("BF16".to_owned(), bytes.iter().flat_map(|b| [*b, 0x3c]).collect());
    }
    m.write_tensors(WEIGHTS, &tensors);
}

/// Projections as integers under these names.
fn words(m: &mut Model, leaves: &[&str]) {
    let mut tensors = m.tensors();
    for (name, (_, shape, bytes)) in m.tensors().into_iter().filter(|(name, _)| name.ends_with("_proj.weight")) {
        tensors.remove(&name);
        let halves: Value = json!([shape[0], shape[1].as_u64().unwrap() / 2]);
        for leaf in leaves {
            let name = format!("{}{leaf}", name.strip_suffix("weight").unwrap());
            tensors.insert(name, ("I32".to_owned(), halves.clone(), bytes.clone()));
        }
    }
    m.write_tensors(WEIGHTS, &tensors);
}

fn doubles(m: &mut Model) {
    let mut tensors = m.tensors();
    for (dtype, _, bytes) in tensors.values_mut() {
        let wide =
            bytes.as_chunks().0.iter().map(|v| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*v)) << 16)));
        (*dtype, *bytes) = ("F64".to_owned(), wide.flat_map(f64::to_le_bytes).collect());
    }
    m.write_tensors(WEIGHTS, &tensors);
}

fn floats(m: &mut Model) {
    let mut tensors = m.tensors();
    for (dtype, _, bytes) in tensors.values_mut() {
        let narrow = bytes.as_chunks().0.iter().map(|v| f64::from_le_bytes(*v) as f32);
        (*dtype, *bytes) = ("F32".to_owned(), narrow.flat_map(f32::to_le_bytes).collect());
    }
    m.write_tensors(WEIGHTS, &tensors);
}
