//! The inner product of a tile: rows of activations times columns of packed weights, as a block of WGSL.
//!
//! A workgroup computes a few 16-column tiles for a few groups of four rows. Its threads are columns times slices of k; a
//! slice takes every n-th block. Activations are staged in workgroup memory, four rows to a vector, and the slices'
//! sums are added there. Everything is unrolled by name, so that sums stay in registers on any driver.
//!
//! Integer sums are exact: only the fold with the scales rounds, so results agree with the CPU's up to f32 rounding.

use std::fmt::Write;

use dlx_ir::quant::zero_point;
use dlx_ir::{DType, QuantFormat};

use super::source::Source;

/// Words per block of 128 quantized activations and four rows: 32 of codes, 4 of sums (one per 32 codes), a scale.
pub(super) const ACT_WORDS: usize = 37;
/// Weights per block along k.
pub(super) const BLOCK: usize = 128;
/// Columns per tile.
pub(super) const TILE: usize = 16;
/// k's per block of the float product.
const FLOAT_BLOCK: usize = 32;

/// How a product is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Groups of four rows per thread.
    pub(super) groups: usize,
    /// Slices of k.
    pub(super) slices: usize,
    /// Column tiles side by side.
    pub(super) tiles: usize,
}

impl Cut {
    pub(super) fn threads(self) -> usize {
        self.slices * self.columns()
    }

    pub(super) fn columns(self) -> usize {
        self.tiles * TILE
    }
}

/// A product: `rows × k` activations times one or two weights `[n, k]` of one type.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) dtype: DType,
    pub(super) weights: usize,
    pub(super) cut: Cut,
}

impl Product {
    /// A product cut for its number of rows: few rows leave the weights' bytes as the cost, so k is cut finely; many rows
    /// reuse them.
    pub(super) fn new(rows: usize, n: usize, k: usize, dtype: DType, weights: usize) -> Self {
        let row_groups = rows.div_ceil(4);
        let cut = match row_groups {
            1 => Cut { groups: 1, slices: 8, tiles: 1 },
            2 => Cut { groups: 2, slices: 8, tiles: 1 },
            3 | 4 => Cut { groups: 4, slices: 4, tiles: 2 },
            _ if weights > 1 => Cut { groups: 4, slices: 4, tiles: 2 },
            _ => Cut { groups: 8, slices: 2, tiles: 4 },
        };
        Product { rows, n, k, dtype, weights, cut }.fitted()
    }

    /// A product whose results are needed by the whole workgroup, which costs it workgroup memory.
    pub(super) fn for_head(rows: usize, n: usize, k: usize, dtype: DType) -> Self {
        let cut = match rows.div_ceil(4) {
            1 => Cut { groups: 1, slices: 8, tiles: 1 },
            2 => Cut { groups: 2, slices: 8, tiles: 1 },
            _ => Cut { groups: 4, slices: 2, tiles: 4 },
        };
        Product { rows, n, k, dtype, weights: 1, cut }.fitted()
    }

    /// Slices that would have no block become tiles.
    fn fitted(mut self) -> Self {
        while self.cut.slices > 1 && self.cut.slices / 2 >= self.blocks() {
            self.cut.slices /= 2;
            if self.cut.tiles < 4 {
                self.cut.tiles *= 2;
            }
        }
        self
    }

    pub(super) fn row_groups(&self) -> usize {
        self.rows.div_ceil(4)
    }

    pub(super) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    pub(super) fn quantized(&self) -> Option<QuantFormat> {
        if let DType::Quant(format) = self.dtype { Some(format) } else { None }
    }

    /// Blocks along k.
    pub(super) fn blocks(&self) -> usize {
        self.k.div_ceil(if self.quantized().is_some() { BLOCK } else { FLOAT_BLOCK })
    }

    /// Declares what the block of [`Product::text`] uses: sizes, workgroup memory and functions. The caller binds
    /// `activations`, `weight0` and perhaps `weight1`.
    pub(super) fn declare(&self, source: Source) -> Source {
        let Cut { groups, slices, tiles } = self.cut;
        let staged = slices * if self.quantized().is_some() { ACT_WORDS } else { FLOAT_BLOCK };
        let sums = (slices - 1) * self.weights * groups * self.cut.columns();
        let tile_bytes = dlx_runtime::cpu::tile_bytes(self.dtype, self.k).unwrap_or(0);
        let source = source
            .size("K", self.k)
            .size("N", self.n)
            .size("ROWS", self.rows)
            .size("ROW_GROUPS", self.row_groups())
            .size("GROUPS", groups)
            .size("SLICES", slices)
            .size("SIDE", tiles)
            .size("COLUMNS", self.cut.columns())
            .size("THREADS", self.cut.threads())
            .size("TILES", self.tiles())
            .size("TILE_WORDS", tile_bytes / 4)
            .size("BLOCKS", self.blocks())
            .size("STEPS", self.blocks().div_ceil(slices))
            .size("STAGED", staged)
            .size("POOL", (staged * groups).max(sums));
        match self.quantized() {
            Some(format) => {
                let weight_groups = BLOCK / format.group.map_or(BLOCK, |g| g as usize);
                let codes = BLOCK * usize::from(format.bits) / 8 * TILE / 4;
                let tables = if format.min { 2 } else { 1 };
                source
                    .size("ROW_VECTORS", self.blocks() * ACT_WORDS)
                    .size("CODE_WORDS", codes)
                    .size("TABLE_WORDS", weight_groups * TILE / 2)
                    .size("BLOCK_WORDS", codes + tables * weight_groups * TILE / 2)
                    .size("QUARTERS", 4 / weight_groups)
                    .text(&format!("const CORRECTION: i32 = {};\n", correction(format)))
                    .text(include_str!("shaders/product_int.wgsl"))
            }
            None => source.text(include_str!("shaders/product_float.wgsl")).text(match self.dtype {
                DType::F16 => include_str!("shaders/weight_f16.wgsl"),
                DType::BF16 => include_str!("shaders/weight_bf16.wgsl"),
                _ => include_str!("shaders/weight_f32.wgsl"),
            }),
        }
    }

    /// Statements that compute `acc{weight}_{group}`, a vector of four rows each, valid in slice 0. In scope: `thread`,
    /// `slice`, `row_group` and `base`, the first word of the thread's tile. They begin and end the use of `pool`.
    pub(super) fn text(&self) -> String {
        let mut t = String::new();
        for (w, r) in self.sums() {
            let _ = writeln!(t, "var acc{w}_{r} = vec4<f32>();");
        }
        match self.quantized() {
            Some(format) => self.integer(format, &mut t),
            None => self.floating(&mut t),
        }
        if self.cut.slices > 1 {
            self.add_slices(&mut t);
        }
        t
    }

    /// Weight and row group of each sum of a thread.
    fn sums(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let groups = self.cut.groups;
        (0..self.weights).flat_map(move |w| (0..groups).map(move |r| (w, r)))
    }

    fn integer(&self, format: QuantFormat, t: &mut String) {
        let (groups, weights) = (self.cut.groups, self.weights);
        let words = usize::from(format.bits);
        t.push_str("for (var step = 0u; step < STEPS; step++) {\nworkgroupBarrier();\n");
        t.push_str("for (var i = thread; i < STAGED; i += THREADS) {\n");
        t.push_str("let vector = min(step * STAGED + i, ROW_VECTORS - 1u);\n");
        for r in 0..groups {
            let _ = writeln!(
                t,
                "pool[i * GROUPS + {r}u] = activations[min(row_group + {r}u, ROW_GROUPS - 1u) * ROW_VECTORS + vector];"
            );
        }
        t.push_str("}\nworkgroupBarrier();\nlet block = step * SLICES + slice;\nif (block < BLOCKS) {\n");
        t.push_str("let first = base + block * BLOCK_WORDS;\nlet staged = slice * ACT_WORDS * GROUPS;\n");
        for r in 0..groups {
            let _ = writeln!(t, "let unit{r} = bitcast<vec4<f32>>(pool[staged + 36u * GROUPS + {r}u]);");
            let _ = writeln!(t, "var ones{r} = vec4<i32>();");
        }
        for (w, r) in self.sums() {
            let _ = writeln!(t, "var sum{w}_{r} = vec4<i32>();");
        }
        t.push_str("for (var quarter = 0u; quarter < 4u; quarter++) {\n");
        let _ = writeln!(t, "let at = first + quarter * {}u + column;", words * TILE);
        for w in 0..weights {
            for v in 0..words {
                let _ = writeln!(t, "let word{w}_{v} = weight{w}[at + {}u];", v * TILE);
            }
            for j in 0..8 {
                let code = if words == 8 {
                    format!("word{w}_{j}{}", if words == 8 { " ^ 0x80808080u" } else { "" })
                } else {
                    format!("(word{w}_{} >> {}u) & 0x0f0f0f0fu", j / 2, j % 2 * 4)
                };
                let _ = writeln!(t, "let code{w}_{j} = {code};");
            }
        }
        t.push_str("let from_act = staged + quarter * 8u * GROUPS;\n");
        for j in 0..8 {
            for r in 0..groups {
                let _ = writeln!(t, "let act{j}_{r} = pool[from_act + {}u];", j * groups + r);
                for w in 0..weights {
                    let _ = writeln!(t, "sum{w}_{r} = dots(sum{w}_{r}, code{w}_{j}, act{j}_{r});");
                }
            }
        }
        for r in 0..groups {
            let _ = writeln!(t, "ones{r} += bitcast<vec4<i32>>(pool[staged + (32u + quarter) * GROUPS + {r}u]);");
        }
        t.push_str("if ((quarter + 1u) % QUARTERS == 0u) {\nlet entry = first + CODE_WORDS + quarter / QUARTERS * 8u + column / 2u;\n");
        for w in 0..weights {
            let _ = writeln!(t, "let scale{w} = half_of(weight{w}[entry], column);");
            if format.min {
                let _ = writeln!(t, "let low{w} = half_of(weight{w}[entry + TABLE_WORDS], column);");
            }
        }
        for (w, r) in self.sums() {
            let _ = writeln!(
                t,
                "acc{w}_{r} = fma(vec4<f32>(sum{w}_{r} + CORRECTION * ones{r}), scale{w} * unit{r}, acc{w}_{r});"
            );
            if format.min {
                let _ = writeln!(t, "acc{w}_{r} = fma(vec4<f32>(ones{r}), low{w} * unit{r}, acc{w}_{r});");
            }
            let _ = writeln!(t, "sum{w}_{r} = vec4<i32>();");
        }
        for r in 0..groups {
            let _ = writeln!(t, "ones{r} = vec4<i32>();");
        }
        t.push_str("}\n}\n}\n}\n");
    }

    fn floating(&self, t: &mut String) {
        let groups = self.cut.groups;
        t.push_str("for (var step = 0u; step < STEPS; step++) {\nworkgroupBarrier();\n");
        t.push_str("for (var i = thread; i < STAGED; i += THREADS) {\nlet k = step * STAGED + i;\n");
        for r in 0..groups {
            let _ = writeln!(t, "pool[i * GROUPS + {r}u] = four_rows((row_group + {r}u) * 4u, k);");
        }
        t.push_str("}\nworkgroupBarrier();\nlet first = (step * SLICES + slice) * FLOAT_BLOCK;\n");
        t.push_str("let count = select(0u, min(FLOAT_BLOCK, K - first), first < K);\n");
        t.push_str("for (var i = 0u; i < count; i++) {\n");
        for w in 0..self.weights {
            let _ = writeln!(t, "let value{w} = element(weight{w}[word_of(base, first + i, column)], column);");
        }
        for r in 0..groups {
            let at = format!("((slice * FLOAT_BLOCK + i) * GROUPS + {r}u)");
            let _ = writeln!(t, "let act{r} = bitcast<vec4<f32>>(pool[{at}]);");
            for w in 0..self.weights {
                let _ = writeln!(t, "acc{w}_{r} = fma(act{r}, vec4<f32>(value{w}), acc{w}_{r});");
            }
        }
        t.push_str("}\n}\n");
    }

    fn add_slices(&self, t: &mut String) {
        let per_slice = self.weights * self.cut.groups;
        let at = |slice: &str, w: usize, r: usize| {
            format!("({slice} * {per_slice}u + {}u) * COLUMNS + thread % COLUMNS", w * self.cut.groups + r)
        };
        t.push_str("workgroupBarrier();\nif (slice > 0u) {\n");
        for (w, r) in self.sums() {
            let _ = writeln!(t, "pool[{}] = bitcast<vec4<u32>>(acc{w}_{r});", at("(slice - 1u)", w, r));
        }
        t.push_str(
            "}\nworkgroupBarrier();\nif (slice == 0u) {\nfor (var other = 0u; other < SLICES - 1u; other++) {\n",
        );
        for (w, r) in self.sums() {
            let _ = writeln!(t, "acc{w}_{r} += bitcast<vec4<f32>>(pool[{}]);", at("other", w, r));
        }
        t.push_str("}\n}\n");
    }
}

/// What is added to a group's sum of products, in sums of activations: the zero point of 4-bit codes, which are multiplied as
/// they are stored; 8-bit codes are multiplied with their top bit flipped, that is less 128.
fn correction(format: QuantFormat) -> i32 {
    let flipped = if format.bits == 8 { 128 } else { 0 };
    flipped - i32::from(zero_point(format))
}
