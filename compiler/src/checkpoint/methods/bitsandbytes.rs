//! bitsandbytes: 8 bits with a largest magnitude `SCB` per row, or 4 bits of a table with one per block of the flat matrix.
//!
//! * 8 bits: `weight I8 [N, K]`, `w = code · SCB / 127`.
//! * 4 bits: `weight` of two codes a byte, the first in the upper half, `weight.quant_map` the numbers, and
//!   `weight.quant_state.bitsandbytes__TYPE` a JSON text with shape and block size. `weight.absmax` are floats, or bytes that
//!   are places in `nested_quant_map`, times `nested_absmax`, plus `nested_offset`.
//!
//! A forward pass on a CPU lays weights out anew, and saving them afterwards does not undo it as a whole: plain scales stay
//! turned and in bf16, nested ones are rounded to the element type of the model and then again. Both show in the types.

use std::path::Path;

use dlx_ir::{DType, Error};

use super::{FLOATS, Loader, dims};
use crate::checkpoint::Config;
use crate::checkpoint::packed::{DAMAGED, Groups, Kind, Layout, Numbers, Order, Part, Scales, Zeros};

/// Types whose bytes may hold codes of 4 bits.
const STORAGE: &[DType] = &[DType::U8, DType::I8, DType::F16, DType::BF16, DType::F32];

const SAVED_AFTER_A_FORWARD: &str = "quantize again and save before the first forward pass on a CPU, or use the unquantized checkpoint that this one was made from";

/// Both kinds.
pub(super) fn read(loader: &mut Loader<'_>) -> Result<(), Error> {
    for stem in loader.stems(".SCB", &[DType::F32]) {
        eight_bits(loader, &stem)?;
    }
    for stem in loader.stems(".weight.absmax", STORAGE) {
        four_bits(loader, &stem)?;
    }
    Ok(())
}

fn eight_bits(loader: &mut Loader<'_>, stem: &str) -> Result<(), Error> {
    let codes = loader.part(stem, ".weight", &[DType::I8], &[0, 0])?;
    let shape = dims(&codes);
    let scales = loader.part(stem, ".SCB", &[DType::F32], &shape[..1])?;
    if let Some(format) = loader.optional(stem, ".weight_format")
        && format.bytes(loader.shards).iter().any(|b| *b != 0)
    {
        let message = "says that the codes lie as a graphics device wants them; only rows are read";
        return Err(loader.refuse(&format, message));
    }
    let config = loader.config();
    if config.opt_bool("load_in_4bit")? == Some(true) {
        return Err(loader.contradiction("load_in_4bit", true, &codes, "holds codes of 8 bits"));
    }
    let layout = Layout {
        codes,
        order: Order::Bytes,
        bits: 8,
        shape,
        numbers: Numbers::Moved(128),
        zeros: Zeros::Of(128),
        scales: Scales { part: scales, kind: Kind::Number, divisor: 127.0 },
        groups: Groups::Blocks { rows: 1, columns: shape[1] },
        strides: [1, 0],
        said: "bitsandbytes, 8 bits in rows".into(),
    };
    loader.add(format!("{stem}.weight"), layout)
}

fn four_bits(loader: &mut Loader<'_>, stem: &str) -> Result<(), Error> {
    let ending = |end: &str| format!(".weight{end}");
    let nested = loader.has(stem, &ending(".nested_absmax"));
    let absmax = loader.optional(stem, &ending(".absmax")).expect("stems are those that have one");
    let wanted = if nested { DType::U8 } else { DType::F32 };
    if absmax.entry.dtype != wanted || absmax.entry.shape.len() != 1 {
        let message = format!(
            "is {} {:?}, not {wanted} in a row: it was saved after a forward pass on a CPU, which turned the scales",
            absmax.entry.dtype, absmax.entry.shape
        );
        return Err(loader.refuse(&absmax, message).help(SAVED_AFTER_A_FORWARD));
    }
    let kind = ["nf4", "fp4"].into_iter().find(|kind| loader.has(stem, &state_of(kind))).unwrap_or("nf4");
    let state = loader.part(stem, &state_of(kind), &[DType::U8], &[0])?;
    let place = state.place(loader.shards);
    let state = Config::from_json(Path::new(&place), state.bytes(loader.shards))?;
    let shape = shape_of(&state)?;
    let block = state.usize("blocksize")?;
    let config = loader.config();
    if let Some(says) = config.opt_str("bnb_4bit_quant_type")?.filter(|says| *says != kind) {
        return Err(loader.contradiction("bnb_4bit_quant_type", says, &absmax, &format!("belongs to {kind}")));
    }
    if config.opt_bool("load_in_8bit")? == Some(true) {
        return Err(loader.contradiction("load_in_8bit", true, &absmax, "belongs to codes of 4 bits"));
    }
    let dimensions = loader.tensors.get(&format!("{stem}.weight")).map_or(0, |(_, entry)| entry.shape.len());
    let codes = loader.part(stem, ".weight", STORAGE, &vec![0; dimensions])?;
    let elements = shape[0].checked_mul(shape[1]);
    let bytes = codes.bytes(loader.shards).len();
    if elements.map(|n| n.div_ceil(2)) != Some(bytes) {
        let message = format!("holds {bytes} bytes, which are not the codes of {shape:?} that {place} asks for");
        return Err(loader.refuse(&codes, message));
    }
    let blocks = elements.unwrap_or(0).div_ceil(block);
    if absmax.entry.shape != [blocks] {
        let message =
            format!("has {:?} entries, where {shape:?} in blocks of {block} has {blocks}", absmax.entry.shape);
        return Err(loader.refuse(&absmax, message));
    }
    let table = floats(loader, stem, &ending(".quant_map"), 16)?;
    let kind_of_scale = if nested { nested_scales(loader, stem, &state, blocks)? } else { Kind::Number };
    let [_, k] = shape;
    let groups = if k.is_multiple_of(block) { Groups::Blocks { rows: 1, columns: block } } else { Groups::Flat(block) };
    let strides = [k / block, 1];
    let twice = if nested { ", their scales in 8" } else { "" };
    let layout = Layout {
        codes,
        order: Order::HighFirst,
        bits: 4,
        shape,
        numbers: Numbers::Table(table, None),
        zeros: Zeros::Of(0),
        scales: Scales { part: absmax, kind: kind_of_scale, divisor: 1.0 },
        groups,
        strides,
        said: format!("bitsandbytes, {kind} in blocks of {block}{twice}"),
    };
    loader.add(format!("{stem}.weight"), layout)
}

fn state_of(kind: &str) -> String {
    format!(".weight.quant_state.bitsandbytes__{kind}")
}

fn shape_of(state: &Config) -> Result<[usize; 2], Error> {
    let sizes = state.get("shape").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let size = |v: &serde_json::Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match sizes.iter().map(size).collect::<Option<Vec<_>>>().as_deref() {
        Some(&[n, k]) => Ok([n, k]),
        _ => Err(state.error("shape", "must be two sizes").help(DAMAGED)),
    }
}

fn nested_scales(loader: &mut Loader<'_>, stem: &str, state: &Config, blocks: usize) -> Result<Kind, Error> {
    if let Some(other) = state.opt_str("nested_dtype")?.filter(|dtype| *dtype != "float32") {
        let message = format!(
            "is {other}, not float32: it was saved after a forward pass on a CPU, which rounded the scales a second time"
        );
        return Err(state.error("nested_dtype", message).help(SAVED_AFTER_A_FORWARD));
    }
    let block = state.usize("nested_blocksize")?;
    let offset = state.get("nested_offset").and_then(serde_json::Value::as_f64);
    let offset = offset.ok_or_else(|| state.error("nested_offset", "must be a number").help(DAMAGED))?;
    let table = floats(loader, stem, ".weight.nested_quant_map", 256)?;
    let scales = floats(loader, stem, ".weight.nested_absmax", blocks.div_ceil(block))?;
    Ok(Kind::Nested { table, scales, block, plus: offset as f32 })
}

/// All of a vector of finite floats.
fn floats(loader: &mut Loader<'_>, stem: &str, ending: &str, len: usize) -> Result<Vec<f32>, Error> {
    let part: Part = loader.part(stem, ending, FLOATS, &[len])?;
    let numbers = Scales::plain(part);
    let all: Vec<f32> = (0..numbers.len()).map(|i| numbers.get(loader.shards, i)).collect();
    match all.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(loader.refuse(&numbers.part, format!("has {} at [{i}]", all[i]))),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_config_are_not_believed_beyond_their_limits() {
        let state = |text: &str| Config::from_json(Path::new("s"), text.as_bytes()).unwrap();
        assert_eq!(shape_of(&state(r#"{"shape": [64, 96]}"#)), Ok([64, 96]));
        for wrong in [r#"{}"#, r#"{"shape": [64]}"#, r#"{"shape": [0, 1]}"#, r#"{"shape": [-1, 1]}"#] {
            assert!(shape_of(&state(wrong)).unwrap_err().to_string().contains("two sizes"), "{wrong}");
        }
    }
}
