//! Pads that are known only when the model runs, where the file declares the padded shape.

use dlx_ir::{Binary, Compare, DType};

use super::super::call::Call;
use super::super::import::Importer;
use super::super::value::Val;

/// Gathers each of `axes` from where its pads say, to the sizes of `shape`.
pub(super) fn at_run_time(i: &mut Importer<'_>, c: &Call<'_>, axes: &[usize], shape: &[usize]) -> Result<Val, String> {
    let mut x = c.arg(0)?.clone();
    let have = i.b.shape(&x)?;
    if have.len() != shape.len() || have.contains(&0) {
        return Err(format!("{have:?} is declared to become {shape:?}"));
    }
    let fill = match c.opt(2) {
        Some(value) => i.b.reshape(value, &[])?,
        None => i.b.like(&x, 0.0)?,
    };
    let pads = i.b.cast(c.arg(1)?, DType::I64)?;
    let mode = c.text_or("mode", "constant")?;
    for (n, at) in axes.iter().copied().enumerate() {
        let size = have[at] as i64;
        let before = i.b.slice(&pads, 0, n, n + 1)?;
        let place = i.b.ints(0..shape[at] as i64);
        let place = i.b.sub(&place, &before)?;
        let (zero, last) = (i.b.like(&place, 0.0)?, i.b.like(&place, (size - 1) as f64)?);
        let near = i.b.binary(Binary::Max, &place, &zero)?;
        let near = i.b.binary(Binary::Min, &near, &last)?;
        let from = match mode.as_str() {
            "constant" | "edge" => near.clone(),
            "wrap" => modulo(i, &place, size)?,
            "reflect" => {
                // There and back again, the ends once.
                let period = (2 * (size - 1)).max(1);
                let there = modulo(i, &place, period)?;
                let whole = i.b.like(&there, period as f64)?;
                let back = i.b.sub(&whole, &there)?;
                let inside = i.b.compare(Compare::Le, &there, &last)?;
                i.b.select(&inside, &there, &back)?
            }
            other => return Err(format!("mode `{other}` is not supported")),
        };
        x = i.b.gather(&x, &from, at)?;
        if mode == "constant" {
            let inside = i.b.compare(Compare::Eq, &place, &near)?;
            let mut dims = vec![1; shape.len()];
            dims[at] = shape[at];
            let inside = i.b.reshape(&inside, &dims)?;
            x = i.b.select(&inside, &x, &fill)?;
        }
    }
    Ok(x)
}

fn modulo(i: &mut Importer<'_>, x: &Val, n: i64) -> Result<Val, String> {
    let n = i.b.like(x, n as f64)?;
    i.b.binary(Binary::Mod, x, &n)
}
