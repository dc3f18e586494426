//! Portable code of other modules, compiled once per instruction set.
//!
//! As with [`body`](super::body), the instruction set gives its features to code that is inlined, and the compiler vectorizes
//! it. Invariant: features change the speed of such code and never its results, since Rust fuses and reorders nothing.

use super::Kernels;
#[cfg(target_arch = "x86_64")]
use crate::cpu::Isa;

/// Something to do on many numbers. `run` and what it spends its time in must be `#[inline(always)]`: a function that is
/// called instead keeps the features that it was compiled with.
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

impl Kernels {
    /// Does some work with the features of this instruction set.
    pub fn run<W: Work>(&self, work: W) -> W::Output {
        match self.isa {
            // SAFETY: a table is reachable only through `kernels`, which checks the CPU's features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => unsafe { avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vbmi => unsafe { avx512(work) },
            // NEON is part of aarch64.
            _ => work.run(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn avx512<W: Work>(work: W) -> W::Output {
    work.run()
}
