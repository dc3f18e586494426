//! compressed-tensors: integers in words or bytes, FP8, and two ways of FP4, told apart by names and element types.
//!
//! | tensors | codes | `w` |
//! |---|---|---|
//! | `weight_packed I32`, `weight_shape` | a stream along each row; zero points, if any, along N | `(code − zero point) · weight_scale` |
//! | `weight I8` | one to a byte | the same |
//! | `weight F8_E4M3` | FP8 | `code · weight_scale` |
//! | `weight_packed U8`, `weight_scale U8` | FP4, 32 a block (MXFP4) | `code · 2^(scale − 127)` |
//! | `weight_packed U8`, `weight_scale F8_E4M3` | FP4, 16 a block (NVFP4) | `code · (scale / weight_global_scale)` |

use dlx_ir::{DType, Error};

use super::{FLOATS, Grain, Loader, RESTORE, dims, float8};
use crate::checkpoint::Config;
use crate::checkpoint::packed::{self, Codes, Groups, Kind, Layout, Numbers, Order, Part, Scales, Zeros};

/// How the config says that some weights are quantized.
struct Scheme {
    bits: usize,
    float: bool,
    strategy: String,
    /// Columns of a group.
    group: Option<usize>,
    /// Rows and columns of a block.
    block: Option<[usize; 2]>,
    symmetric: bool,
}

impl Scheme {
    fn all(config: &Config) -> Result<Vec<Self>, Error> {
        let Some(groups) = config.object("config_groups")? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for key in groups.keys() {
            let group = groups.object(key)?;
            let Some(weights) = group.as_ref().map(|g| g.object("weights")).transpose()?.flatten() else { continue };
            let sizes = weights.get("block_structure").and_then(serde_json::Value::as_array);
            let size = |v: &serde_json::Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
            let sizes = sizes.and_then(|s| s.iter().map(size).collect::<Option<Vec<_>>>());
            let group = match weights.get("group_size").and_then(serde_json::Value::as_i64) {
                Some(-1) => None,
                _ => weights.opt_usize("group_size")?,
            };
            all.push(Scheme {
                bits: weights.usize("num_bits")?,
                float: weights.opt_str("type")? == Some("float"),
                strategy: weights.opt_str("strategy")?.unwrap_or("channel").to_owned(),
                group,
                block: sizes.and_then(|s| <[usize; 2]>::try_from(s).ok()),
                symmetric: weights.opt_bool("symmetric")?.unwrap_or(true),
            });
        }
        Ok(all)
    }

    /// Whether weights of it have such scales.
    fn has(&self, [n, k]: [usize; 2], scales: &[usize]) -> bool {
        match (self.strategy.as_str(), self.group, self.block) {
            ("group" | "tensor_group", Some(len), _) => len > 0 && k.is_multiple_of(len) && scales == [n, k / len],
            ("block", _, Some([rows, columns])) => scales == [n.div_ceil(rows), k.div_ceil(columns)],
            ("tensor", ..) => scales.iter().all(|d| *d == 1),
            _ => scales == [n, 1] || scales == [n],
        }
    }

    fn said(&self) -> String {
        let kind = if self.float { "floats" } else { "integers" };
        let group = self.group.map_or_else(String::new, |len| format!(" of {len} columns"));
        format!("{kind} of {} bits, one scale per {}{group}", self.bits, self.strategy)
    }
}

/// All of its formats that keep dense matrices.
pub(super) fn read(loader: &mut Loader<'_>) -> Result<(), Error> {
    let config = loader.config();
    if config.object("transform_config")?.is_some_and(|t| t.keys().next().is_some()) {
        return Err(config
            .error("transform_config", "asks for rotations beside the weights, which are not compiled")
            .help("use the unquantized checkpoint that this one was made from"));
    }
    let schemes = Scheme::all(config)?;
    for stem in loader.stems(".weight_packed", &[DType::I32]) {
        words(loader, &schemes, &stem)?;
    }
    for stem in loader.stems(".weight_packed", &[DType::U8]) {
        four_bit_floats(loader, &schemes, &stem)?;
    }
    for stem in loader.stems(".weight", &[DType::I8]) {
        let codes = loader.part(&stem, ".weight", &[DType::I8], &[0, 0])?;
        let shape = dims(&codes);
        integers(loader, &schemes, &stem, (codes, Order::Bytes, 8, shape), Numbers::Moved(128))?;
    }
    for stem in loader.stems(".weight", &[DType::F8E4M3]) {
        let codes = loader.part(&stem, ".weight", &[DType::F8E4M3], &[0, 0])?;
        let scales = loader.scales(&stem, ".weight_scale")?;
        let scheme = agreed(loader, &schemes, &codes, (8, true), dims(&codes), &scales)?;
        float8::add(loader, &stem, "compressed-tensors", codes, scales, scheme.and_then(|s| s.block))?;
    }
    Ok(())
}

fn words(loader: &mut Loader<'_>, schemes: &[Scheme], stem: &str) -> Result<(), Error> {
    let codes = loader.part(stem, ".weight_packed", &[DType::I32], &[0, 0])?;
    let [n, words] = dims(&codes);
    let sizes = loader.part(stem, ".weight_shape", &[DType::I64, DType::I32], &[2])?;
    let size = if sizes.entry.dtype == DType::I64 { 8 } else { 4 };
    let read = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    };
    let sizes_found: Option<Vec<usize>> = sizes.bytes(loader.shards).chunks(size).map(read).collect();
    let k = match sizes_found.as_deref() {
        Some(&[rows, k]) if rows == n && k > 0 && k <= words.saturating_mul(32) => k,
        _ => return Err(loader.refuse(&sizes, format!("does not say the shape of {n} rows of {words} words"))),
    };
    let fits = |bits: &usize| (1..=8).contains(bits) && (k * bits).div_ceil(32) == words;
    let Some(bits) = schemes.iter().filter(|s| !s.float).map(|s| s.bits).find(fits) else {
        let found = format!("packs {k} codes into {words} words");
        return Err(loader.contradiction("config_groups", said(schemes), &codes, &found));
    };
    integers(loader, schemes, stem, (codes, Order::Along, bits, [n, k]), Numbers::Moved(0))
}

/// Integers with scales, and perhaps zero points and an order of columns.
fn integers(
    loader: &mut Loader<'_>,
    schemes: &[Scheme],
    stem: &str,
    (codes, order, bits, shape): (Part, Order, usize, [usize; 2]),
    numbers: Numbers,
) -> Result<(), Error> {
    let scales = loader.scales(stem, ".weight_scale")?;
    let scheme = agreed(loader, schemes, &codes, (bits, false), shape, &scales)?;
    let Grain { mut groups, mut strides, said } = loader.grain(&scales, shape, scheme.and_then(|s| s.block))?;
    let middle = 1u8 << (bits - 1);
    let per_row = strides[0].max(1);
    let mut zeros = Zeros::Of(middle);
    if let Some((_, entry)) = loader.tensors.get(&format!("{stem}.weight_zero_point")) {
        let stored = if entry.dtype == DType::I32 {
            let shape = [(shape[0] * bits).div_ceil(32), per_row];
            let part = loader.part(stem, ".weight_zero_point", &[DType::I32], &shape)?;
            (part, Order::Down, bits, 0, true)
        } else {
            let shape = scales.entry.shape.clone();
            let part = loader.part(stem, ".weight_zero_point", &[DType::I8], &shape)?;
            (part, Order::Bytes, 8, middle, false)
        };
        let one = strides == [0, 0];
        if !one && !matches!(groups, Groups::Blocks { rows: 1, .. }) {
            return Err(loader.refuse(&stored.0, "has zero points of blocks of several rows, which are not read"));
        }
        zeros = checked_zeros(loader, stored, [if one { 1 } else { shape[0] }, per_row], scheme, middle)?;
    }
    let mut said = format!("compressed-tensors, {bits} bits in {said}");
    if loader.has(stem, ".weight_g_idx") {
        let part = loader.part(stem, ".weight_g_idx", &[DType::I32], &shape[1..])?;
        if let (Some(of), Groups::Blocks { rows: 1, columns }) = (order_of(loader, &part, shape[1], per_row)?, &groups)
        {
            said = format!("compressed-tensors, {bits} bits in groups of {columns} that are not in order");
            (groups, strides) = (Groups::Of(of), [per_row, 1]);
        }
    }
    let scales = Scales::plain(scales);
    let layout = Layout { codes, order, bits, shape, numbers, zeros, scales, groups, strides, said };
    loader.add(format!("{stem}.weight"), layout)
}

fn order_of(loader: &Loader<'_>, part: &Part, k: usize, groups: usize) -> Result<Option<Vec<u32>>, Error> {
    let len = loader.group_len(part, k, groups)?;
    loader.in_groups(part, k, len)
}

/// Zero points, which must be the middle of the codes where the config says so.
fn checked_zeros(
    loader: &Loader<'_>,
    (part, order, bits, plus, turned): (Part, Order, usize, u8, bool),
    [n, groups]: [usize; 2],
    scheme: Option<&Scheme>,
    middle: u8,
) -> Result<Zeros, Error> {
    if scheme.is_some_and(|s| s.symmetric) {
        let shape = if turned { [groups, n] } else { [n, groups] };
        let stored = Codes { bytes: part.bytes(loader.shards), order, bits, shape };
        let mut row = vec![0; shape[1]];
        for i in 0..shape[0] {
            stored.row(i, &mut row);
            if row.iter().any(|zero| zero.wrapping_add(plus) != middle) {
                let found = "has zero points that are not those of symmetric codes";
                return Err(loader.contradiction("config_groups", "symmetric", &part, found));
            }
        }
        return Ok(Zeros::Of(middle));
    }
    // One for all, as there is one scale for all.
    if [n, groups] == [1, 1] {
        let stored = Codes { bytes: part.bytes(loader.shards), order, bits, shape: [1, 1] };
        return Ok(Zeros::Of(stored.get(0, 0).wrapping_add(plus)));
    }
    Ok(Zeros::Stored { part, order, bits, plus, turned })
}

fn four_bit_floats(loader: &mut Loader<'_>, schemes: &[Scheme], stem: &str) -> Result<(), Error> {
    let codes = loader.part(stem, ".weight_packed", &[DType::U8], &[0, 0])?;
    let [n, bytes] = dims(&codes);
    let k = bytes.saturating_mul(2);
    let global = loader.has(stem, ".weight_global_scale");
    let (dtypes, len): (&[DType], _) = if global { (&[DType::F8E4M3], 16) } else { (&[DType::U8, DType::F8E8M0], 32) };
    if !k.is_multiple_of(len) {
        return Err(loader.refuse(&codes, format!("has rows of {k}, which blocks of {len} do not divide")));
    }
    let scales = loader.part(stem, ".weight_scale", dtypes, &[n, k / len])?;
    agreed(loader, schemes, &codes, (4, true), [n, k], &scales)?;
    let (kind, said) = if global {
        let part = Scales::plain(loader.part(stem, ".weight_global_scale", FLOATS, &[1])?);
        let by = part.get(loader.shards, 0);
        if !by.is_finite() || by == 0.0 {
            return Err(loader.refuse(&part.part, format!("is {by}, and scales are divided by it")));
        }
        (Kind::Over(by), "NVFP4")
    } else {
        (Kind::Number, "MXFP4")
    };
    let table = packed::float8(DType::F4E2M1)[..16].to_vec();
    let layout = Layout {
        codes,
        order: Order::LowFirst,
        bits: 4,
        shape: [n, k],
        // All of them are halves.
        numbers: Numbers::Table(table, Some(0.5)),
        zeros: Zeros::Of(0),
        scales: Scales { part: scales, kind, divisor: 1.0 },
        groups: Groups::Blocks { rows: 1, columns: len },
        strides: [k / len, 1],
        said: format!("compressed-tensors, {said}"),
    };
    loader.add(format!("{stem}.weight"), layout)
}

/// The scheme of the config that a weight is of.
fn agreed<'s>(
    loader: &Loader<'_>,
    schemes: &'s [Scheme],
    codes: &Part,
    (bits, float): (usize, bool),
    shape: [usize; 2],
    scales: &Part,
) -> Result<Option<&'s Scheme>, Error> {
    let found = schemes.iter().find(|s| (s.bits, s.float) == (bits, float) && s.has(shape, &scales.entry.shape));
    if found.is_some() {
        return Ok(found);
    }
    if let Some(len) = schemes.iter().filter_map(|s| s.group).find(|len| !shape[1].is_multiple_of((*len).max(1))) {
        let message = format!(
            "has groups of {len}, which do not divide the {} columns of {}",
            shape[1],
            codes.place(loader.shards)
        );
        return Err(loader.config().error("config_groups", message).help(RESTORE));
    }
    let kind = if float { "floats" } else { "integers" };
    let found = format!("holds {kind} of {bits} bits, {shape:?}, with {:?} scales", scales.entry.shape);
    Err(loader.contradiction("config_groups", said(schemes), codes, &found))
}

fn said(schemes: &[Scheme]) -> String {
    if schemes.is_empty() { "empty".into() } else { schemes.iter().map(Scheme::said).collect::<Vec<_>>().join("; ") }
}
