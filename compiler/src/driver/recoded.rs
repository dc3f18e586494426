//! What a compile says of weights that came as codes: which kept them, which were rounded anew, and what that cost.

use std::collections::BTreeMap;

use dlx_ir::DType;
use dlx_targets::Recoded;

/// Sums over weights of one kind.
#[derive(Default)]
struct Kind {
    weights: usize,
    squares: f64,
    error: f64,
}

/// One note for each way in which weights came and are stored. `stored_as` says how a tensor came; `asked` is whether formats
/// were asked for by name.
pub(super) fn notes<'a>(
    recoded: impl Iterator<Item = &'a Recoded>,
    stored_as: impl Fn(&str) -> Option<&'a str>,
    asked: bool,
) -> Vec<String> {
    let mut kinds: BTreeMap<(Option<&str>, bool, DType), Kind> = BTreeMap::new();
    for r in recoded {
        let kind = kinds.entry((stored_as(&r.name), r.kept, r.dtype)).or_default();
        kind.weights += 1;
        kind.squares += r.squares;
        kind.error += r.error;
    }
    let note = |((came, kept, dtype), kind): (&(Option<&str>, bool, DType), &Kind)| {
        let Kind { weights, squares, error } = *kind;
        let came = came.map_or_else(String::new, |came| format!(" ({came})"));
        let lost = || format!("relative error {:.1e}", libm::sqrt(error / squares.max(f64::MIN_POSITIVE)));
        let by = if asked { ", as --quant or --keep asks" } else { "" };
        match (kept, error > 0.0) {
            // What an ONNX file holds exactly needs no word.
            (true, false) if came.is_empty() => None,
            (true, false) => {
                Some(format!("{weights} weights keep the codes and scales that they came with{came}, as {dtype}"))
            }
            (true, true) => Some(format!(
                "{weights} weights keep the codes that they came with{came}, as {dtype}, and their scales rounded to f16: {}",
                lost()
            )),
            (false, false) => Some(format!(
                "{weights} weights that came as codes{came} are stored as the same numbers in {dtype}{by}"
            )),
            (false, true) => {
                Some(format!("{weights} weights that came as codes{came} are rounded to {dtype}{by}: {}", lost()))
            }
        }
    };
    kinds.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_kind_are_counted_together() {
        let of = |name: &str, kept, dtype: &str, error| {
            let dtype = dtype.parse().unwrap();
            Recoded { name: name.into(), dtype, kept, squares: 50.0, error }
        };
        let all = [
            of("gptq.1", true, "q4g32", 0.0),
            of("gptq.2", true, "q4g32", 0.0),
            of("awq.1", true, "q4g32m", 1e-6),
            of("awq.2", true, "q4g32m", 0.0),
            of("gptq.3", false, "q8", 0.02),
            of("onnx", true, "q8", 0.0),
            of("onnx", true, "q4g32", 5e-5),
        ];
        let came = |name: &str| match name.split('.').next() {
            Some("gptq") => Some("GPTQ"),
            Some("awq") => Some("AWQ"),
            _ => None,
        };
        assert_eq!(
            notes(all.iter(), came, true),
            [
                "1 weights keep the codes that they came with, as q4g32, and their scales rounded to f16: relative error 1.0e-3",
                "2 weights keep the codes that they came with (AWQ), as q4g32m, and their scales rounded to f16: relative error 1.0e-4",
                "1 weights that came as codes (GPTQ) are rounded to q8, as --quant or --keep asks: relative error 2.0e-2",
                "2 weights keep the codes and scales that they came with (GPTQ), as q4g32",
            ]
        );
    }
}
