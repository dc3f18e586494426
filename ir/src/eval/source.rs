//! Where the evaluator's source weights come from.
//!
//! A source delivers what it holds, be it numbers or codes; whether that is what the module says is checked here.

use super::data::{Data, Tensor};
use crate::module::Weight;
use crate::quant::dequantize_row;
use crate::types::{DType, QuantFormat};
use std::borrow::Cow;

/// What a source holds of a tensor, in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub enum Contents<'s> {
    /// Numbers of a float type.
    F32(Cow<'s, [f32]>),
    /// Integers.
    I32(Cow<'s, [i32]>),
    /// Codes of a quantized format, as [`quant`](crate::quant) stores them: unsigned, one to a byte. Scales and minima are
    /// those of the source, which packing rounds to f16.
    Quantized {
        /// One code per element.
        codes: Cow<'s, [u8]>,
        /// One scale per group of a row.
        scales: Cow<'s, [f32]>,
        /// One minimum per group of a row; none for symmetric formats.
        mins: Cow<'s, [f32]>,
    },
}

impl From<Vec<f32>> for Contents<'_> {
    fn from(x: Vec<f32>) -> Self {
        Contents::F32(x.into())
    }
}

impl From<Vec<i32>> for Contents<'_> {
    fn from(x: Vec<i32>) -> Self {
        Contents::I32(x.into())
    }
}

/// Gives the source tensors of a module. A function from a name to floats, to integers or to [`Contents`] is one:
///
/// ```
/// # let module = dlx_ir::parse("module @m { weight @ones: f32[2] }").unwrap();
/// let ones = |_: &str| Ok(vec![1.0f32; 2]);
/// let mut evaluator = dlx_ir::Evaluator::new(&module, &ones, 1);
/// # evaluator.weight(module.weight("ones").unwrap()).unwrap();
/// ```
pub trait Source {
    /// The tensor of that name.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    fn read(&self, name: &str) -> Result<Contents<'_>, String>;
}

impl<F, C> Source for F
where
    F: Fn(&str) -> Result<C, String>,
    C: Into<Contents<'static>>,
{
    fn read(&self, name: &str) -> Result<Contents<'_>, String> {
        self(name).map(Into::into)
    }
}

/// A source weight of static shape as a tensor.
pub(super) fn tensor(source: &dyn Source, weight: &Weight, shape: Vec<usize>) -> Result<Tensor, String> {
    let (name, ty) = (&weight.name, &weight.ty);
    let len = ty.elements();
    let counted = |found: usize| {
        if Some(found) == len { Ok(()) } else { Err(format!("@{name} has {found} elements, not {ty}")) }
    };
    let data = match (source.read(name)?, ty.dtype) {
        (Contents::F32(x), DType::F32 | DType::F16 | DType::BF16) => {
            counted(x.len())?;
            Data::F32(x.into_owned())
        }
        (Contents::I32(x), DType::I32) => {
            counted(x.len())?;
            Data::I32(x.into_owned())
        }
        (Contents::Quantized { codes, scales, mins }, DType::Quant(format)) => {
            counted(codes.len())?;
            let columns = shape.last().copied().unwrap_or(1).max(1);
            let numbers = dequantized(format, columns, &codes, &scales, &mins);
            Data::F32(numbers.map_err(|e| format!("@{name}: {e}"))?)
        }
        (found, _) => {
            let found = match found {
                Contents::F32(_) => "floats",
                Contents::I32(_) => "integers",
                Contents::Quantized { .. } => "codes",
            };
            return Err(format!("@{name} holds {found}, not {ty}"));
        }
    };
    Ok(Tensor { dtype: ty.dtype, shape, data })
}

/// The numbers that rows of codes stand for.
fn dequantized(
    format: QuantFormat,
    columns: usize,
    codes: &[u8],
    scales: &[f32],
    mins: &[f32],
) -> Result<Vec<f32>, String> {
    let groups = format.groups(columns);
    let tables = codes.len() / columns * groups;
    let wanted = if format.has_min() { tables } else { 0 };
    if scales.len() != tables || mins.len() != wanted {
        let found = (scales.len(), mins.len());
        return Err(format!("{} scales and {} minima, where {format} has {tables} and {wanted}", found.0, found.1));
    }
    let mut out = vec![0.0; codes.len()];
    for (i, (out, codes)) in out.chunks_mut(columns).zip(codes.chunks(columns)).enumerate() {
        let row = i * groups..(i + 1) * groups;
        let mins = mins.get(row.clone()).unwrap_or_default();
        dequantize_row(format, codes, &scales[row], mins, out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Evaluator;
    use crate::parse;
    use crate::quant::{QuantizedRow, quantize_row};

    fn read(ty: &str, source: &dyn Source) -> Result<Data, String> {
        let module = parse(&format!("module @m {{ weight @w: {ty} }}")).unwrap();
        let id = module.weight("w").unwrap();
        Evaluator::new(&module, source, 1).weight(id).map(|t| t.data.clone())
    }

    /// A source that lends what it holds.
    struct Lender(Vec<i32>);

    impl Source for Lender {
        fn read(&self, _: &str) -> Result<Contents<'_>, String> {
            Ok(Contents::I32(self.0.as_slice().into()))
        }
    }

    #[test]
    fn a_source_holds_floats_or_integers() {
        let floats = |_: &str| Ok(vec![1.0f32, 0.5]);
        assert_eq!(read("bf16[2]", &floats), Ok(Data::F32(vec![1.0, 0.5])));
        assert_eq!(read("i32[2]", &floats), Err("@w holds floats, not i32[2]".into()));
        assert_eq!(read("f32[3]", &floats), Err("@w has 2 elements, not f32[3]".into()));
        let integers = Lender(vec![7, -7]);
        assert_eq!(read("i32[1, 2]", &integers), Ok(Data::I32(vec![7, -7])));
        assert_eq!(read("f32[2]", &integers), Err("@w holds integers, not f32[2]".into()));
        let nothing = |name: &str| Err::<Vec<f32>, _>(format!("there is no {name}"));
        assert_eq!(read("f32[2]", &nothing), Err("there is no w".into()));
    }

    #[test]
    fn scales_and_minima_are_as_exact_as_the_source() {
        let contents =
            Contents::Quantized { codes: vec![3, 0].into(), scales: vec![0.1].into(), mins: vec![1e-7].into() };
        let source = |_: &str| Ok(contents.clone());
        assert_eq!(read("q4g32m[1, 2]", &source), Ok(Data::F32(vec![0.1f32.mul_add(3.0, 1e-7), 1e-7])));
    }

    #[test]
    fn codes_become_what_they_stand_for() {
        for name in ["q8", "q8g32m", "q4g32", "q4g32m"] {
            let format: QuantFormat = name.parse().unwrap();
            let (rows, columns) = (3, 40);
            let quantized = |r: usize| {
                let row: Vec<f32> = (0..columns).map(|i| ((i * 7 + r * 3) % 11) as f32 - 4.0).collect();
                let mut q = QuantizedRow::zeroed(format, columns);
                assert!(quantize_row(format, &row, &mut q));
                q
            };
            let all: Vec<QuantizedRow> = (0..rows).map(quantized).collect();
            let wide = |x: &[half::f16]| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
            let mins = |q: &QuantizedRow| if format.has_min() { wide(&q.mins) } else { vec![] };
            let contents = Contents::Quantized {
                codes: all.iter().flat_map(|q| q.codes.clone()).collect(),
                scales: all.iter().flat_map(|q| wide(&q.scales)).collect(),
                mins: all.iter().flat_map(mins).collect(),
            };
            let source = |_: &str| Ok(contents.clone());
            let numbers = all.iter().flat_map(|q| q.dequantize(format)).collect();
            assert_eq!(read(&format!("{name}[3, 40]"), &source), Ok(Data::F32(numbers)), "{name}");
            assert!(read("f32[3, 40]", &source).unwrap_err().contains("holds codes"));
            assert!(read(&format!("{name}[3, 41]"), &source).unwrap_err().contains("120 elements"));
            let error = read("q8g128[3, 40]", &source).err();
            let other = (format.groups(columns), format.has_min()) != (1, false);
            assert_eq!(error.is_some_and(|e| e.contains("where q8g128 has 3 and 0")), other, "{name}");
        }
    }
}
