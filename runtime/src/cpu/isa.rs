//! Which instruction set the kernels use.
//!
//! Invariant: an [`Isa`] says what to use, not that this CPU has it; [`crate::cpu::kernels`] checks before it hands out a table.

use std::fmt;
use std::str::FromStr;

/// An instruction set with its own kernel table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Plain Rust; runs anywhere and defines the exact result.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX2 and AVX-VNNI, the 256-bit dot products of CPUs without AVX-512.
    AvxVnni,
    /// x86-64 with AVX-512 F/BW/DQ/VL and VNNI.
    Avx512,
    /// x86-64 with what `Avx512` has and AVX-512 VBMI, which looks bytes up in tables of 64.
    Avx512Vbmi,
    /// aarch64.
    Neon,
    /// aarch64 with the dot product instructions.
    NeonDot,
    /// aarch64 with the 8-bit matrix instructions, and those of `NeonDot`.
    NeonI8mm,
}

impl Isa {
    /// Every instruction set of every architecture, slowest first.
    pub const ALL: [Isa; 8] =
        [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vbmi, Isa::Neon, Isa::NeonDot, Isa::NeonI8mm];

    /// Whether this CPU can run it.
    pub fn available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vbmi => Isa::Avx512.available() && is_x86_feature_detected!("avx512vbmi"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Isa::NeonDot.available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns, reason = "no architecture has them all")]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vbmi => false,
            #[allow(unreachable_patterns, reason = "no architecture has them all")]
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => false,
        }
    }

    /// The fastest instruction set of this CPU.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().rfind(|isa| isa.available()).unwrap_or(Isa::Scalar)
    }

    /// The instruction set named by the environment variable `DLX_ISA`, or the fastest one when it is not set.
    ///
    /// # Errors
    /// When `DLX_ISA` names no instruction set, or one that this CPU lacks.
    pub fn from_env() -> Result<Isa, String> {
        let Some(name) = std::env::var_os("DLX_ISA") else { return Ok(Isa::best()) };
        let isa: Isa = name.to_string_lossy().parse().map_err(|e| format!("DLX_ISA: {e}"))?;
        if isa.available() {
            Ok(isa)
        } else {
            Err(format!("DLX_ISA={isa}, but this CPU does not have it; the best it has is `{}`", Isa::best()))
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vbmi => "avx512vbmi",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon-dot",
            Isa::NeonI8mm => "neon-i8mm",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Isa::ALL.into_iter().find(|isa| isa.to_string() == s).ok_or_else(|| {
            format!("`{s}` is not an instruction set; use one of {}", Isa::ALL.map(|i| i.to_string()).join(", "))
        })
    }
}
