//! torchao: parts `_weight_qdata`, `_weight_scale` and `_weight_zero_point`, `w = (code − zero point) · scale`.
//!
//! Which class a weight is of, its bits and its blocks are said in the header of the file alone, as a JSON text under the
//! weight's name. Codes of fewer bits lie in bytes.

use std::path::Path;

use dlx_ir::{DType, Error};
use serde_json::Value;

use super::{FLOATS, Loader, RESTORE, dims};
use crate::checkpoint::Config;
use crate::checkpoint::packed::{Groups, Layout, Numbers, Order, Part, Scales, Zeros};

/// Classes that keep one integer to a byte.
pub(super) fn read(loader: &mut Loader<'_>) -> Result<(), Error> {
    let every = [DType::I8, DType::U8, DType::I32, DType::I64, DType::F8E4M3, DType::F16, DType::BF16, DType::F32];
    for stem in loader.stems("._weight_qdata", &every) {
        weight(loader, &stem)?;
    }
    Ok(())
}

fn weight(loader: &mut Loader<'_>, stem: &str) -> Result<(), Error> {
    let codes = loader.optional(stem, "._weight_qdata").expect("stems are those that have one");
    let name = format!("{stem}.weight");
    let Some(text) = loader.shards.get(codes.shard).and_then(|shard| shard.metadata(&name)) else {
        let message = format!("belongs to `{name}`, of which the header of its file does not say what it is");
        return Err(loader.refuse(&codes, message));
    };
    let said = Config::from_json(Path::new(&format!("{}: {name}", codes.place(loader.shards))), text.as_bytes())?;
    let data = said.object("_data")?;
    let data = data.as_ref().unwrap_or(&said);
    let bits = match said.str("_type")? {
        "Int8Tensor" => 8,
        "IntxUnpackedToInt8Tensor" => {
            let dtype = data.get("target_dtype").and_then(|t| t.get("_data")).and_then(Value::as_str);
            let bits = dtype.and_then(|t| t.strip_prefix("int")).and_then(|n| n.parse().ok());
            bits.filter(|bits| (1..=8).contains(bits))
                .ok_or_else(|| data.error("target_dtype", "names no integer of at most 8 bits").help(RESTORE))?
        }
        other => {
            return Err(said
                .error("_type", format!("`{other}` is not read; Int8Tensor and IntxUnpackedToInt8Tensor are"))
                .help("use the unquantized checkpoint that this one was made from"));
        }
    };
    if codes.entry.dtype != DType::I8 || codes.entry.shape.len() != 2 {
        let message = format!("is {} {:?}, not a matrix of bytes", codes.entry.dtype, codes.entry.shape);
        return Err(loader.refuse(&codes, message));
    }
    let shape = dims(&codes);
    let [rows, columns] = block(data, shape)?;
    agrees(loader, &codes, bits, columns)?;
    let (blocks, groups) = (shape[0] / rows, shape[1] / columns);
    let scales = loader.part(stem, "._weight_scale", FLOATS, &[blocks, groups])?;
    let middle = 1u8 << (bits - 1);
    let zeros = if rows == 1 && loader.has(stem, "._weight_zero_point") {
        let part = loader.part(stem, "._weight_zero_point", &[DType::I8], &[blocks, groups])?;
        Zeros::Stored { part, order: Order::Bytes, bits: 8, plus: middle, turned: false }
    } else {
        Zeros::Of(middle)
    };
    let grouped = if groups == 1 { "rows".into() } else { format!("groups of {columns}") };
    let layout = Layout {
        codes,
        order: Order::Bytes,
        bits,
        shape,
        numbers: Numbers::Moved(middle),
        zeros,
        scales: Scales::plain(scales),
        groups: Groups::Blocks { rows, columns },
        strides: [groups, 1],
        said: format!("torchao, {bits} bits in {grouped}"),
    };
    loader.add(name, layout)
}

/// Rows and columns of a block, which divide the matrix.
fn block(data: &Config, [n, k]: [usize; 2]) -> Result<[usize; 2], Error> {
    let sizes = data.get("block_size").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match sizes.iter().map(size).collect::<Option<Vec<_>>>().as_deref() {
        Some(&[rows, columns]) if n.is_multiple_of(rows) && k.is_multiple_of(columns) => Ok([rows, columns]),
        _ => Err(data.error("block_size", format!("must be two sizes that divide [{n}, {k}]")).help(RESTORE)),
    }
}

/// What the config says of all weights, if it has no exceptions, must be what the tensor is.
fn agrees(loader: &Loader<'_>, codes: &Part, bits: usize, columns: usize) -> Result<(), Error> {
    let default = loader.config().get("quant_type").and_then(|t| t.get("default")).and_then(|t| t.get("_data"));
    let inside = |key: &str| default.and_then(|d| d.get(key)).and_then(|v| v.get("_data"));
    let says = inside("weight_dtype").and_then(Value::as_str).filter(|says| *says != format!("int{bits}"));
    if let Some(says) = says {
        return Err(loader.contradiction("quant_type", says, codes, &format!("holds codes of {bits} bits")));
    }
    let group = inside("granularity").and_then(|v| v.get("group_size")).and_then(Value::as_u64);
    if let Some(says) = group.filter(|says| usize::try_from(*says) != Ok(columns)) {
        return Err(loader.contradiction("quant_type", says, codes, &format!("has blocks of {columns} columns")));
    }
    Ok(())
}
