//! Where a check's weights come from: a model, or a seed where there is none.

use std::ops::Range;

use dlx_ir::{Contents, DType, Error, Grid, Module, QuantFormat, Source, Type, Weight};
use dlx_targets::{CodeRows, WeightSource};

use super::probe::normal;
use crate::synth::numbers::{hash, mix};

/// Weights of a module as the evaluator wants them: whole.
pub struct Whole<'a> {
    /// The module, whose types say how much there is of each.
    pub module: &'a Module,
    /// Where rows come from.
    pub rows: &'a dyn WeightSource,
}

impl Source for Whole<'_> {
    fn read(&self, name: &str) -> Result<Contents<'_>, String> {
        let id = self.module.weight(name).ok_or_else(|| format!("there is no @{name}"))?;
        let ty = &self.module.weights[id].ty;
        let (rows, columns) = rows_of(ty).ok_or_else(|| format!("@{name} has no static size"))?;
        let said = |e: Error| e.to_string();
        match ty.dtype {
            DType::Quant(format) => {
                let groups = rows * format.groups(columns);
                let mut codes = vec![0; rows * columns];
                let mut scales = vec![0.0; groups];
                let mut mins = vec![0.0; if format.has_min() { groups } else { 0 }];
                let out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
                self.rows.read_codes(name, format, 0..rows, out).map_err(said)?;
                Ok(Contents::Quantized { codes: codes.into(), scales: scales.into(), mins: mins.into() })
            }
            DType::I32 => {
                let mut bytes = vec![0; rows * columns * 4];
                self.rows.read_bytes(name, 0..rows, &mut bytes).map_err(said)?;
                Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect::<Vec<i32>>().into())
            }
            _ => {
                let mut out = vec![0.0; rows * columns];
                self.rows.read_rows(name, 0..rows, &mut out).map_err(said)?;
                Ok(out.into())
            }
        }
    }
}

/// Rows of a weight, and elements of each.
pub(super) fn rows_of(ty: &Type) -> Option<(usize, usize)> {
    let shape = ty.shape()?;
    let rows = shape.first().copied().unwrap_or(1);
    Some((rows, shape.iter().skip(1).product()))
}

/// Seeded numbers for the source weights of a module of which nobody has the checkpoint: vectors near 1, and rows of
/// matrices that neither grow nor shrink what they are multiplied by.
pub struct Seeded<'a> {
    /// The module, whose types say how much there is of each.
    pub module: &'a Module,
    /// The seed.
    pub seed: u64,
}

impl Seeded<'_> {
    fn weight(&self, name: &str) -> Result<&Weight, Error> {
        let id = self.module.weight(name).ok_or_else(|| Error::new(name, "is no weight of the module"))?;
        Ok(&self.module.weights[id])
    }

    fn bits(&self, name: &str, index: usize) -> u64 {
        mix(mix(self.seed ^ hash(name)).wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

impl WeightSource for Seeded<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let weight = self.weight(name)?;
        let vector = weight.ty.dims.len() < 2;
        let width = out.len() / rows.len().max(1);
        let scale = if vector { 0.1 } else { 1.0 / libm::sqrtf(width.max(1) as f32) };
        for (i, to) in out.iter_mut().enumerate() {
            let n = normal(self.bits(name, rows.start * width + i)) * scale;
            *to = weight.ty.dtype.round(if vector { 1.0 + n } else { n });
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let dtype = self.weight(name)?.ty.dtype;
        let size = dtype.size().filter(|_| dtype.is_int() || dtype == DType::Bool);
        let size = size.ok_or_else(|| Error::new(name, format!("no bytes of {dtype} are made up")))?;
        let width = out.len() / size / rows.len().max(1);
        for (i, to) in out.chunks_exact_mut(size).enumerate() {
            let n = self.bits(name, rows.start * width + i) % 2;
            to.copy_from_slice(&n.to_le_bytes()[..size]);
        }
        Ok(())
    }

    fn read_codes(&self, name: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        let width = out.codes.len() / rows.len().max(1);
        let codes = if format.bits == 4 { 15 } else { 255 };
        for (i, code) in out.codes.iter_mut().enumerate() {
            *code = 1 + (self.bits(name, rows.start * width + i) % codes) as u8;
        }
        // Of about what `read_rows` makes. Numbers of codebooks are as large as those of 8 bits.
        let codes = if format.grid == Grid::Table { 255 } else { codes };
        let scale = 4.0 / f32::from(u8::try_from(codes).unwrap_or(u8::MAX)) / libm::sqrtf(width.max(1) as f32);
        out.scales.fill(half::f16::from_f32(scale).to_f32());
        out.mins.fill(half::f16::from_f32(-scale * codes as f32 / 2.0).to_f32());
        Ok(())
    }

    fn release_rows(&self, _: &str, _: Range<usize>) {}
}
