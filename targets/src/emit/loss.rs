//! What weights that came as codes lose on their way into an artifact: sums of squares, of the numbers and of the differences.
//!
//! Invariant: sums are of f64 and in the order of the elements, so they are the same on any machine.

use dlx_ir::quant::dequantize_row;
use dlx_ir::{DType, QuantFormat};
use half::f16;

/// What became of a weight that came as codes.
#[derive(Clone, PartialEq, Debug)]
pub struct Recoded {
    /// The tensor, the first if there are several.
    pub name: String,
    /// Element type that it is stored in.
    pub dtype: DType,
    /// Whether the codes are those that it came with; its scales and minima may be rounded.
    pub kept: bool,
    /// Sum of the squares of the numbers that it came as.
    pub squares: f64,
    /// Sum of the squares of what the stored numbers differ from those by.
    pub error: f64,
}

/// Sums of squares over a chunk: of numbers, and of what they differ by once stored.
#[derive(Clone, Copy, Default)]
pub(super) struct Loss {
    pub(super) squares: f64,
    pub(super) error: f64,
}

impl Loss {
    pub(super) fn of(numbers: &[f32], stored: &[f32]) -> Self {
        let square = |v: f32| f64::from(v) * f64::from(v);
        Loss {
            squares: numbers.iter().map(|v| square(*v)).sum(),
            error: numbers.iter().zip(stored).map(|(v, s)| square(v - s)).sum(),
        }
    }

    pub(super) fn plus(self, other: Loss) -> Loss {
        Loss { squares: self.squares + other.squares, error: self.error + other.error }
    }
}

/// What rows of `k` codes lose when their scales and minima are rounded.
pub(super) fn lost(format: QuantFormat, codes: &[u8], k: usize, wide: [&[f32]; 2], narrow: [&[f16]; 2]) -> Loss {
    let (groups, [scales, mins]) = (format.groups(k), narrow.map(|x| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>()));
    let exact = scales == wide[0] && mins == wide[1];
    let (mut came, mut stored) = (vec![0.0; k], vec![0.0; k]);
    let row = |(i, codes): (usize, &[u8])| {
        // There are no minima of symmetric formats.
        let [scale, min] = [groups, if format.has_min() { groups } else { 0 }].map(|n| i * n..(i + 1) * n);
        dequantize_row(format, codes, &wide[0][scale.clone()], &wide[1][min.clone()], &mut came);
        if exact {
            return Loss::of(&came, &came);
        }
        dequantize_row(format, codes, &scales[scale], &mins[min], &mut stored);
        Loss::of(&came, &stored)
    };
    codes.chunks(k).enumerate().map(row).fold(Loss::default(), Loss::plus)
}
