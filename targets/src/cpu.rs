//! The CPU target: one program and one packed weight layout for every instruction set.

use dlx_ir::{DType, Op};

use crate::{Product, Target, pipeline};

const LOWERING: &str = "pack=n16, keys=cpu.k16, values=cpu.v";

pub(crate) const TARGET: Target = Target {
    name: "cpu",
    doc: "SIMD kernels chosen at load (AVX-512 VNNI, AVX-VNNI, AVX2, NEON with sdot or i8mm, scalar); int8 activations against int4/int8 weights",
    lowering: LOWERING,
    pipeline: |settings| pipeline::entries(settings, LOWERING, None),
    supports,
    stores,
    product: |_, _| Ok(Product::Program),
};

fn supports(op: &Op) -> bool {
    matches!(
        op,
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
            | Op::TakeRows {}
    )
}

fn stores(dtype: DType) -> bool {
    dtype.is_float() || matches!(dtype, DType::Quant(_))
}
