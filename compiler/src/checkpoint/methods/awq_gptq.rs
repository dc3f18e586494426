//! GPTQ and AWQ: words of integer codes across the rows, zero points packed alike, scales `[groups, N]`.
//!
//! | | `qweight` | `qzeros` |
//! |---|---|---|
//! | GPTQ | `I32 [K · bits / 32, N]`, a stream along K | `I32 [groups, N · bits / 32]`, a stream along N |
//! | AWQ | `I32 [K, N / 8]`, nibbles in an order of its own | `I32 [groups, N / 8]`, likewise |
//!
//! GPTQ stores zero points less one unless `checkpoint_format` is `gptq_v2`. Which of both layouts a tensor has is seen by
//! `N`, which the scales have too; the config must agree.

use dlx_ir::{DType, Error};

use super::{FLOATS, Loader, RESTORE, dims};
use crate::checkpoint::packed::{Codes, Groups, Layout, Numbers, Order, Part, Scales, Zeros};

const WORDS: &[DType] = &[DType::I32];

/// What the config says for all weights; nothing where it has exceptions for some.
struct Said {
    bits: Option<usize>,
    /// Columns of a group; none is a whole row.
    group: Option<Option<usize>>,
    symmetric: Option<bool>,
    ordered: Option<bool>,
}

impl Said {
    fn of(loader: &Loader<'_>) -> Result<Self, Error> {
        let config = loader.config();
        let excepted = ["dynamic", "extra_config"].iter().any(|key| {
            config.get(key).and_then(serde_json::Value::as_object).is_some_and(|exceptions| !exceptions.is_empty())
        });
        if excepted {
            return Ok(Said { bits: None, group: None, symmetric: None, ordered: None });
        }
        let one_of = |keys: [&'static str; 2]| keys.into_iter().find(|key| config.get(key).is_some());
        let group = match one_of(["group_size", "q_group_size"]) {
            Some(key) if config.get(key).and_then(serde_json::Value::as_i64) == Some(-1) => Some(None),
            Some(key) => Some(config.opt_usize(key)?),
            None => None,
        };
        let bits = one_of(["bits", "w_bit"]).map(|key| config.usize(key)).transpose()?;
        let (symmetric, ordered) = (config.opt_bool("sym")?, config.opt_bool("desc_act")?.map(|acts| !acts));
        Ok(Said { bits, group, symmetric, ordered })
    }
}

/// GPTQ, as AutoGPTQ, GPTQModel and AutoRound write it.
pub(super) fn gptq(loader: &mut Loader<'_>) -> Result<(), Error> {
    let config = loader.config();
    let key = if config.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    let second = match config.opt_str(key)? {
        None | Some("gptq") => false,
        Some("gptq_v2") => true,
        Some(other) => {
            return Err(config
                .error(key, format!("`{other}` is not read; gptq and gptq_v2 are"))
                .help("use a checkpoint in GPTQ's own format, or the unquantized one that this one was made from"));
        }
    };
    let said = Said::of(loader)?;
    for stem in loader.stems(".qweight", WORDS) {
        gptq_weight(loader, &said, &stem, second)?;
    }
    Ok(())
}

/// AWQ, as AutoAWQ, GPTQModel and AutoRound write it.
pub(super) fn awq(loader: &mut Loader<'_>) -> Result<(), Error> {
    let config = loader.config();
    if let Some(other) = config.opt_str("version")?.filter(|v| !v.eq_ignore_ascii_case("gemm")) {
        return Err(config
            .error("version", format!("`{other}` is not read; gemm is"))
            .help("use the gemm version of the checkpoint, or the unquantized one that this one was made from"));
    }
    let said = Said::of(loader)?;
    for stem in loader.stems(".qweight", WORDS) {
        awq_weight(loader, &said, &stem)?;
    }
    Ok(())
}

/// AutoRound's own name for either of both.
pub(super) fn auto_round(loader: &mut Loader<'_>) -> Result<(), Error> {
    let config = loader.config();
    match config.opt_str("packing_format")?.unwrap_or("auto_round:auto_gptq") {
        "auto_round:auto_gptq" | "auto_round:gptq" | "auto_round" | "auto_gptq" => gptq(loader),
        "auto_round:auto_awq" | "auto_round:awq" | "auto_awq" => awq(loader),
        other => Err(config
            .error("packing_format", format!("`{other}` is not read; those of auto_gptq and auto_awq are"))
            .help("use the unquantized checkpoint that this one was made from")),
    }
}

fn gptq_weight(loader: &mut Loader<'_>, said: &Said, stem: &str, second: bool) -> Result<(), Error> {
    let scales = loader.part(stem, ".scales", FLOATS, &[0, 0])?;
    let [groups, n] = dims(&scales);
    let codes = loader.part(stem, ".qweight", WORDS, &[0, 0])?;
    let [words, columns] = dims(&codes);
    if columns != n {
        return Err(layout(loader, &codes, n, columns, "AWQ", "gptq"));
    }
    let zeros = loader.part(stem, ".qzeros", WORDS, &[groups, 0])?;
    let bits = dims(&zeros)[1].saturating_mul(32) / n;
    let words_of_zeros = n.saturating_mul(bits) / 32;
    if !matches!(bits, 2 | 3 | 4 | 8) || words_of_zeros != dims(&zeros)[1] || !(words * 32).is_multiple_of(bits) {
        let message = format!("packs {n} zero points into {:?}, which is none of 2, 3, 4 and 8 bits", dims(&zeros));
        return Err(loader.refuse(&zeros, message));
    }
    let k = words * 32 / bits;
    let len = agreed(loader, said, [&codes, &scales], [k, groups], bits)?;
    let order = if loader.has(stem, ".g_idx") { Some(loader.part(stem, ".g_idx", WORDS, &[k])?) } else { None };
    let order = match order {
        Some(part) => {
            let order = loader.in_groups(&part, k, len)?;
            if order.is_some() && said.ordered == Some(true) {
                return Err(loader.contradiction(
                    "desc_act",
                    false,
                    &part,
                    "puts columns into groups in another order",
                ));
            }
            order
        }
        None => None,
    };
    let turned = Zeros::Stored { part: zeros, order: Order::Along, bits, plus: u8::from(!second), turned: true };
    check_zeros(loader, said, &turned, [n, groups], second)?;
    let grouped = match (&order, groups) {
        (Some(_), _) => format!("groups of {len} that are not in order"),
        (None, 1) => "rows".into(),
        _ => format!("groups of {len}"),
    };
    let layout = Layout {
        codes,
        order: Order::Down,
        bits,
        shape: [n, k],
        numbers: Numbers::Moved(0),
        zeros: turned,
        scales: Scales::plain(scales),
        groups: order.map_or(Groups::Blocks { rows: 1, columns: len }, Groups::Of),
        strides: [1, n],
        said: format!("GPTQ, {bits} bits in {grouped}"),
    };
    loader.add(format!("{stem}.weight"), layout)
}

fn awq_weight(loader: &mut Loader<'_>, said: &Said, stem: &str) -> Result<(), Error> {
    let scales = loader.part(stem, ".scales", FLOATS, &[0, 0])?;
    let [groups, n] = dims(&scales);
    let codes = loader.part(stem, ".qweight", WORDS, &[0, 0])?;
    let [k, columns] = dims(&codes);
    if columns.checked_mul(8) != Some(n) {
        return Err(layout(loader, &codes, n, columns, "GPTQ", "awq"));
    }
    let zeros = loader.part(stem, ".qzeros", WORDS, &[groups, columns])?;
    let len = agreed(loader, said, [&codes, &scales], [k, groups], 4)?;
    let layout = Layout {
        codes,
        order: Order::Interleaved,
        bits: 4,
        shape: [n, k],
        numbers: Numbers::Moved(0),
        zeros: Zeros::Stored { part: zeros, order: Order::Interleaved, bits: 4, plus: 0, turned: false },
        scales: Scales::plain(scales),
        groups: Groups::Blocks { rows: 1, columns: len },
        strides: [1, n],
        said: format!("AWQ, 4 bits in groups of {len}"),
    };
    loader.add(format!("{stem}.weight"), layout)
}

/// The error for words that do not lie as the config says.
fn layout(loader: &Loader<'_>, codes: &Part, n: usize, columns: usize, like: &str, says: &str) -> Error {
    let alike = if like == "AWQ" { columns.checked_mul(8) == Some(n) } else { columns == n };
    if alike {
        let message = format!("is {says}, but {} lies as that of {like} does", codes.place(loader.shards));
        return loader.config().error("quant_method", message).help(RESTORE);
    }
    loader.refuse(codes, format!("has {columns} columns, and the scales beside it {n}"))
}

/// Columns of a group: as many as scales and config say.
fn agreed(
    loader: &Loader<'_>,
    said: &Said,
    [codes, scales]: [&Part; 2],
    [k, groups]: [usize; 2],
    bits: usize,
) -> Result<usize, Error> {
    if let Some(says) = said.bits.filter(|says| *says != bits) {
        let key = if loader.config().get("bits").is_some() { "bits" } else { "w_bit" };
        return Err(loader.contradiction(key, says, codes, &format!("holds codes of {bits} bits")));
    }
    let key = if loader.config().get("group_size").is_some() { "group_size" } else { "q_group_size" };
    if let Some(says) = said.group {
        let len = says.unwrap_or(k);
        if len > 0 && !k.is_multiple_of(len) {
            let message = format!("is {len}, which does not divide the {k} columns of {}", codes.place(loader.shards));
            return Err(loader.config().error(key, message).help(RESTORE));
        }
        if len == 0 || k / len != groups {
            return Err(loader.contradiction(key, len, scales, &format!("has {groups} groups of {k} columns")));
        }
    }
    loader.group_len(scales, k, groups)
}

/// Zero points that the config calls symmetric must be so, and one must not be beyond all codes.
fn check_zeros(
    loader: &Loader<'_>,
    said: &Said,
    zeros: &Zeros,
    [n, groups]: [usize; 2],
    second: bool,
) -> Result<(), Error> {
    let Zeros::Stored { part, order, bits, plus, .. } = zeros else { return Ok(()) };
    let stored = Codes { bytes: part.bytes(loader.shards), order: *order, bits: *bits, shape: [groups, n] };
    let middle = 1u8 << (bits - 1);
    let mut row = vec![0; n];
    for group in 0..groups {
        stored.row(group, &mut row);
        if let Some(at) = row.iter().position(|z| u16::from(*z) + u16::from(*plus) >= 1 << bits) {
            let message = format!("has the zero point {} + 1 of row {at} in group {group}", row[at]);
            return Err(loader.refuse(part, message).help(
                "readers take it for 0 or for one beyond all codes: quantize again with the format gptq_v2, or use the unquantized checkpoint that this one was made from",
            ));
        }
        let off = row.iter().find(|z| z.wrapping_add(*plus) != middle);
        if let (Some(stored), Some(true)) = (off, said.symmetric) {
            let zero = stored.wrapping_add(*plus);
            let message = format!("has zero points {zero}, and sym asks for {middle}");
            let alike = row.iter().all(|other| other == stored);
            let other = if second { (stored.wrapping_add(1), "gptq") } else { (*stored, "gptq_v2") };
            let help = match other {
                (other, format) if alike && other == middle => format!(
                    "its zero points are those of {format}: set checkpoint_format to \"{format}\" in quantization_config"
                ),
                _ => RESTORE.to_owned(),
            };
            return Err(Error::new(part.place(loader.shards), message).help(help));
        }
    }
    Ok(())
}
