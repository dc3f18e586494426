//! Literal weights: a few numbers that stand in the program itself.
//!
//! Invariant: a literal that [`Data::check`] accepts prints to text that parses back to the same bits. Larger data
//! belongs in a checkpoint, which is read a few rows at a time; a program is read whole.

use crate::attr::float_text;
use crate::eval::Data;
use crate::lex::list_text;
use crate::types::{DType, Type};

/// Most elements of a literal weight: a mask or a table of angles for a thousand positions.
pub const MAX_LITERAL: usize = 1 << 20;

impl Data {
    /// Whether this is what a literal weight of a type may hold.
    ///
    /// # Errors
    /// What does not fit: the kind of type, the number of elements, or the first number that the type does not hold.
    pub fn check(&self, ty: &Type) -> Result<(), String> {
        if self.len() > MAX_LITERAL {
            let help = "leave it in the checkpoint, as a source weight";
            return Err(format!("a literal has at most {MAX_LITERAL} elements, not {}; {help}", self.len()));
        }
        if !self.holds(ty.dtype) || ty.layout.is_some() || matches!(ty.dtype, DType::Quant(_)) {
            return Err("a literal has plain elements, such as f32, bf16, i32 or bool".into());
        }
        if ty.elements() != Some(self.len()) {
            return Err(format!("{} elements do not fill {ty}", self.len()));
        }
        match self {
            Data::F32(x) => match x.iter().find(|v| ty.dtype.round(**v) != **v) {
                None => Ok(()),
                Some(v) if v.is_nan() => Err("a literal cannot be NaN".into()),
                Some(&v) => {
                    let near = float_text(ty.dtype.round(v));
                    Err(format!("{} is no {} number; the nearest is {near}", float_text(v), ty.dtype))
                }
            },
            Data::F64(x) if x.iter().any(|v| v.is_nan()) => Err("a literal cannot be NaN".into()),
            Data::I64(x) => match x.iter().find(|v| ty.dtype.wrap(**v) != **v) {
                None => Ok(()),
                Some(v) => Err(format!("{v} is no {} number", ty.dtype)),
            },
            Data::F64(_) | Data::I32(_) | Data::Bool(_) => Ok(()),
        }
    }

    /// The literal of these words for elements of a type.
    pub(crate) fn parse(words: &[&str], dtype: DType) -> Result<Self, String> {
        fn numbers<T: std::str::FromStr>(words: &[&str], dtype: DType) -> Result<Vec<T>, String> {
            let number = |word: &&str| word.parse().map_err(|_| format!("`{word}` is not a number of type {dtype}"));
            words.iter().map(number).collect()
        }
        match dtype {
            DType::F64 => numbers(words, dtype).map(Data::F64),
            dtype if dtype.is_float() || dtype.is_small_float() => {
                let values: Vec<f32> = numbers(words, dtype)?;
                let large = words.iter().zip(&values).find(|(word, v)| v.is_infinite() && !word.contains("inf"));
                match large {
                    None => Ok(Data::F32(values)),
                    Some((word, _)) => Err(format!("`{word}` is no {dtype} number")),
                }
            }
            DType::I32 => numbers(words, dtype).map(Data::I32),
            DType::Bool => numbers(words, dtype).map(Data::Bool),
            dtype if dtype.is_int() => numbers(words, dtype).map(Data::I64),
            _ => Err("a literal has plain elements, such as f32, bf16, i32 or bool".into()),
        }
    }

    /// The canonical text of a literal.
    pub(crate) fn text(&self) -> String {
        match self {
            Data::F64(x) => list_text(x.iter().map(|v| format!("{v:e}"))),
            Data::F32(x) => list_text(x.iter().copied().map(float_text)),
            Data::I32(x) => list_text(x),
            Data::I64(x) => list_text(x),
            Data::Bool(x) => list_text(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Evaluator;
    use crate::module::{Module, WeightDef};
    use crate::{parse, verify};

    fn module(weight: &str) -> String {
        format!("module @m {{\n  weight @w: {weight}\n}}\n")
    }

    /// A small generator of bits; what it says does not matter, only that it says much.
    fn noise(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        }
    }

    #[test]
    fn any_literal_comes_back_from_its_text() {
        for seed in 0..300 {
            let mut next = noise(seed);
            let len = next() as usize % 40 + 1;
            let dtype = [DType::F32, DType::F16, DType::BF16, DType::I32][next() as usize % 4];
            let literal = match dtype {
                DType::I32 => Data::I32((0..len).map(|_| next() as i32).collect()),
                _ => {
                    let number = |bits| if f32::from_bits(bits).is_nan() { 0.0 } else { f32::from_bits(bits) };
                    Data::F32((0..len).map(|_| dtype.round(number(next()))).collect())
                }
            };
            let mut m = Module::new("m");
            let id = m.add_weight("w", Type::new(dtype, [len]), WeightDef::Literal(literal.clone()));
            verify(&m).unwrap();
            let again = parse(&m.to_string()).unwrap();
            assert_eq!(again, m);
            assert_eq!(again.to_string(), m.to_string());
            let no_source = |_: &str| Err::<Vec<f32>, _>("no source".to_owned());
            let tensor = Evaluator::new(&again, &no_source, 1).weight(id).unwrap();
            match (&tensor.data, &literal) {
                (Data::F32(found), Data::F32(x)) => {
                    assert!(found.iter().zip(x).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
                (Data::I32(found), Data::I32(x)) => assert_eq!(found, x),
                _ => panic!("{dtype} became {tensor:?}"),
            }
        }
    }

    #[test]
    fn text_is_as_documented() {
        for weight in ["f32[2] = [1, 0.5]", "i32[] = [-7]", "f16[1, 2] = [-inf, 65504]", "i32[2, 2] = [0, 1, 2, 3]"] {
            let text = module(weight);
            let module = parse(&text).unwrap();
            verify(&module).unwrap();
            assert_eq!(module.to_string(), text);
        }
    }

    #[test]
    fn what_a_type_does_not_hold_is_refused() {
        let large = parse(&module("f32[1] = [1e999]")).unwrap_err();
        assert!(large.message.contains("`1e999` is no f32 number"), "{large}");
        for (weight, message) in [
            ("i32[1] = [1.5]", "`1.5` is not a number of type i32"),
            ("i32[1] = [2147483648]", "`2147483648` is not a number of type i32"),
            ("q8[1, 1] = [1]", "a literal has plain elements"),
            ("bool[1] = [1]", "`1` is not a number of type bool"),
            ("f32[1] = 1", "there is no op `1`"),
        ] {
            let e = parse(&module(weight)).unwrap_err().to_string();
            assert!(e.starts_with("line 2, column ") && e.contains(message), "{weight}: {e}");
        }
        for (weight, message) in [
            ("f32[3] = [1, 2]", "2 elements do not fill f32[3]"),
            ("f32[] = []", "0 elements do not fill f32[]"),
            ("f32[1] @n16 = [1]", "a literal has plain elements"),
            ("f32[1] = [NaN]", "a literal cannot be NaN"),
            ("f16[1] = [0.1]", "0.1 is no f16 number; the nearest is 0.099975586"),
            ("f16[1] = [1e9]", "the nearest is inf"),
        ] {
            let errors = verify(&parse(&module(weight)).unwrap()).map(|_| ()).unwrap_err();
            assert!(errors.iter().any(|e| e.message.contains(message)), "{weight}: {errors:?}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let of = |n: usize| Data::I32(vec![1; n]);
        let ty = |n: usize| Type::new(DType::I32, [n]);
        assert_eq!(of(MAX_LITERAL).check(&ty(MAX_LITERAL)), Ok(()));
        let n = MAX_LITERAL + 1;
        assert!(
            of(n)
                .check(&ty(n))
                .unwrap_err()
                .contains("at most 1048576 elements, not 1048577; leave it in the checkpoint")
        );
        let text = module(&format!("i32[{n}] = {}", of(n).text()));
        assert!(parse(&text).unwrap_err().message.contains("at most 1048576 elements"));
    }
}
