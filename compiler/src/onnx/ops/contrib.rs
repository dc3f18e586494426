//! Other ops of ONNX Runtime's own set.

use dlx_ir::{DType, Norm, Reduce};

use super::super::call::Call;
use super::super::import::{Importer, Scope};
use super::super::value::Val;
use super::{MS, Row};

const CONTRIB: &[Row] = &[(MS, "EmbedLayerNormalization", embed_norm)];

pub(super) const ROWS: &[&[Row]] = &[CONTRIB];

/// Word, position and type embeddings, summed and normalized; the mask's lengths and the sum are further outputs.
fn embed_norm(i: &mut Importer<'_>, c: &Call<'_>, _: &Scope<'_>) -> Result<Vec<Val>, String> {
    let ids = c.arg(0)?;
    let [batch, rows] = i.b.shape(ids)?[..] else { return Err("needs ids of two dimensions".into()) };
    let positions = match c.opt(8) {
        Some(positions) => positions.clone(),
        None => i.b.ints(0..rows as i64),
    };
    let words = i.b.gather(c.arg(2)?, ids, 0)?;
    let places = i.b.gather(c.arg(3)?, &positions, 0)?;
    let mut x = i.b.add(&words, &places)?;
    if let (Some(types), Some(table)) = (c.opt(1), c.opt(4)) {
        let types = i.b.gather(table, types, 0)?;
        x = i.b.add(&x, &types)?;
    }
    let y = super::reduce::weighted(i, &x, 2, Norm::Layer, c.float_or("epsilon", 1e-12)?, c.opt(5), c.opt(6))?;
    let lengths = match c.opt(7) {
        Some(mask) => i.b.reduce(Reduce::Sum, mask, &[1], false)?,
        None => {
            let zero = i.b.number(DType::I32, 0.0)?;
            i.b.expand(&zero, &[batch])?
        }
    };
    Ok(vec![y, lengths, x])
}
