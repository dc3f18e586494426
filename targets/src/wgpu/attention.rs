//! Attention over the cache: scores, a streaming softmax and the weighted values, in one pass over the keys.
//!
//! A workgroup serves one key head and a few pairs of a row and a query head, so keys and values are read once for all
//! query heads that share them. First a thread takes a key, then it takes two features of the values. When rows and heads
//! alone would leave a device idle, the keys are split and a second kernel puts the parts together.

use std::fmt::Write;

use dlx_ir::{DType, Mask};
use dlx_runtime::wgpu::plan::Feature;

use super::Job;
use super::source::{F16, F16_SUBGROUPS, Features, Fold, PLAIN, SUBGROUPS, Source, reduction, thread};

/// Threads of a workgroup, and keys per round.
const THREADS: usize = 128;
/// Workgroups that keep a device busy.
const ENOUGH: usize = 64;
/// Fewest cache rows for which a part of the keys is worth a workgroup of its own.
const SPLIT_ROWS: usize = 512;

/// Sizes of an attention node.
#[derive(Clone, Copy)]
pub(super) struct Attention {
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) max_seq: usize,
    pub(super) cache: DType,
    pub(super) mask: Mask,
}

impl Attention {
    /// Query heads per key head.
    fn per(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn pairs(&self) -> usize {
        self.rows * self.per()
    }

    /// Vectors of four pairs per workgroup.
    fn groups(&self) -> usize {
        if self.pairs() > 4 && self.head_dim <= 128 { 2 } else { 1 }
    }

    fn tiles(&self) -> usize {
        self.pairs().div_ceil(4 * self.groups())
    }

    /// Into how many parts the keys are split.
    pub(super) fn splits(&self) -> usize {
        (ENOUGH / (self.tiles() * self.kv_heads)).clamp(1, (self.max_seq / SPLIT_ROWS).max(1))
    }

    /// Bytes of the parts.
    pub(super) fn part_bytes(&self) -> u64 {
        (self.splits() * self.kv_heads * self.pairs() * (self.head_dim + 2) * 4) as u64
    }

    /// Why these sizes cannot run, if they cannot.
    pub(super) fn refused(&self) -> Option<String> {
        if self.head_dim > 2 * THREADS || !self.head_dim.is_multiple_of(2) {
            return Some(format!("head_dim {} is odd or above {}", self.head_dim, 2 * THREADS));
        }
        None
    }

    fn shape(&self) -> String {
        let Attention { rows, heads, kv_heads, head_dim, cache, .. } = self;
        format!("{rows} rows, {heads}/{kv_heads} heads x {head_dim}, {cache} cache")
    }

    /// Bindings: call, q, keys, values, out (or parts).
    pub(super) fn job(&self) -> Job {
        let tiers: &[Features] = match self.cache {
            DType::F16 if self.head_dim.is_multiple_of(4) => &[F16_SUBGROUPS, SUBGROUPS, F16, PLAIN],
            _ => &[SUBGROUPS, PLAIN],
        };
        let groups = [self.tiles(), self.kv_heads, self.splits()];
        Job::new("attention", self.shape(), groups, tiers, |features| self.source(features))
    }

    /// Bindings: call, parts, out.
    pub(super) fn merge(&self) -> Job {
        Job::new("attention", format!("{}, merge", self.shape()), [self.heads, self.rows, 1], &[PLAIN], |_| {
            Source::new(PLAIN)
                .write("parts", "f32")
                .write("out", "f32")
                .size("HEADS", self.heads)
                .size("PER", self.per())
                .size("PAIRS", self.pairs())
                .size("HEAD_DIM", self.head_dim)
                .size("SPLITS", self.splits())
                .size("SPLIT_WORDS", self.kv_heads * self.pairs() * (self.head_dim + 2))
                .text(include_str!("shaders/attention_merge.wgsl"))
        })
    }

    fn source(&self, features: Features) -> Source {
        let groups = self.groups();
        let slices = THREADS / (self.head_dim / 2);
        let keys = Keys::of(self, features);
        let mask = match self.mask {
            Mask::Full => "return 0xffffffffu;".to_owned(),
            Mask::Causal => "return row + 1u;".to_owned(),
            Mask::BlockCausal(b) => format!("return (row / {b}u + 1u) * {b}u;"),
        };
        Source::new(features)
            .write("q", "f32")
            .write("k_cache", keys.element)
            .write("v_cache", keys.value_element)
            .write("out", "f32")
            .size("ROWS", self.rows)
            .size("HEADS", self.heads)
            .size("KV_HEADS", self.kv_heads)
            .size("PER", self.per())
            .size("PAIRS", self.pairs())
            .size("HEAD_DIM", self.head_dim)
            .size("MAX_SEQ", self.max_seq)
            .size("GROUPS", groups)
            .size("PAIRS_HERE", 4 * groups)
            .size("SPLITS", self.splits())
            .size("SLICES", slices)
            .size("THREADS", THREADS)
            .size("TILE_VECTORS", self.head_dim * groups)
            .size("WEIGHT_VECTORS", THREADS * groups)
            .float("SCALE", 1.0 / (self.head_dim as f32).sqrt())
            .text(thread(features))
            .text(&reduction(features, Fold::Max, "vec4<f32>", THREADS))
            .text(&reduction(features, Fold::Sum, "vec4<f32>", THREADS))
            .text(&format!("fn mask_end(row: u32) -> u32 {{\n    {mask}\n}}\n"))
            .text(include_str!("shaders/attention.wgsl"))
            .text(&self.rounds(&keys))
            .text(&self.add_slices())
            .text(if self.splits() > 1 {
                include_str!("shaders/attention_part.wgsl")
            } else {
                include_str!("shaders/attention_out.wgsl")
            })
    }

    /// The loop over keys. Sums live in named vectors, one per four pairs.
    fn rounds(&self, keys: &Keys) -> String {
        let mut t = String::new();
        let groups = self.groups();
        for g in 0..groups {
            let _ = writeln!(t, "let ends{g} = key_ends(first_pair + {}u);", 4 * g);
            let _ = writeln!(t, "var top{g} = vec4<f32>(LOWEST);\nvar total{g} = vec4<f32>();");
            let _ = writeln!(t, "var even{g} = vec4<f32>();\nvar odd{g} = vec4<f32>();");
        }
        let all = if groups == 2 { "max(ends0, ends1)" } else { "ends0" };
        let _ = writeln!(t, "let all_ends = {all};");
        t.push_str(
            "let stop = max(max(all_ends.x, all_ends.y), max(all_ends.z, all_ends.w));
let rounds = (max(stop, call.from_row) - call.from_row + THREADS - 1u) / THREADS;
let here = (rounds + SPLITS - 1u) / SPLITS * THREADS;
let begin = call.from_row + group.z * here;
let end = min(stop, begin + here);
let slice = thread.index / (HEAD_DIM / 2u);
let features = thread.index % (HEAD_DIM / 2u);
workgroupBarrier();
for (var first = begin; first < end; first += THREADS) {
let key = first + thread.index;
",
        );
        for g in 0..groups {
            let _ = writeln!(t, "var score{g} = vec4<f32>();");
        }
        let loads = self.head_dim / keys.per_load;
        let _ = writeln!(t, "if (key < end) {{\nlet at = (key * KV_HEADS + group.y) * {loads}u;");
        let _ = writeln!(t, "for (var c = 0u; c < {loads}u; c++) {{\nlet part = k_cache[at + c];");
        t.push_str(&keys.unpack);
        for i in 0..keys.per_load {
            for g in 0..groups {
                let at = format!("(c * {}u + {i}u) * GROUPS + {g}u", keys.per_load);
                let _ = writeln!(t, "score{g} = fma(vec4<f32>({}), tile[{at}], score{g});", keys.numbers[i]);
            }
        }
        t.push_str("}\n}\n");
        for g in 0..groups {
            let _ = writeln!(
                t,
                "let seen{g} = vec4<u32>(key) < min(ends{g}, vec4<u32>(end));
let high{g} = max(top{g}, workgroup_max(select(vec4<f32>(LOWEST), score{g}, seen{g}), thread));
let shrink{g} = exp(top{g} - high{g});
let weight{g} = select(vec4<f32>(), exp(score{g} - high{g}), seen{g});
total{g} = fma(total{g}, shrink{g}, workgroup_sum(weight{g}, thread));
top{g} = high{g};
even{g} *= shrink{g};
odd{g} *= shrink{g};"
            );
        }
        for g in 0..groups {
            let _ = writeln!(t, "weights[thread.index * GROUPS + {g}u] = weight{g};");
        }
        t.push_str("workgroupBarrier();\nif (slice < SLICES) {\nlet count = min(THREADS, end - first);\n");
        t.push_str("for (var i = slice; i < count; i += SLICES) {\n");
        let _ = writeln!(t, "let at = ((first + i) * KV_HEADS + group.y) * {}u;", self.head_dim / keys.value_per_load);
        let _ = writeln!(t, "let value = {};", keys.value);
        for g in 0..groups {
            let _ = writeln!(t, "let share{g} = weights[i * GROUPS + {g}u];");
            let _ = writeln!(t, "even{g} = fma(share{g}, vec4<f32>(value.x), even{g});");
            let _ = writeln!(t, "odd{g} = fma(share{g}, vec4<f32>(value.y), odd{g});");
        }
        t.push_str("}\n}\n}\nif (thread.index == 0u) {\n");
        for g in 0..groups {
            let _ = writeln!(t, "tops[{g}] = top{g};\ntotals[{g}] = total{g};");
        }
        t.push_str("}\n");
        t
    }

    fn add_slices(&self) -> String {
        let mut add = String::new();
        for g in 0..self.groups() {
            for (i, name) in ["even", "odd"].into_iter().enumerate() {
                let at = format!("(features * 2u + {i}u) * GROUPS + {g}u");
                let _ = writeln!(add, "tile[{at}] = select(tile[{at}], vec4<f32>(), turn == 0u) + {name}{g};");
            }
        }
        include_str!("shaders/attention_end.wgsl").replace("ADD", &add)
    }
}

/// How caches are read.
struct Keys {
    /// Element of the keys' array.
    element: &'static str,
    /// Features per element.
    per_load: usize,
    /// Statements that unpack `part`.
    unpack: String,
    /// Its features.
    numbers: Vec<String>,
    value_element: &'static str,
    value_per_load: usize,
    /// The two features of a thread in the row at `at`.
    value: &'static str,
}

impl Keys {
    fn of(a: &Attention, features: Features) -> Self {
        let components = ["x", "y", "z", "w"];
        if features.contains(&Feature::F16) {
            return Keys {
                element: "vec4<f16>",
                per_load: 4,
                unpack: "let wide = vec4<f32>(part);\n".into(),
                numbers: components.map(|c| format!("wide.{c}")).into(),
                value_element: "vec2<f16>",
                value_per_load: 2,
                value: "vec2<f32>(v_cache[at + features])",
            };
        }
        let (per_word, value) = match a.cache {
            DType::F16 => (2, "unpack2x16float(v_cache[at + features])"),
            DType::BF16 => (
                2,
                "bitcast<vec2<f32>>(vec2<u32>(v_cache[at + features] << 16u, v_cache[at + features] & 0xffff0000u))",
            ),
            _ => (1, "bitcast<vec2<f32>>(vec2<u32>(v_cache[at + features * 2u], v_cache[at + features * 2u + 1u]))"),
        };
        let wide = a.head_dim.is_multiple_of(4 * per_word);
        let words: Vec<String> =
            if wide { components.map(|c| format!("part.{c}")).into() } else { vec!["part".into()] };
        let mut unpack = String::new();
        let mut numbers = Vec::new();
        for (i, word) in words.iter().enumerate() {
            match a.cache {
                DType::F16 => {
                    let _ = writeln!(unpack, "let both{i} = unpack2x16float({word});");
                    numbers.extend([format!("both{i}.x"), format!("both{i}.y")]);
                }
                DType::BF16 => {
                    numbers.push(format!("bitcast<f32>({word} << 16u)"));
                    numbers.push(format!("bitcast<f32>({word} & 0xffff0000u)"));
                }
                _ => numbers.push(format!("bitcast<f32>({word})")),
            }
        }
        Keys {
            element: if wide { "vec4<u32>" } else { "u32" },
            per_load: numbers.len(),
            unpack,
            numbers,
            value_element: "u32",
            value_per_load: per_word,
            value,
        }
    }
}
