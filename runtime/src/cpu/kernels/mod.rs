//! The kernel table: one row of function pointers per instruction set, and the ops built on them.
//!
//! Two kernels are written per instruction set with intrinsics: [`DotArgs`] (packed integer weights × int8 activations)
//! and [`FmaArgs`] (float weights, attention scores, attention values). Everything else is one portable body over
//! 16-lane chunks ([`body`]), compiled once per instruction set.
//!
//! Invariant: a [`Kernels`] exists only for an instruction set that this CPU has ([`kernels`] is the only way to get
//! one), so calling its pointers is sound. Kernels trust the pointers in their arguments; the ops in this folder
//! check shapes before they build them.
#![allow(unsafe_code, reason = "SIMD intrinsics, and threads that write disjoint parts of one output")]
#![allow(clippy::needless_range_loop, reason = "register tiles and lanes read best as indexed arrays")]

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod body;
pub(crate) mod elementwise;
pub(crate) mod head;
pub(crate) mod limits;
pub(crate) mod linear;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod parallel;
pub(crate) mod quantize;
mod scalar;
mod tiles;

use super::isa::Isa;
use super::pack::BLOCK;
use body::Portable;
use parallel::Ctx;

/// The kernels of one instruction set.
pub struct Kernels {
    isa: Isa,
    /// Most activation rows that `dot` and `fma` take at once.
    max_rows: usize,
    dot: unsafe fn(&DotArgs),
    fma: unsafe fn(&FmaArgs),
    portable: &'static Portable,
}

impl Kernels {
    /// The instruction set these kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// The kernels of an instruction set.
///
/// # Errors
/// When this CPU does not have it.
pub fn kernels(isa: Isa) -> Result<&'static Kernels, String> {
    static SCALAR: Kernels =
        Kernels { isa: Isa::Scalar, max_rows: 8, dot: scalar::dot, fma: scalar::fma, portable: &body::SCALAR };
    #[cfg(target_arch = "x86_64")]
    static AVX2: Kernels =
        Kernels { isa: Isa::Avx2, max_rows: avx2::MAX_ROWS, dot: avx2::dot, fma: avx2::fma, portable: &body::AVX2 };
    #[cfg(target_arch = "x86_64")]
    static AVX512: Kernels = Kernels {
        isa: Isa::Avx512,
        max_rows: avx512::MAX_ROWS,
        dot: avx512::dot,
        fma: avx512::fma,
        portable: &body::AVX512,
    };
    #[cfg(target_arch = "x86_64")]
    static AVX_VNNI: Kernels = Kernels {
        isa: Isa::AvxVnni,
        max_rows: avx2::MAX_ROWS,

        dot: avxvnni::dot,
        fma: avx2::fma,
        portable: &body::AVX2,
    };
    // NEON is part of aarch64, so the compiler vectorizes the scalar bodies with it.
    #[cfg(target_arch = "aarch64")]
    static NEON: Kernels =
        Kernels { isa: Isa::Neon, max_rows: neon::MAX_ROWS, dot: neon::dot, fma: neon::fma, portable: &body::SCALAR };
    #[cfg(target_arch = "aarch64")]
    static NEON_DOT: Kernels = Kernels {
        isa: Isa::NeonDot,
        max_rows: neon::MAX_ROWS,

        dot: neon::dot_sdot,
        fma: neon::fma,
        portable: &body::SCALAR,
    };
    if !isa.available() {
        return Err(format!("this CPU does not have `{isa}`; the best it has is `{}`", Isa::best()));
    }
    match isa {
        Isa::Scalar => Ok(&SCALAR),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Ok(&AVX2),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Ok(&AVX512),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => Ok(&AVX_VNNI),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Ok(&NEON),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => Ok(&NEON_DOT),
        #[allow(unreachable_patterns, reason = "no architecture has them all")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Neon | Isa::NeonDot => {
            Err(format!("`{isa}` is not an instruction set of this architecture"))
        }
    }
}

/// Arguments of the integer kernel: `rows` × 16 columns over `blocks` blocks of 128 k.
///
/// `total[row][16] += Σ_blocks scale_a[row] · Σ_groups scale_w · dot(group)`, where a group's dot product starts at the
/// zero-point correction of the symmetric formats, and `min · Σ activations` is added for the others.
struct DotArgs {
    rows: usize,
    blocks: usize,
    /// Weight groups per block.
    groups: usize,
    /// 4-bit codes (two per byte) rather than 8-bit ones.
    nibbles: bool,
    /// Whether groups have a minimum.
    min: bool,
    /// Blocks of a quantized tile, one after the other: codes, scales, minima.
    weights: *const u8,
    /// Per block: `[32 quads][rows]` packed int8, then `[groups][rows]` i32 corrections (f32 sums if `min`),
    /// then `[rows]` f32 scales. One word each.
    act: *const u32,
    /// `[rows][16]`.
    total: *mut f32,
    /// Cache lines to ask for at the start of every block, from `ahead` on. When several row tiles share weights, each
    /// fetches a part of what comes next, which spreads the reading of memory over all of the computing; with a single tile
    /// (0 lines) the kernel looks ahead by itself.
    ahead: *const u8,
    ahead_lines: usize,
}

impl DotArgs {
    /// Words of one row in one block of `act`.
    const fn act_words(groups: usize) -> usize {
        BLOCK / 4 + groups + 1
    }
}

/// Element type of the float kernel's `w`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FloatKind {
    F32,
    F16,
    BF16,
    /// Signed codes; their scale is not the kernel's business.
    I8,
}

impl FloatKind {
    const fn size(self) -> usize {
        match self {
            FloatKind::F32 => 4,
            FloatKind::F16 | FloatKind::BF16 => 2,
            FloatKind::I8 => 1,
        }
    }
}

/// Keys per block of the attention loop, and the row stride of a row-major `a` operand.
const KEY_BLOCK: usize = 64;

/// Arguments of the float kernel: `total[tile][row][16] += Σ_k a[row][k] · w[tile][k][16]`, sequentially over k.
struct FmaArgs {
    rows: usize,
    /// Number of 16-column tiles.
    tiles: usize,
    k: usize,
    w: *const u8,
    w_kind: FloatKind,
    /// Elements between consecutive k.
    w_step: usize,
    /// Elements between consecutive tiles.
    w_tile: usize,
    a: *const f32,
    /// `a` is `[rows][KEY_BLOCK]` rather than `[k][rows]`.
    a_row_major: bool,
    total: *mut f32,
    /// Floats between consecutive rows of a tile.
    total_row: usize,
    /// Floats between consecutive tiles.
    total_tile: usize,
}
