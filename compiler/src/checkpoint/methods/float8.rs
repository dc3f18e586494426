//! FP8: `weight F8_E4M3 [N, K]` times `weight_scale_inv` (a scale, whatever its name says) per block of `weight_block_size`,
//! or times `weight_scale`, one for all or one per row.

use dlx_ir::{DType, Error};

use super::{FLOATS, Grain, Loader, RESTORE, dims};
use crate::checkpoint::packed::{Layout, Numbers, Order, Part, Scales, Zeros, float8};

/// FP8 as transformers writes it.
pub(super) fn read(loader: &mut Loader<'_>) -> Result<(), Error> {
    let config = loader.config();
    let block = match config.get("weight_block_size") {
        None => None,
        Some(value) => {
            let sizes = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let size = |v: &serde_json::Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
            match sizes.iter().map(size).collect::<Option<Vec<_>>>().as_deref() {
                Some(&[rows, columns]) => Some([rows, columns]),
                _ => return Err(config.error("weight_block_size", "must be two sizes").help(RESTORE)),
            }
        }
    };
    for stem in loader.stems(".weight", &[DType::F8E4M3]) {
        let codes = loader.part(&stem, ".weight", &[DType::F8E4M3], &[0, 0])?;
        let inverse = loader.has(&stem, ".weight_scale_inv");
        let ending = if inverse { ".weight_scale_inv" } else { ".weight_scale" };
        let scales = loader.scales(&stem, ending)?;
        if inverse && block.is_none() && scales.entry.shape.iter().any(|d| *d != 1) {
            let message =
                format!("is missing, and {} has a scale for each of some blocks", scales.place(loader.shards));
            return Err(config.error("weight_block_size", message).help(RESTORE));
        }
        add(loader, &stem, "FP8", codes, scales, block.filter(|_| inverse))?;
    }
    Ok(())
}

/// Adds a weight of FP8 codes.
pub(super) fn add(
    loader: &mut Loader<'_>,
    stem: &str,
    method: &str,
    codes: Part,
    scales: Part,
    block: Option<[usize; 2]>,
) -> Result<(), Error> {
    let shape = dims(&codes);
    let Grain { groups, strides, said } = loader.grain(&scales, shape, block)?;
    let layout = Layout {
        codes,
        order: Order::Bytes,
        bits: 8,
        shape,
        numbers: Numbers::Table(float8(DType::F8E4M3).to_vec(), None),
        zeros: Zeros::Of(0),
        scales: Scales::plain(scales),
        groups,
        strides,
        said: format!("{method}, e4m3 with {said}"),
    };
    loader.add(format!("{stem}.weight"), layout)
}

impl Loader<'_> {
    /// Takes scales of floats, however many there are.
    pub(super) fn scales(&mut self, stem: &str, ending: &str) -> Result<Part, Error> {
        let shape = self.tensors.get(&format!("{stem}{ending}")).map_or(0, |(_, entry)| entry.shape.len());
        self.part(stem, ending, FLOATS, &vec![0; shape])
    }
}
