//! Golden vectors of graphs: a few numbers of every output on made-up inputs, recorded when the artifact is made and
//! compared when it is loaded. They tell accidents, not enemies.
//!
//! Floats are fed numbers between −1 and 1. Integers may be anything from a row number to a mask, so all of them are 1, or 0
//! where 1 is too much for an entry.

use std::collections::BTreeMap;

use dlx_ir::{DType, Data, Tensor};
use serde::{Deserialize, Serialize};

use super::error::GraphError;
use super::manifest::{Port, Signature};
use crate::selftest::Number;

/// What a self-test needs of a model.
pub(super) trait Runs {
    fn entries(&self) -> &[Signature];
    fn run(&self, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, GraphError>;
}

/// Recorded results, by entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphVectors {
    /// By name; those that cannot run on made-up inputs are left out.
    entries: BTreeMap<String, Vector>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    /// What integers and bools are.
    fill: u8,
    /// Some elements of each output.
    outputs: BTreeMap<String, Vec<Number>>,
}

/// Elements of an output that are recorded, spread over it.
const SAMPLES: usize = 32;
/// Error relative to the largest recorded number that is still right: another version may sum in another order.
const TOLERANCE: f32 = 1e-3;

impl GraphVectors {
    /// Entries that have none.
    pub fn missing<'e>(&self, entries: &'e [Signature]) -> Vec<&'e str> {
        entries.iter().map(|e| e.name.as_str()).filter(|name| !self.entries.contains_key(*name)).collect()
    }
}

/// Runs every graph once or twice and keeps what comes out.
pub(super) fn record(model: &dyn Runs) -> GraphVectors {
    let vector = |entry: &Signature| {
        let run = |fill: u8| Some(Vector { fill, outputs: outputs(model, entry, fill).ok()? });
        Some((entry.name.clone(), run(1).or_else(|| run(0))?))
    };
    GraphVectors { entries: model.entries().iter().filter_map(vector).collect() }
}

/// Runs the graphs again and compares.
///
/// # Errors
/// A result that differs, or vectors of other graphs.
pub(super) fn check(model: &dyn Runs, vectors: &GraphVectors) -> Result<(), GraphError> {
    let mismatch = || GraphError::SelfTest("the golden vectors do not belong to these graphs".into());
    for (name, vector) in &vectors.entries {
        let entry = model.entries().iter().find(|e| e.name == *name).ok_or_else(mismatch)?;
        let found = outputs(model, entry, vector.fill)?;
        if !found.iter().map(|(n, x)| (n, x.len())).eq(vector.outputs.iter().map(|(n, x)| (n, x.len()))) {
            return Err(mismatch());
        }
        for ((output, found), recorded) in found.iter().zip(vector.outputs.values()) {
            let numbers = || found.iter().zip(recorded).map(|(f, r)| (f.get(), r.get()));
            let largest = numbers().map(|(_, r)| r.abs()).filter(|r| r.is_finite()).fold(1e-6, f32::max);
            let same = |(f, r): (f32, f32)| f == r || f.is_nan() && r.is_nan() || (f - r).abs() <= TOLERANCE * largest;
            if let Some((f, r)) = numbers().find(|pair| !same(*pair)) {
                return Err(GraphError::SelfTest(format!("{name} gives {f} in {output} where {r} was recorded")));
            }
        }
    }
    Ok(())
}

/// Some elements of each output of an entry on made-up inputs.
fn outputs(model: &dyn Runs, entry: &Signature, fill: u8) -> Result<BTreeMap<String, Vec<Number>>, GraphError> {
    let input = |port: &Port| Some((port.name.clone(), made_up(port, fill)?));
    let inputs: Option<BTreeMap<_, _>> = entry.inputs.iter().map(input).collect();
    let inputs = inputs.ok_or_else(|| GraphError::Program("an input is of no plain type".into()))?;
    Ok(model.run(&inputs)?.into_iter().map(|(name, t)| (name, samples(&t))).collect())
}

fn made_up(port: &Port, fill: u8) -> Option<Tensor> {
    let dtype: DType = port.dtype.parse().ok()?;
    let n = port.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let data = match dtype {
        DType::F64 => Data::F64((0..n).map(|i| number(i).into()).collect()),
        // Halves of halves are numbers of every float type.
        DType::F32 => Data::F32((0..n).map(number).collect()),
        DType::F16 | DType::BF16 => Data::F32((0..n).map(|i| (number(i) * 64.0) as i32 as f32 / 64.0).collect()),
        DType::I32 => Data::I32(vec![fill.into(); n]),
        DType::Bool => Data::Bool(vec![fill != 0; n]),
        dtype if dtype.is_int() => Data::I64(vec![fill.into(); n]),
        _ => return None,
    };
    Some(Tensor { dtype, shape: port.shape.clone(), data })
}

fn samples(t: &Tensor) -> Vec<Number> {
    let count = t.data.len().min(SAMPLES);
    let number = |i: usize| match &t.data {
        Data::F64(x) => x[i] as f32,
        Data::F32(x) => x[i],
        Data::I32(x) => x[i] as f32,
        Data::I64(x) => x[i] as f32,
        Data::Bool(x) => f32::from(u8::from(x[i])),
    };
    (0..count).map(|s| number(s * t.data.len() / count).into()).collect()
}
