//! Kernels over a grid of shapes in every tier, and plans of whole programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use dlx_ir::{DType, Id, Mask, Module, VerifiedModule, parse};
use dlx_runtime::cpu::packed_bytes;
use dlx_runtime::wgpu::plan::{Binding, Feature, Plan, Profile, Range};

use super::attention::Attention;
use super::kernels::{self, Epilogue, Linear, Pointwise};
use super::lower::{Arg, lower};
use super::memory::place;
use super::product::Product;
use super::{Job, plan, source};

fn profile(name: &str) -> Profile {
    super::profile(name).unwrap()
}

/// Every weight format of the layout.
const FORMATS: &[&str] = &[
    "f32", "f16", "bf16", "q8", "q8m", "q8g32", "q8g64", "q8g128", "q8g32m", "q8g64m", "q8g128m", "q4g32", "q4g64",
    "q4g128", "q4g32m", "q4g64m", "q4g128m", "l16",
];

#[track_caller]
fn valid(job: &Job) {
    assert_eq!(job.variants.last().unwrap().0, source::PLAIN, "{}: the last variant runs everywhere", job.role);
    for (features, source) in &job.variants {
        let text = source.text().unwrap_or_else(|e| panic!("{} {} {features:?}: {e}", job.role, job.shape));
        if let Err(e) = source::check(&text, features, &profile("plain")) {
            let numbered: Vec<_> = text.lines().enumerate().map(|(i, l)| format!("{:4} {l}", i + 1)).collect();
            panic!("{} {} {features:?}: {e}\n{}", job.role, job.shape, numbered.join("\n"));
        }
    }
}

#[test]
fn products_are_valid_for_every_format_and_number_of_rows() {
    for dtype in FORMATS {
        let dtype: DType = dtype.parse().unwrap();
        for rows in [1, 3, 4, 7, 16, 21, 64, 512] {
            for (n, k) in [(48, 64), (2048, 2048), (100, 333), (6144, 4096)] {
                for (weights, epilogue) in [(1, Epilogue::Store), (1, Epilogue::Add), (2, Epilogue::SwiGlu)] {
                    let product = Product::new(rows, n, k, dtype, weights);
                    let linear = Linear { product, epilogue, bias: rows != 4, first: 0, stride: n };
                    valid(&kernels::linear(&linear));
                }
                let head = Product::for_head(rows, n, k, dtype);
                valid(&kernels::head_part(&head, 0, 0, n.div_ceil(kernels::head_chunk(&head)), Some(5)));
            }
            valid(&kernels::embed(rows, 512, 64, dtype, 0));
        }
    }
}

#[test]
fn attention_is_valid_for_every_cache_head_and_mask() {
    for cache in [DType::F32, DType::F16, DType::BF16] {
        for head_dim in [2, 6, 32, 64, 80, 128, 256] {
            for (rows, heads, kv_heads) in [(1, 2, 2), (4, 16, 8), (32, 14, 2), (512, 8, 1)] {
                for mask in [Mask::Full, Mask::Causal, Mask::BlockCausal(4)] {
                    let a = Attention { rows, heads, kv_heads, head_dim, max_seq: 4096, cache, mask };
                    assert_eq!(a.refused(), None);
                    valid(&a.job());
                    valid(&a.merge());
                }
            }
        }
        valid(&kernels::kv_write(4, 64, 128, cache));
    }
    let a =
        Attention { rows: 1, heads: 1, kv_heads: 1, head_dim: 512, max_seq: 8, cache: DType::F32, mask: Mask::Full };
    assert!(a.refused().unwrap().contains("512"));
}

#[test]
fn the_other_kernels_are_valid() {
    for rows in [1, 4, 512] {
        for norm in [None, Some(1e-6)] {
            valid(&kernels::quantize(rows, 300, norm));
            valid(&kernels::rope(rows, 256, 64, norm));
        }
        valid(&kernels::rms_norm(rows, 300, 100, 1e-5));
        valid(&kernels::rope_table(rows, 64, 1e6));
        valid(&kernels::take_rows(rows, 70));
        valid(&kernels::store_rows(rows, 70));
        valid(&kernels::head_final(rows, 1187, Some(0)));
        use Pointwise::{Add, Copy, Mul, Scale, Silu, SiluMul};
        for op in [Add, Copy, Mul, Scale(0.5), Silu, SiluMul] {
            valid(&kernels::pointwise(op, rows, 6144));
        }
    }
}

#[test]
fn tiers_differ_where_they_help() {
    let a = Attention {
        rows: 4,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        max_seq: 4096,
        cache: DType::F16,
        mask: Mask::Causal,
    };
    let job = a.job();
    let needs: Vec<_> = job.variants.iter().map(|v| v.0).collect();
    use Feature::{F16, Subgroups};
    assert_eq!(needs, [&[F16, Subgroups][..], &[Subgroups], &[F16], &[]]);
    let texts: Vec<_> = job.variants.iter().map(|v| v.1.text().unwrap()).collect();
    for (i, text) in texts.iter().enumerate() {
        assert!(!texts[..i].contains(text));
    }
    // A variant asks for what it uses: without its feature it is refused.
    for ((features, _), text) in job.variants.iter().zip(&texts) {
        for missing in features.iter() {
            let rest: Vec<_> = features.iter().copied().filter(|f| f != missing).collect();
            assert!(source::check(text, &rest, &profile("plain")).is_err(), "{missing:?} is not used");
        }
    }
}

#[test]
fn a_template_that_is_not_told_all_is_an_error_with_its_line() {
    let error = source::Source::new(source::PLAIN, "kv_write").text().unwrap_err();
    assert!(error.contains("undefined") && error.contains("(in cache.wgsl:2)"), "{error}");
    let error = source::Source::new(source::PLAIN, "missing").text().unwrap_err();
    assert!(error.contains("missing.wgsl"), "{error}");
}

#[test]
fn a_shader_beyond_the_limits_is_refused_with_the_numbers() {
    let text = "var<workgroup> a: array<f32, 8192>;\n@compute @workgroup_size(64)\nfn main() { a[0] = 1.0; }\n";
    let error = source::check(text, &[], &profile("plain")).unwrap_err();
    assert!(error.contains("32768 bytes of workgroup storage") && error.contains("allows 16384"), "{error}");
    assert_eq!(source::check(text, &[], &profile("desktop")), Ok(()));
    let error = source::check("@compute @workgroup_size(512) fn main() {}", &[], &profile("plain")).unwrap_err();
    assert!(error.contains("512 invocations") && error.contains("256"), "{error}");
}

/// Sizes of a made-up decoder.
#[derive(Clone, Copy)]
struct Model {
    dtype: &'static str,
    cache: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mlp: usize,
    vocab: usize,
    max_seq: usize,
    shard: Option<usize>,
}

const TINY: Model = Model {
    dtype: "q4g32",
    cache: "f16",
    hidden: 64,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    mlp: 176,
    vocab: 512,
    max_seq: 128,
    shard: None,
};

impl Model {
    /// The emitted program of two layers, with entries of these rows.
    fn program(&self, steps: &[usize], heads: &[usize]) -> Module {
        let Model { dtype, cache, hidden, heads: q_heads, kv_heads, head_dim, mlp, vocab, max_seq, shard } = *self;
        let mut text = "module @m {\n".to_owned();
        let mut offset = 0;
        let (q, kv) = (q_heads * head_dim, kv_heads * head_dim);
        let mut weight = |name: &str, n: usize, k: usize| {
            let bytes = packed_bytes(dtype.parse().unwrap(), n, k).unwrap();
            let shard = shard.filter(|s| *s < n).map_or(String::new(), |s| format!(", shard={s}"));
            let at = format!("stored {{offset={offset}, bytes={bytes}{shard}}}");
            offset += bytes;
            format!("  weight @{name}: {dtype}[{n}, {k}] @n16 = {at}\n")
        };
        for (name, n, k) in [("embed", vocab, hidden), ("head", vocab, hidden)] {
            text += &weight(name, n, k);
        }
        let matrices = [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)];
        let mlps = [("gate", mlp, hidden), ("up", mlp, hidden), ("down", hidden, mlp)];
        for (name, n, k) in matrices.into_iter().chain(mlps) {
            text += &weight(name, n, k);
        }
        let offset = offset;
        for (i, (name, n)) in [("n1", hidden), ("n2", head_dim)].into_iter().enumerate() {
            let at = offset + i * 4 * hidden.next_multiple_of(16);
            let _ = writeln!(text, "  weight @{name}: f32[{n}] = stored {{offset={at}, bytes={}}}", n * 4);
        }
        for layer in 0..2 {
            for c in ["k", "v"] {
                let _ = writeln!(text, "  state @{c}{layer}: {cache}[{max_seq}, {kv_heads}, {head_dim}] @wgpu.rows");
            }
        }
        let most = steps.iter().max().unwrap();
        let _ = writeln!(text, "  state @hidden: f32[{most}, {hidden}]");
        for m in steps {
            let _ = writeln!(
                text,
                "  graph @step_{m}(%ids: i32[{m}], %pos: i32[{m}], %spans: i32[64, 5]) -> () {{
    %x = embed %ids, @embed: f32[{m}, {hidden}]
    %table = rope_table %pos {{theta=1e6, head_dim={head_dim}}}: f32[{m}, {head_dim}]"
            );
            let mut x = "x".to_owned();
            for l in 0..2 {
                let _ = writeln!(
                    text,
                    "    %q{l}, %k{l}, %v{l} = linear %{x}, @q, @k, @v, @n1 {{n=3, norm=1e-6}}: f32[{m}, {q}], f32[{m}, {kv}], f32[{m}, {kv}]
    %qr{l} = rope %q{l}, %table, @n2 {{head_dim={head_dim}, norm=1e-6}}: f32[{m}, {q}]
    %kr{l} = rope %k{l}, %table, @n2 {{head_dim={head_dim}, norm=1e-6}}: f32[{m}, {kv}]
    kv_write %kr{l}, %v{l}, @k{l}, @v{l}, %spans
    %a{l} = cached_attention %qr{l}, @k{l}, @v{l}, %spans {{head_dim={head_dim}, mask=block_causal:4}}: f32[{m}, {q}]
    %s{l} = linear %a{l}, @o, %{x} {{post=add}}: f32[{m}, {hidden}]
    %m{l} = linear %s{l}, @gate, @up, @n1 {{n=2, norm=1e-6, post=swiglu}}: f32[{m}, {mlp}]
    %o{l} = linear %m{l}, @down, %s{l} {{post=add}}: f32[{m}, {hidden}]"
                );
                x = format!("o{l}");
            }
            let _ = writeln!(text, "    store_rows %{x}, @hidden\n    return\n  }}");
        }
        for r in heads {
            let _ = writeln!(
                text,
                "  graph @head_{r}(%rows: i32[{r}]) -> (i32[{r}], f32[{r}, 3]) {{
    %x = take_rows @hidden, %rows: f32[{r}, {hidden}]
    %best, %stats = head_stats %x, @head, @n1 {{norm=1e-6, ban=7}}: i32[{r}], f32[{r}, 3]
    return %best, %stats
  }}
  graph @logits_{r}(%rows: i32[{r}]) -> (f32[{r}, {vocab}]) {{
    %x = take_rows @hidden, %rows: f32[{r}, {hidden}]
    %logits = linear %x, @head, @n1 {{norm=1e-6}}: f32[{r}, {vocab}]
    return %logits
  }}"
            );
        }
        text += "}\n";
        parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    fn plan(&self, steps: &[usize], heads: &[usize], profile: &Profile) -> Result<Plan, dlx_ir::Error> {
        let module = self.program(steps, heads);
        let text = module.to_string();
        plan(&VerifiedModule::new(module).unwrap_or_else(|e| panic!("{}\n{text}", e[0])), profile)
    }
}

/// Ranges of one buffer that a dispatch binds.
fn arena_ranges(bindings: &[Binding]) -> Vec<(u64, u64)> {
    let ranges = bindings.iter().filter_map(|b| if let Binding::Arena(r) = b { Some(*r) } else { None });
    ranges.map(|r| (r.offset, r.offset + r.bytes)).collect()
}

#[test]
fn programs_of_every_format_have_plans() {
    for dtype in FORMATS {
        for cache in ["f32", "f16", "bf16"] {
            let model = Model { dtype, cache, ..TINY };
            let plan = model.plan(&[4, 16], &[4], &profile("plain")).unwrap_or_else(|e| panic!("{dtype} {cache}: {e}"));
            assert_eq!((plan.max_seq, plan.vocab, plan.entries.len()), (128, 512, 4));
            assert!(plan.entries[0].first_layer.is_some() && plan.entries[2].first_layer.is_none());
            assert!(plan.entries[0].values.len() > 4 && plan.entries[2].values.is_empty());
        }
    }
}

/// Plays an entry through: who wrote each line of the arena last, and whether it is still there when it is read.
fn play(model: &Model, rows: usize) {
    let module = model.program(&[rows], &[rows]);
    for graph in &module.graphs {
        let lowered = lower(&module, graph, rows).unwrap();
        let places = place(graph, &lowered.temporaries);
        let mut owner: BTreeMap<u64, Arg> = BTreeMap::new();
        let range = |arg: Arg| match arg {
            Arg::Value(v) => places.values[v.index()],
            Arg::Temporary(t) => Some(places.temporaries[t]),
            Arg::Weight(_) | Arg::State(_) => None,
        };
        let lines = |r: Range| r.offset / 256..(r.offset + r.bytes).div_ceil(256);
        let mut born: Vec<Arg> = Vec::new();
        for step in &lowered.steps {
            for arg in step.args.iter().copied() {
                let Some(r) = range(arg) else { continue };
                assert!(r.offset + r.bytes <= places.bytes);
                if born.contains(&arg) {
                    assert!(lines(r).all(|l| owner[&l] == arg), "{} of {}: overwritten", step.job.role, graph.name);
                } else {
                    born.push(arg);
                    owner.extend(lines(r).map(|l| (l, arg)));
                }
            }
        }
        assert!(!born.is_empty());
    }
}

#[test]
fn nothing_is_overwritten_before_it_is_read() {
    for dtype in ["f32", "q4g32", "q8m", "l16"] {
        for rows in [1, 4, 33] {
            for shard in [None, Some(64)] {
                play(&Model { dtype, shard, ..TINY }, rows);
            }
        }
    }
}

#[test]
fn shards_cover_a_weight_and_fit() {
    let whole = TINY.plan(&[4], &[4], &profile("plain")).unwrap();
    let cut = Model { shard: Some(192), ..TINY }.plan(&[4], &[4], &profile("plain")).unwrap();
    let dispatches = |plan: &Plan, name: &str| {
        let entry = plan.entries.iter().find(|e| e.name == name).unwrap();
        entry.dispatches.len()
    };
    // 512 rows are three shards: two more dispatches for the embedding, the head's parts and the logits.
    for name in ["step_4", "head_4", "logits_4"] {
        assert_eq!(dispatches(&cut, name), dispatches(&whole, name) + 2, "{name}");
    }
    let bytes = |plan: &Plan| plan.weights().iter().map(|r| r.bytes).sum::<u64>();
    assert_eq!(bytes(&cut), bytes(&whole));
    let ends = cut.weights();
    let mut ends = ends.iter().peekable();
    while let (Some(a), Some(b)) = (ends.next(), ends.peek()) {
        assert!(a.offset + a.bytes <= b.offset, "shards do not overlap");
    }
    let small = Profile { max_binding: 17_408, name: "small".into(), ..profile("plain") };
    let error = TINY.plan(&[4], &[4], &small).unwrap_err().to_string();
    assert!(error.contains("@embed") && error.contains("17408") && error.contains("shard-weights"), "{error}");
}

#[test]
fn what_does_not_fit_is_an_error_with_the_number() {
    let fails = |model: Model, steps: &[usize], profile: &Profile, parts: &[&str]| {
        let error = model.plan(steps, &[4], profile).unwrap_err().to_string();
        assert!(parts.iter().all(|p| error.contains(p)), "{error}");
    };
    let plain = profile("plain");
    let long = Model { max_seq: 1 << 22, ..TINY };
    fails(long, &[4], &plain, &["state @k0", "536870912", "134217728", "--max-seq"]);
    fails(TINY, &[4], &Profile { max_workgroups: 3, ..plain.clone() }, &["workgroups", "allows 3"]);
    fails(TINY, &[4], &Profile { max_storage_buffers: 2, ..plain.clone() }, &["binds 3 buffers", "allows 2"]);
    fails(TINY, &[4], &Profile { max_invocations: 32, ..plain.clone() }, &["invocations", "32"]);
    fails(TINY, &[4], &Profile { max_buffer: 4096, ..plain }, &["activations need", "allows 4096"]);
}

#[test]
fn nothing_that_one_dispatch_binds_overlaps() {
    let plan = TINY.plan(&[4, 16, 64], &[4, 64], &profile("plain")).unwrap();
    for entry in &plan.entries {
        for dispatch in &entry.dispatches {
            let mut ranges = arena_ranges(&dispatch.bindings);
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "{}: {:?}", entry.name, dispatch);
            assert!(ranges.iter().all(|r| r.0 % 256 == 0 && r.1 <= plan.arena));
        }
    }
}

#[test]
fn portable_ops_beyond_rows_of_f32_are_refused() {
    let lowered = |nodes: &str| {
        let text = format!(
            "module @m {{
               weight @w: f32[8, 4] @n16 = stored {{offset=0, bytes=256}}
               weight @one: f32[8, 1] @n16 = stored {{offset=256, bytes=64}}
               graph @step_4(%ids: i32[4], %pos: i32[4], %spans: i32[64, 5]) -> () {{
                 %x = embed %ids, @w: f32[4, 4]
                 %c = embed %ids, @one: f32[4, 1]
                 {nodes}
                 return
               }}
             }}"
        );
        let module = parse(&text).unwrap();
        dlx_ir::verify(&module).unwrap();
        lower(&module, &module.graphs[0], 4).map(drop).map_err(|e| e.message)
    };
    lowered("%z = add %x, %x: f32[4, 4]").unwrap();
    for (nodes, message) in [
        ("%z = add %x, %c: f32[4, 4]", "rows do not repeat"),
        ("%z = mul %c, %x: f32[4, 4]", "rows do not repeat"),
        ("%z = add %ids, %pos: i32[4]", "not f32"),
        ("%z = concat %x, %x {axis=1}: f32[4, 8]", "does not run `concat`"),
        ("%z = transpose %x {perm=[0, 1]}: f32[4, 4]", "does not run `transpose`"),
    ] {
        let error = lowered(nodes).unwrap_err();
        assert!(error.contains(message), "{nodes}: {error}");
    }
}
