//! The kernel table: one row of function pointers per instruction set, and the ops built on them.
//!
//! Three kernels are compiled from intrinsics: [`DotArgs`] (packed integer weights × int8 activations), [`AttendArgs`] (int8
//! caches × int8 queries or weights of values) and [`FmaArgs`] (float weights, float caches). Their loops are macros
//! (`dot.rs`, `fma.rs`), to which an instruction set brings its register and a few operations; AVX-512, with twice the
//! registers, has a loop of its own for weights, and another for many rows ([`Pairs`]). Weights of `l16` are looked up in a
//! table first ([`Lookup`]). Everything else is one portable body over 16-lane chunks ([`body`]), compiled once per
//! instruction set.
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
mod avx512dot;
#[cfg(target_arch = "x86_64")]
mod avx512pair;
#[cfg(target_arch = "x86_64")]
mod avx512vbmi;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod body;
pub(crate) mod caches;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dot;
pub(crate) mod elementwise;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fma;
pub(crate) mod head;
pub(crate) mod limits;
pub(crate) mod linear;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod parallel;
pub(crate) mod product;
pub(crate) mod quantize;
mod scalar;
mod tiles;
pub(crate) mod vectorized;

use super::isa::Isa;
use super::pack::{BLOCK, TILE_COLUMNS};
use body::Portable;
pub(crate) use body::exp;
use dlx_ir::quant::codebook;
use dlx_ir::{DType, QuantFormat};
use parallel::Ctx;

/// The kernels of one instruction set.
pub struct Kernels {
    isa: Isa,
    /// Most activation rows that `attend` and `fma` take at once.
    max_rows: usize,
    /// Most activation rows that `dot` takes at once.
    dot_rows: usize,
    dot: unsafe fn(&DotArgs),
    attend: unsafe fn(&AttendArgs),
    fma: unsafe fn(&FmaArgs),
    portable: &'static Portable,
    lookup: Lookup,
    /// What multiplies many rows by integer weights.
    pairs: Option<Pairs>,
    /// Paths of `dot`, `fma`, `portable`, `lookup` and `attend`, for people.
    names: [&'static str; 5],
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa)
    }
}

/// What makes numbers of the codes of `l16`.
#[derive(Clone, Copy)]
enum Lookup {
    /// Turns blocks of 128 k into blocks of 8-bit codes with a zero point of 128, which `dot` takes: once for all rows.
    Ahead(unsafe fn(from: *const u8, blocks: usize, to: *mut u8)),
    /// Takes them as they are, at most so many activation rows at once.
    #[cfg(target_arch = "x86_64")]
    Within(unsafe fn(&DotArgs), usize),
}

/// How many rows are multiplied, two column tiles at a time. Only instruction sets with registers for it have it.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other architecture has one yet"))]
struct Pairs {
    dot: unsafe fn(&PairArgs),
    /// Most activation rows that `dot` takes at once, of weights in groups of 128 and in shorter ones.
    rows: [usize; 2],
    /// Turns blocks of 4-bit codes, and tables of so many bytes behind them, into blocks of 8-bit codes.
    widen: unsafe fn(from: *const u8, blocks: usize, tables: usize, to: *mut u8),
    /// The same for `l16`, as [`Lookup::Ahead`].
    look_up: unsafe fn(from: *const u8, blocks: usize, to: *mut u8),
}

impl Pairs {
    /// From so many rows on, sharing the work of unpacking is worth a way through memory.
    const MIN_ROWS: usize = 32;

    /// Bytes of a block of 8-bit codes with tables of so many bytes: whole cache lines.
    const fn block_bytes(tables: usize) -> usize {
        CODES_BYTES + tables.next_multiple_of(64)
    }
}

impl Kernels {
    /// What multiplies so many rows by a weight in pairs of column tiles, if anything does.
    fn pairs_of(&self, dtype: DType, rows: usize) -> Option<&Pairs> {
        self.pairs.as_ref().filter(|_| matches!(dtype, DType::Quant(_)) && rows >= Pairs::MIN_ROWS)
    }

    /// Most activation rows that the kernel of a weight takes at once, of so many.
    fn rows_of(&self, dtype: DType, rows: usize) -> usize {
        match (dtype, self.pairs_of(dtype, rows), self.lookup) {
            (DType::Quant(format), Some(pairs), _) => {
                pairs.rows[usize::from(format.group.is_some_and(|g| (g as usize) < BLOCK))]
            }
            #[cfg(target_arch = "x86_64")]
            (DType::Quant(QuantFormat::L16), None, Lookup::Within(_, rows)) => rows,
            (DType::Quant(_), ..) => self.dot_rows,
            _ => self.max_rows,
        }
    }

    /// The instruction set these kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

macro_rules! table {
    ($($(#[$architecture:meta])? $isa:ident($rows:expr, $dot:path, $dot_rows:expr, $attend:path, $fma:path, $portable:path,
        $lookup:ident($table:path $(, $most:expr)?), $pairs:expr);)*) => {
        /// Every kernel that is compiled for this architecture, slowest instruction set first. Private: see the invariant.
        static TABLE: &[Kernels] = &[$($(#[$architecture])? Kernels {
            isa: Isa::$isa,
            max_rows: $rows,
            dot_rows: $dot_rows,
            dot: $dot,
            attend: $attend,
            fma: $fma,
            portable: &$portable,
            lookup: Lookup::$lookup($table $(, $most)?),
            pairs: $pairs,
            names: [stringify!($dot), stringify!($fma), stringify!($portable), stringify!($table), stringify!($attend)],
        }),*];
    };
}

table! {
    Scalar(8, scalar::dot, 8, scalar::attend, scalar::fma, body::SCALAR, Ahead(scalar::look_up), None);
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::MAX_ROWS, avx2::dot, avx2::MAX_ROWS, avx2::attend, avx2::fma, body::AVX2, Ahead(avx2::look_up), None);
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::MAX_ROWS, avxvnni::dot, avx2::MAX_ROWS, avxvnni::attend, avx2::fma, body::AVX2, Ahead(avx2::look_up), None);
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::MAX_ROWS, avx512dot::dot, avx512dot::MAX_ROWS, avx512::attend, avx512::fma, body::AVX512, Ahead(avx512::look_up), Some(avx512pair::PAIRS));
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi(avx512::MAX_ROWS, avx512dot::dot, avx512dot::MAX_ROWS, avx512::attend, avx512::fma, body::AVX512, Within(avx512vbmi::dot, avx512vbmi::MAX_ROWS), Some(avx512pair::PAIRS_VBMI));
    // NEON is part of aarch64, so the compiler vectorizes the scalar bodies with it.
    #[cfg(target_arch = "aarch64")]
    Neon(neon::MAX_ROWS, neon::mull::dot, neon::MAX_ROWS, neon::mull::attend, neon::fma, body::SCALAR, Ahead(neon::look_up), None);
    #[cfg(target_arch = "aarch64")]
    NeonDot(neon::MAX_ROWS, neon::sdot::dot, neon::MAX_ROWS, neon::sdot::attend, neon::fma, body::SCALAR, Ahead(neon::look_up), None);
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(neon::MAX_ROWS, neon::usmmla::dot, neon::MAX_ROWS, neon::usmmla::attend, neon::fma, body::SCALAR, Ahead(neon::look_up), None);
}

/// The kernels of an instruction set.
///
/// # Errors
/// When this CPU does not have it.
pub fn kernels(isa: Isa) -> Result<&'static Kernels, String> {
    let row = TABLE.iter().find(|k| k.isa == isa && isa.available());
    row.ok_or_else(|| format!("this CPU does not have `{isa}`; the best it has is `{}`", Isa::best()))
}

/// What a kernel of [`kernels`] does in a program, and for which instruction set.
#[derive(Clone, Copy, Debug)]
pub struct KernelVariant {
    /// What it does, such as `linear q4`; each instruction set has one kernel for each role.
    pub role: &'static str,
    /// The instruction set in whose table it stands; a kernel may stand in several.
    pub isa: Isa,
    /// Path of the function, or of the table that holds it.
    pub kernel: &'static str,
    /// The weight formats that it reads, if it multiplies by weights.
    pub formats: &'static [DType],
}

/// Every kernel that is compiled for this architecture, by role, whether this CPU can run it or not.
pub fn kernel_variants() -> impl Iterator<Item = KernelVariant> {
    let roles = DOT_ROLES.iter().map(|r| (0, *r)).chain(FMA_ROLES.iter().map(|r| (1, *r)));
    let roles = roles.chain([(3, LOOKUP_ROLE), (4, ATTEND_ROLE)]);
    let roles = roles.chain(Portable::NAMES.iter().map(|name| (2, (*name, &[][..]))));
    roles.flat_map(|(kernel, (role, formats))| {
        TABLE.iter().map(move |k| KernelVariant { role, isa: k.isa, kernel: k.names[kernel], formats })
    })
}

/// A role and the weight formats it reads.
type Role = (&'static str, &'static [DType]);

/// What `dot` is compiled for; the group size is an argument.
const DOT_ROLES: &[Role] = &[
    ("linear q4", &[symmetric(4, Some(32)), symmetric(4, Some(64)), symmetric(4, Some(128))]),
    ("linear q4 min", &[affine(4, Some(32)), affine(4, Some(64)), affine(4, Some(128))]),
    ("linear q8", &[symmetric(8, None), symmetric(8, Some(32)), symmetric(8, Some(64)), symmetric(8, Some(128))]),
    ("linear q8 min", &[affine(8, None), affine(8, Some(32)), affine(8, Some(64)), affine(8, Some(128))]),
];

/// What `lookup` is for.
const LOOKUP_ROLE: Role = ("linear l16", &[DType::Quant(QuantFormat::L16)]);

/// What `attend` is for.
const ATTEND_ROLE: Role = ("attention q8", &[]);

/// What `fma` is compiled for.
const FMA_ROLES: &[Role] = &[
    ("linear f32", &[DType::F32]),
    ("linear f16", &[DType::F16]),
    ("linear bf16", &[DType::BF16]),
    ("attention f32", &[]),
    ("attention f16", &[]),
];

const fn symmetric(bits: u8, group: Option<u32>) -> DType {
    DType::Quant(QuantFormat::symmetric(bits, group))
}

const fn affine(bits: u8, group: Option<u32>) -> DType {
    DType::Quant(QuantFormat::affine(bits, group))
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
    /// Blocks of a quantized tile, `block_bytes` from one to the next: codes, scales, minima.
    weights: *const u8,
    block_bytes: usize,
    /// Per block: `[32 quads][rows]` packed int8, then `[groups][rows]` i32 corrections (f32 sums if `min`),
    /// then `[rows]` f32 scales. One word each.
    act: *const u32,
    /// Activations of the call that comes next, which may be asked for.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "AVX-512 alone asks for them"))]
    next_act: *const u32,
    /// `[rows][16]`.
    total: *mut f32,
    /// Cache lines to ask for at the start of every block, from `ahead` on. When several row tiles share weights, each
    /// fetches a part of what comes next, which spreads the reading of memory over all of the computing; with a single tile
    /// (0 lines) looking ahead is left to the kernel or the hardware.
    ahead: *const u8,
    ahead_lines: usize,
}

impl DotArgs {
    /// Words of one row in one block of `act`.
    const fn act_words(groups: usize) -> usize {
        BLOCK / 4 + groups + 1
    }
}

/// Numbers that an integer kernel multiplies at a time: features of keys, or rows of values.
const ROUND: usize = 32;
/// Bytes of a round of sixteen columns.
const ROUND_BYTES: usize = ROUND * TILE_COLUMNS;

/// Arguments of the integer kernel of attention: `rows` × 16 columns of `tiles` tiles over `rounds` rounds of 32 k.
///
/// `total[tile][row][16] += scale[row] · (Σ (codes − 128) · act[row])`. A round of codes is `[k / 4][16][4]`.
struct AttendArgs {
    rows: usize,
    tiles: usize,
    rounds: usize,
    codes: *const u8,
    /// Bytes between consecutive rounds of a tile.
    round_bytes: usize,
    /// Bytes between consecutive tiles.
    tile_bytes: usize,
    /// `[k / 4][rows]` packed int8.
    act: *const u32,
    /// `[rows]` i32, `-128 · Σ act`; then `[rows]` f32 scales. They lie behind all of `act`, whose reads may run into them.
    corrections: *const u32,
    total: *mut f32,
    /// Floats between consecutive rows of a tile.
    total_row: usize,
    /// Floats between consecutive tiles.
    total_tile: usize,
}

/// Arguments of a kernel of [`Pairs`], which multiplies by two column tiles. The codes have 8 bits.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other architecture reads them yet"))]
struct PairArgs {
    /// Those of the first tile, and of both.
    dot: DotArgs,
    /// The second tile's.
    weights: *const u8,
    total: *mut f32,
    ahead: *const u8,
}

/// Bytes of the scales of a group in a tile.
const TILE_SCALE_BYTES: usize = TILE_COLUMNS * 2;

/// Bytes of the codes of a block, of 8 bits each.
const CODES_BYTES: usize = BLOCK * TILE_COLUMNS;

/// Bytes of a block of 8-bit codes with the scales of one group, whose codes begin with a cache line.
const LOOKED_UP_BYTES: usize = Pairs::block_bytes(TILE_SCALE_BYTES);

/// Offset of the levels in a block of `l16`, behind its codes; of the scales; and its length.
const LEVELS_AT: usize = BLOCK * TILE_COLUMNS / 2;
const SCALES_AT: usize = LEVELS_AT + TILE_COLUMNS * 2;
const TABLE_BLOCK_BYTES: usize = SCALES_AT + TILE_SCALE_BYTES;

/// The codebooks' numbers moved by 128, so that they have no sign.
static UNSIGNED_TABLE: [u8; codebook::TABLE.len()] = {
    let mut out = [0; codebook::TABLE.len()];
    let mut i = 0;
    while i < out.len() {
        out[i] = (codebook::TABLE[i] as u8) ^ 128;
        i += 1;
    }
    out
};

/// Element type of the float kernel's `w`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FloatKind {
    F32,
    F16,
    BF16,
}

impl FloatKind {
    const fn size(self) -> usize {
        match self {
            FloatKind::F32 => 4,
            FloatKind::F16 | FloatKind::BF16 => 2,
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
