//! The CPU target: one program and one packed weight layout for every instruction set.

use dlx_ir::{DType, Op};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "cpu",
    doc: "SIMD kernels chosen at load (AVX-512 VNNI, AVX-VNNI, AVX2, NEON with sdot or i8mm, scalar); int8 activations against int4/int8 weights",
    lowering: "pack=n16, keys=cpu.k16, values=cpu.v",
    supports,
    stores,
    plan: None,
};

fn supports(op: &Op) -> bool {
    match op {
        Op::Add {}
        | Op::CachedAttention { .. }
        | Op::Embed {}
        | Op::HeadStats { .. }
        | Op::KvWrite {}
        | Op::Linear { .. }
        | Op::Mul {}
        | Op::RmsNorm { .. }
        | Op::Rope { .. }
        | Op::RopeTable { .. }
        | Op::Scale { .. }
        | Op::Silu {}
        | Op::StoreRows {}
        | Op::TakeRows {} => true,
        Op::Attention { .. }
        | Op::Cast { .. }
        | Op::Concat {}
        | Op::Mask { .. }
        | Op::Matmul {}
        | Op::Pack { .. }
        | Op::Quantize { .. }
        | Op::Softmax {}
        | Op::Transpose {} => false,
    }
}

fn stores(dtype: DType) -> bool {
    !matches!(dtype, DType::I32 | DType::Bool)
}
