//! Quantized checkpoints whose tensors and config do not fit each other; the error, and its advice as an action.

use serde_json::json;

use super::model::Model;
use super::packs::{self, awq, compressed, edit, fp8, gptq, gptq_apart, lose, nf4, torchao};
use super::{Remedy, Row};
use Remedy::{Do, Original};

/// A projection of the model.
const Q: &str = "model.layers.1.self_attn.q_proj";

const FILES: &str = "download all weight files";
const AGAIN: &str = "download the file again";
const COMMIT: &str = "download config.json and all weight files of one commit";
const UNQUANTIZED: &str = "use the unquantized checkpoint that this one was made from";

/// Every way in which each method can be contradicted.
pub(crate) const QUANTIZED: &[Row] = &[
    (
        "GPTQ that the config does not tell",
        |m| {
            gptq(m);
            m.unset("quantization_config")
        },
        "with GPTQ, and config.json does not say how",
        "download config.json from the model's repository",
        Do(gptq),
    ),
    (
        "FP8 that the config does not tell",
        |m| {
            fp8(m);
            m.unset("quantization_config")
        },
        "has element type F8_E4M3: the weights are quantized already, with FP8",
        "download config.json from the model's repository",
        Do(fp8),
    ),
    (
        "GPTQ without zero points",
        |m| lost(m, gptq, "qzeros"),
        "has no `model.layers.1.self_attn.q_proj.qzeros`",
        FILES,
        Do(gptq),
    ),
    (
        "GPTQ without scales",
        |m| lost(m, gptq, "scales"),
        "has no `model.layers.1.self_attn.q_proj.scales`",
        FILES,
        Do(gptq),
    ),
    ("AWQ without zero points", |m| lost(m, awq, "qzeros"), "q_proj.qzeros`", FILES, Do(awq)),
    (
        "a scale of zero",
        |m| scale(m, [0, 0]),
        "q_proj.scales`: the scale of columns 0 to 63 of row 1 is 0",
        AGAIN,
        Do(gptq),
    ),
    ("a scale that is not a number", |m| scale(m, [0, 0x7e]), "columns 0 to 63 of row 1 is NaN", AGAIN, Do(gptq)),
    ("an infinite scale", |m| scale(m, [0, 0x7c]), "row 1 is inf", AGAIN, Do(gptq)),
    (
        "a column of no group",
        |m| order(m, 5, 99),
        "q_proj.g_idx`: puts column 5 into group 99 of 3",
        AGAIN,
        Do(gptq_apart),
    ),
    ("a column of a negative group", |m| order(m, 5, -1), "puts column 5 into group -1 of 3", AGAIN, Do(gptq_apart)),
    ("groups of unequal sizes", |m| order(m, 5, 0), "puts 65 columns into group 0 of 64", AGAIN, Do(gptq_apart)),
    (
        "an order that the config denies",
        |m| {
            gptq_apart(m);
            packs::declare(m, packs::gptq_config())
        },
        "`quantization_config.desc_act`: is false, but",
        COMMIT,
        Do(gptq),
    ),
    ("other bits", |m| says(m, gptq, "bits", json!(8)), "`quantization_config.bits`: is 8, but", COMMIT, Do(gptq)),
    ("another group size", |m| says(m, gptq, "group_size", json!(32)), "group_size`: is 32, but", COMMIT, Do(gptq)),
    (
        "whole rows in place of groups",
        |m| says(m, gptq, "group_size", json!(-1)),
        "has 8 groups of 512 columns",
        COMMIT,
        Do(gptq),
    ),
    (
        "a group size that does not divide",
        |m| says(m, gptq, "group_size", json!(50)),
        "group_size`: is 50, which does not divide the",
        COMMIT,
        Do(gptq),
    ),
    (
        "zero points of the second format in the first",
        |m| {
            packs::replace(m, |values, k| packs::Coded::new(values, k, 4, 64, true, false).gptq(0));
            packs::declare(m, packs::gptq_config())
        },
        "has zero points 9, and sym asks for 8",
        "set checkpoint_format to \"gptq_v2\"",
        Do(|m| m.json("config.json", |c| c["quantization_config"]["checkpoint_format"] = json!("gptq_v2"))),
    ),
    (
        "zero points of the first format in the second",
        |m| says(m, gptq, "checkpoint_format", json!("gptq_v2")),
        "has zero points 7, and sym asks for 8",
        "set checkpoint_format to \"gptq\"",
        Do(|m| m.json("config.json", |c| c["quantization_config"]["checkpoint_format"] = json!("gptq"))),
    ),
    (
        "zero points that are called symmetric",
        |m| {
            packs::gptq_second(m);
            m.json("config.json", |c| c["quantization_config"]["sym"] = json!(true))
        },
        "and sym asks for 8",
        COMMIT,
        Original,
    ),
    (
        "a zero point beyond all codes",
        |m| {
            gptq(m);
            edit(m, &format!("{Q}.qzeros"), |bytes| bytes[0] = 0x7f)
        },
        "has the zero point 15 + 1 of row 0 in group 0",
        "readers take it for 0 or for one beyond all codes",
        Original,
    ),
    (
        "zero points of another size",
        |m| {
            gptq(m);
            cut_rows(m, "qzeros", 1)
        },
        "where the tensors beside it ask for i32 [3, _]",
        AGAIN,
        Do(gptq),
    ),
    (
        "AWQ under GPTQ's name",
        |m| {
            awq(m);
            packs::declare(m, json!({"quant_method": "gptq"}))
        },
        "quant_method`: is gptq, but",
        COMMIT,
        Do(awq),
    ),
    (
        "GPTQ under AWQ's name",
        |m| {
            gptq(m);
            packs::declare(m, json!({"quant_method": "awq"}))
        },
        "lies as that of GPTQ does",
        COMMIT,
        Do(gptq),
    ),
    (
        "GPTQ for one kind of kernel",
        |m| says(m, gptq, "checkpoint_format", json!("marlin")),
        "`marlin` is not read; gptq and gptq_v2 are",
        "use a checkpoint in GPTQ's own format",
        Original,
    ),
    (
        "AWQ for one kind of kernel",
        |m| says(m, awq, "version", json!("gemv")),
        "`gemv` is not read; gemm is",
        "use the gemm version",
        Original,
    ),
    (
        "AutoRound for one kind of kernel",
        |m| {
            gptq(m);
            packs::declare(m, json!({"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"}))
        },
        "`auto_round:llm_compressor` is not read",
        UNQUANTIZED,
        Original,
    ),
    ("AWQ with other bits", |m| says(m, awq, "bits", json!(8)), "bits`: is 8, but", COMMIT, Do(awq)),
    (
        "a weight besides its codes",
        |m| {
            gptq(m);
            let mut tensors = m.tensors();
            let plain = m.original().remove(&format!("{Q}.weight")).unwrap();
            tensors.insert(format!("{Q}.weight"), plain);
            m.write_tensors("model.safetensors", &tensors)
        },
        "which stands for the same",
        AGAIN,
        Do(gptq),
    ),
    (
        "codes that belong to nothing",
        |m| {
            gptq(m);
            let mut tensors = m.tensors();
            tensors.insert("model.more.codes".into(), ("I32".into(), json!([1]), vec![0; 4]));
            m.write_tensors("model.safetensors", &tensors)
        },
        "which leaves no such tensor: tensor `model.more.codes`",
        UNQUANTIZED,
        Original,
    ),
    (
        "compressed-tensors of other bits",
        |m| {
            compressed(m);
            packs::declare(m, packs::compressed_config(8, 64))
        },
        "config_groups`: is integers of 8 bits, one scale per group of 64 columns, but",
        COMMIT,
        Do(compressed),
    ),
    (
        "compressed-tensors of other groups",
        |m| {
            compressed(m);
            packs::declare(m, packs::compressed_config(4, 32))
        },
        "holds integers of 4 bits",
        COMMIT,
        Do(compressed),
    ),
    (
        "compressed-tensors of groups that do not divide",
        |m| {
            compressed(m);
            packs::declare(m, packs::compressed_config(4, 50))
        },
        "has groups of 50, which do not divide the",
        COMMIT,
        Do(compressed),
    ),
    (
        "packed words without a shape",
        |m| lost(m, compressed, "weight_shape"),
        "q_proj.weight_shape`",
        FILES,
        Do(compressed),
    ),
    (
        "packed words of another shape",
        |m| {
            compressed(m);
            edit(m, &format!("{Q}.weight_shape"), |bytes| bytes[8..].copy_from_slice(&i64::MAX.to_le_bytes()))
        },
        "does not say the shape of 192 rows of 24 words",
        AGAIN,
        Do(compressed),
    ),
    (
        "rotations beside the weights",
        |m| says(m, compressed, "transform_config", json!({"config_groups": {"R1": {}}})),
        "asks for rotations",
        UNQUANTIZED,
        Original,
    ),
    (
        "FP8 without the size of its blocks",
        |m| {
            fp8(m);
            packs::declare(m, json!({"quant_method": "fp8"}))
        },
        "weight_block_size`: is missing, and",
        COMMIT,
        Do(fp8),
    ),
    (
        "FP8 with another size of blocks",
        |m| says(m, fp8, "weight_block_size", json!([128, 128])),
        "where blocks of 128 × 128 of",
        AGAIN,
        Do(fp8),
    ),
    ("FP8 with half a size", |m| says(m, fp8, "weight_block_size", json!([0])), "must be two sizes", COMMIT, Do(fp8)),
    (
        "FP8 without scales",
        |m| lost(m, fp8, "weight_scale_inv"),
        "has no `model.layers.1.self_attn.q_proj.weight_scale`",
        FILES,
        Do(fp8),
    ),
    (
        "FP8 that is not a number",
        |m| {
            fp8(m);
            edit(m, &format!("{Q}.weight"), |bytes| bytes[3] = 0x7f)
        },
        "q_proj.weight`: NaN at [0, 3]",
        "download it again",
        Do(fp8),
    ),
    (
        "scales that a CPU turned",
        |m| {
            nf4(m);
            turned(m)
        },
        "it was saved after a forward pass on a CPU",
        "quantize again and save before the first forward pass",
        Original,
    ),
    (
        "a block too few",
        |m| {
            nf4(m);
            cut_rows(m, "weight.absmax", 1)
        },
        "in blocks of 64 has 576",
        AGAIN,
        Do(nf4),
    ),
    (
        "a table with a hole",
        |m| {
            nf4(m);
            edit(m, &format!("{Q}.weight.quant_map"), |bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()))
        },
        "quant_map`: has NaN at [0]",
        AGAIN,
        Do(nf4),
    ),
    (
        "a shape of other codes",
        |m| {
            nf4(m);
            edit(m, &format!("{Q}.weight.quant_state.bitsandbytes__nf4"), |bytes| {
                *bytes = String::from_utf8(bytes.clone()).unwrap().replace("192]", "292]").into_bytes()
            })
        },
        "which are not the codes of [192, 292]",
        AGAIN,
        Do(nf4),
    ),
    (
        "4 bits that the config calls 8",
        |m| says(m, nf4, "load_in_8bit", json!(true)),
        "load_in_8bit`: is true, but",
        COMMIT,
        Do(nf4),
    ),
    (
        "8 bits that the config calls 4",
        |m| says(m, packs::bnb8, "load_in_4bit", json!(true)),
        "load_in_4bit`: is true, but",
        COMMIT,
        Do(packs::bnb8),
    ),
    (
        "codes as a graphics device wants them",
        |m| {
            packs::bnb8(m);
            edit(m, &format!("{Q}.weight_format"), |bytes| bytes[0] = 2)
        },
        "lie as a graphics device wants them",
        AGAIN,
        Do(packs::bnb8),
    ),
    (
        "torchao without its header",
        |m| {
            torchao(m);
            let tensors = m.tensors();
            m.write_tensors("model.safetensors", &tensors)
        },
        "of which the header of its file does not say what it is",
        AGAIN,
        Do(torchao),
    ),
    (
        "an unknown class of torchao",
        |m| {
            torchao(m);
            packs::torchao_says(m, "Int4PreshuffledTensor")
        },
        "`Int4PreshuffledTensor` is not read",
        UNQUANTIZED,
        Original,
    ),
    (
        "a code beyond its bits",
        |m| {
            torchao(m);
            edit(m, &format!("{Q}._weight_qdata"), |bytes| bytes[2] = 9);
            packs::torchao_says(m, "IntxUnpackedToInt8Tensor")
        },
        "holds 9 at [0, 2], which is no code of 4 bits",
        AGAIN,
        Do(torchao),
    ),
];

/// A model of a method that lacks one tensor.
fn lost(m: &mut Model, method: fn(&mut Model), ending: &str) {
    method(m);
    lose(m, &format!("{Q}.{ending}"));
}

/// A model of a method whose config says something else.
fn says(m: &mut Model, method: fn(&mut Model), key: &str, value: serde_json::Value) {
    method(m);
    m.json("config.json", |config| config["quantization_config"][key] = value);
}

/// GPTQ with these bytes as the scale of the second row in the first group.
fn scale(m: &mut Model, bytes: [u8; 2]) {
    gptq(m);
    edit(m, &format!("{Q}.scales"), |all| all[2..4].copy_from_slice(&bytes));
}

/// GPTQ that puts a column into another group.
fn order(m: &mut Model, column: usize, group: i32) {
    gptq_apart(m);
    edit(m, &format!("{Q}.g_idx"), |all| all[4 * column..][..4].copy_from_slice(&group.to_le_bytes()));
}

/// Takes the last row of a tensor away.
fn cut_rows(m: &mut Model, ending: &str, rows: u64) {
    let mut tensors = m.tensors();
    let (_, shape, bytes) = tensors.get_mut(&format!("{Q}.{ending}")).unwrap();
    let all = shape[0].as_u64().unwrap();
    bytes.truncate(bytes.len() / all as usize * (all - rows) as usize);
    shape[0] = json!(all - rows);
    m.write_tensors("model.safetensors", &tensors);
}

/// Plain scales as they are saved after a forward pass on a CPU: in bf16, blocks by rows.
fn turned(m: &mut Model) {
    let mut tensors = m.tensors();
    for (name, (dtype, shape, bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".absmax")) {
        let rows =
            if name.contains("down_proj") || name.contains("q_proj") || name.contains("o_proj") { 192 } else { 64 };
        let all: Vec<[u8; 4]> = bytes.as_chunks().0.to_vec();
        let blocks = all.len() / rows;
        let turned = (0..blocks).flat_map(|b| (0..rows).map(move |r| r * blocks + b));
        *bytes = turned.flat_map(|i| [all[i][2], all[i][3]]).collect();
        (*dtype, *shape) = ("BF16".into(), json!([blocks, rows]));
    }
    m.write_tensors("model.safetensors", &tensors);
}
