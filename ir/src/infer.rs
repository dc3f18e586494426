//! Shape inference: the result types of an op for given operand types, and every typing rule of the IR.
//!
//! Operands are seen through [`Arg`], so that the same rules serve nodes and weight expressions. The written types are
//! not consulted; the verifier compares them with what is inferred here. Each level of ops has a file of its own.

mod model;
mod operands;
mod state;
mod tensor;
mod weight;

pub use operands::{Arg, ArgKind};
pub use weight::SHARD_ROWS;

use crate::op::{Level, Op};
use crate::types::Type;
use operands::Operands;

/// Result types of `op` on `args`.
///
/// # Errors
/// A sentence about the first operand that does not fit.
pub fn infer(op: &Op, args: &[Arg<'_>]) -> Result<Vec<Type>, String> {
    let mut of = Operands::new(args);
    let results = match op.level() {
        Level::Tensor => of.tensor_op(op),
        Level::Model => of.model_op(op),
        Level::State => of.state_op(op),
        Level::Weight => of.weight_op(op),
    }?;
    match of.left() {
        0 => Ok(results),
        extra => Err(format!("{extra} operands too many")),
    }
}

/// An op that the file of its level has no rule for.
fn no_rule(op: &Op) -> Result<Vec<Type>, String> {
    Err(format!("`{}` has no typing rule", op.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::OPS;

    #[test]
    fn every_op_has_a_rule() {
        // A value for each attribute that some op requires.
        let values = [
            ("to", "f16"),
            ("by", "1"),
            ("head_dim", "4"),
            ("mask", "full"),
            ("rule", "full"),
            ("eps", "1e-6"),
            ("theta", "1e4"),
            ("layout", "n16"),
            ("axis", "0"),
            ("axes", "[0]"),
            ("batch", "0"),
            ("dims", "[1]"),
            ("starts", "[0]"),
            ("ends", "[1]"),
            ("steps", "[1]"),
            ("scale", "1"),
        ];
        let kinds = [
            ("binary", "sub"),
            ("compare", "eq"),
            ("normalize", "rms"),
            ("reduce", "sum"),
            ("scatter", "set"),
            ("scatter_nd", "set"),
            ("unary", "neg"),
        ];
        for info in OPS {
            let known = values.iter().filter(|(name, _)| info.attrs.contains(name)).copied();
            let kind = kinds.iter().find(|(op, _)| *op == info.name).map(|(_, kind)| ("kind", *kind));
            let attrs = known.chain(kind).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let op = Op::parse(info.name, &attrs).unwrap_or_else(|e| panic!("{}: {e}", info.name));
            let error = infer(&op, &[]).unwrap_err();
            assert!(!error.contains("has no typing rule"), "{error}");
        }
    }
}
