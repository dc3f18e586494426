//! How the weights and products of an export are stored: one row per profile.

use std::collections::BTreeSet;

use dlx_ir::{Error, Grid, Module, Op, QuantFormat, WeightId};

use crate::options::QuantSpec;

/// How a matrix is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weights {
    /// f32.
    F32,
    /// f16, made f32 where it is read.
    F16,
    /// int8, a scale per output.
    Channels,
    /// int4 in blocks whose scales are small multiples of the output's (LPBQ).
    Blocks(usize),
    /// `com.microsoft` `MatMulNBits`: bits, features that share a scale.
    NBits(u8, usize),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Name in `--profile`.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// How matrices are stored.
    pub weights: Weights,
    /// The oldest HTP generation that takes it; 0 where none is meant.
    pub least: u32,
    /// Whether what goes into products and comes out of them has 16-bit codes, whose ranges are calibrated.
    pub codes: bool,
}

impl Profile {
    /// Bytes that the products of a module take, about.
    pub fn bytes(&self, module: &Module) -> u64 {
        let products = module.graphs.iter().flat_map(|g| &g.nodes).filter(|n| matches!(n.op, Op::Linear { .. }));
        let weights: BTreeSet<WeightId> = products.filter_map(|n| n.inputs.get(1)?.weight()).collect();
        let bits = match self.weights {
            Weights::F32 => 32.0,
            Weights::F16 => 16.0,
            Weights::Channels => 8.0,
            Weights::Blocks(block) => 4.0 + 12.0 / block as f64,
            Weights::NBits(bits, block) => f64::from(bits) + 32.0 / block as f64,
        };
        let elements: usize = weights.iter().filter_map(|w| module.weights[*w].ty.elements()).sum();
        (elements as f64 * bits / 8.0) as u64
    }
}

/// Profiles of the target `qnn`; the first one is the default.
pub const QNN: &[Profile] = &[
    Profile {
        name: "w8a16",
        doc: "int8 weights with a scale per output, 16-bit activations around products; from v69 on",
        weights: Weights::Channels,
        least: 69,
        codes: true,
    },
    Profile {
        name: "w4a16",
        doc: "int4 weights in blocks of 32 (LPBQ), 16-bit activations around products; from v69 on",
        weights: Weights::Blocks(32),
        least: 69,
        codes: true,
    },
    Profile {
        name: "mnb4",
        doc: "int4 weights in blocks of 32 as MatMulNBits, computed in fp16; needs no calibration",
        weights: Weights::NBits(4, 32),
        least: 69,
        codes: false,
    },
    Profile {
        name: "mnb8",
        doc: "int8 weights in blocks of 32 as MatMulNBits, computed in fp16; needs no calibration",
        weights: Weights::NBits(8, 32),
        least: 69,
        codes: false,
    },
    Profile { name: "f16", doc: "f16 weights, computed in fp16", weights: Weights::F16, least: 69, codes: false },
];

/// The profile of that name for the target `qnn`.
///
/// # Errors
/// There is none.
pub fn qnn(name: Option<&str>) -> Result<Profile, Error> {
    let Some(name) = name else { return Ok(QNN[0]) };
    QNN.iter().find(|p| p.name == name).copied().ok_or_else(|| {
        let known: Vec<_> = QNN.iter().map(|p| p.name).collect();
        Error::new("--profile", format!("`{name}` is no profile of the target qnn"))
            .help(format!("use one of {}", known.join(", ")))
    })
}

/// The profile of the target `onnx` for a format of weights.
///
/// # Errors
/// A format that no ONNX file holds.
pub fn onnx(quant: QuantSpec) -> Result<Profile, Error> {
    let bits = |bits, group: Option<u32>| Weights::NBits(bits, group.map_or(32, |g| g as usize));
    let (name, weights) = match quant {
        QuantSpec::None => ("f32", Weights::F32),
        QuantSpec::F16 => ("f16", Weights::F16),
        QuantSpec::Quant(QuantFormat { bits: 4, group, grid: Grid::Symmetric }) => ("int4", bits(4, group)),
        QuantSpec::Quant(QuantFormat { bits: 8, group, grid: Grid::Symmetric }) => ("int8", bits(8, group)),
        other => {
            return Err(Error::new("--quant", format!("the target onnx has no weights of {other}"))
                .help("use none, f16, int8 or int4, with a group if wanted"));
        }
    };
    Ok(Profile { name, doc: "plain ONNX", weights, least: 0, codes: false })
}
