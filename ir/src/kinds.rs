//! Kinds of the portable ops: what a `unary`, `binary`, `compare`, … computes, by name.
//!
//! Invariant: the name in the text format is the one of this table, and there is one kind for one function.

use crate::attr::AttrValue;
use std::fmt;
use std::str::FromStr;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident ($what:literal) { $($(#[$of:meta])* $variant:ident = $name:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $kind {
            $($(#[$of])* $variant,)*
        }

        impl $kind {
            /// Every kind, in the order of the table.
            pub const ALL: &[$kind] = &[$($kind::$variant),*];

            /// Name in the text format.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)* }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = String;

            fn from_str(s: &str) -> Result<Self, String> {
                let found = $kind::ALL.iter().copied().find(|kind| kind.name() == s);
                found.ok_or_else(|| {
                    let names: Vec<_> = $kind::ALL.iter().map(|kind| kind.name()).collect();
                    format!(concat!("`{}` is not ", $what, "; use {}"), s, names.join(", "))
                })
            }
        }

        impl AttrValue for $kind {
            fn print(&self) -> Option<String> {
                Some(self.name().to_owned())
            }
            fn parse(text: Option<&str>) -> Result<Self, String> {
                text.ok_or("is required")?.parse()
            }
        }
    )*};
}

kinds! {
    /// A function of each element.
    Unary ("a function of one element") {
        /// Magnitude; of the least integer itself.
        Abs = "abs",
        /// Inverse cosine.
        Acos = "acos",
        /// Inverse hyperbolic cosine.
        Acosh = "acosh",
        /// Inverse sine.
        Asin = "asin",
        /// Inverse hyperbolic sine.
        Asinh = "asinh",
        /// Inverse tangent.
        Atan = "atan",
        /// Inverse hyperbolic tangent.
        Atanh = "atanh",
        /// Every bit of an integer turned over.
        BitNot = "bit_not",
        /// Least whole number that is not smaller.
        Ceil = "ceil",
        /// Cosine.
        Cos = "cos",
        /// Hyperbolic cosine.
        Cosh = "cosh",
        /// Error function.
        Erf = "erf",
        /// Exponential.
        Exp = "exp",
        /// Greatest whole number that is not larger.
        Floor = "floor",
        /// Whether it is an infinity: bool.
        IsInf = "is_inf",
        /// Whether it is not a number: bool.
        IsNan = "is_nan",
        /// Natural logarithm.
        Log = "log",
        /// Negative; integers wrap.
        Neg = "neg",
        /// Of a bool.
        Not = "not",
        /// One divided by it.
        Reciprocal = "reciprocal",
        /// Nearest whole number, halves to even.
        Round = "round",
        /// Logistic function.
        Sigmoid = "sigmoid",
        /// −1, 0 or 1.
        Sign = "sign",
        /// Sine.
        Sin = "sin",
        /// Hyperbolic sine.
        Sinh = "sinh",
        /// Square root.
        Sqrt = "sqrt",
        /// Tangent.
        Tan = "tan",
        /// Hyperbolic tangent.
        Tanh = "tanh",
    }

    /// A function of two elements; sums and products are ops of their own.
    Binary ("a function of two elements") {
        /// Of bools.
        And = "and",
        /// Bits of integers.
        BitAnd = "bit_and",
        /// Bits of integers.
        BitOr = "bit_or",
        /// Bits of integers.
        BitXor = "bit_xor",
        /// Quotient; of integers toward zero. An integer divided by zero is an error.
        Div = "div",
        /// Larger of two; NaN wins.
        Max = "max",
        /// Smaller of two; NaN wins.
        Min = "min",
        /// Remainder with the sign of the divisor, as Python has it.
        Mod = "mod",
        /// Of bools.
        Or = "or",
        /// Power; the result has the left type, the exponent may have any.
        Pow = "pow",
        /// Remainder with the sign of the dividend, as C's `fmod` has it.
        Rem = "rem",
        /// Bits of an integer to the left; by a number that is none of its bits, 0.
        Shl = "shl",
        /// Bits of an integer to the right, where the sign follows; by a number that is none of its bits, the sign alone.
        Shr = "shr",
        /// Difference; integers wrap.
        Sub = "sub",
        /// Exclusive or of bools.
        Xor = "xor",
    }

    /// A question about two elements.
    Compare ("a comparison") {
        /// Equal.
        Eq = "eq",
        /// Greater or equal.
        Ge = "ge",
        /// Greater.
        Gt = "gt",
        /// Less or equal.
        Le = "le",
        /// Less.
        Lt = "lt",
    }

    /// What becomes of the elements along some dimensions.
    Reduce ("a reduction") {
        /// Largest; NaN wins. Of bools: any.
        Max = "max",
        /// Mean.
        Mean = "mean",
        /// Smallest; NaN wins. Of bools: all.
        Min = "min",
        /// Product.
        Prod = "prod",
        /// Sum.
        Sum = "sum",
    }

    /// What a scattered element does to the one in its place.
    Scatter ("a way to scatter") {
        /// Is added to it.
        Add = "add",
        /// The larger remains.
        Max = "max",
        /// The smaller remains.
        Min = "min",
        /// Multiplies it.
        Mul = "mul",
        /// Takes its place.
        Set = "set",
    }

    /// How the last dimension is brought to unit size.
    Norm ("a normalization") {
        /// `(x − mean) / sqrt(var + eps)`.
        Layer = "layer",
        /// `x / sqrt(mean(x²) + eps)`.
        Rms = "rms",
    }
}
