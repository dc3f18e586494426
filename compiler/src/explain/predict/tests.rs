//! Counts and times of a small program, computed by hand from limits with round numbers.

use dlx_ir::parse;

use super::super::limits::tests::round;
use super::*;

/// One layer: hidden 64, two heads and one KV head of 32, vocabulary 256, int4 weights and f16 caches. A tile of 16 outputs
/// by 128 inputs has 1024 bytes of codes and 128 of scales.
const TEXT: &str = "module @m {
  weight @norm: f32[64] = stored {offset=0, bytes=256}
  weight @table: q4g32[256, 64] @n16 = stored {offset=0, bytes=18432}
  weight @q: q4g32[64, 64] @n16 = stored {offset=0, bytes=4608}
  weight @k: q4g32[32, 64] @n16 = stored {offset=0, bytes=2304}
  weight @v: q4g32[32, 64] @n16 = stored {offset=0, bytes=2304}
  weight @gate: q4g32[64, 64] @n16 = stored {offset=0, bytes=4608}
  weight @up: q4g32[64, 64] @n16 = stored {offset=0, bytes=4608}
  state @kv.k: f16[128, 1, 32]
  state @kv.v: f16[128, 1, 32]
  state @hidden: f32[4, 64]
  graph @step_4(%ids: i32[4], %pos: i32[4], %spans: i32[64, 5]) -> () {
    %x = embed %ids, @table: f32[4, 64]
    %l0.q, %l0.k, %l0.v = linear %x, @q, @k, @v, @norm {n=3, norm=1e-6}: f32[4, 64], f32[4, 32], f32[4, 32]
    kv_write %l0.k, %l0.v, @kv.k, @kv.v, %spans
    %l0.attn = cached_attention %l0.q, @kv.k, @kv.v, %spans {head_dim=32, mask=block_causal:4}: f32[4, 64]
    %l0.mlp = linear %l0.attn, @gate, @up {n=2, post=swiglu}: f32[4, 64]
    store_rows %l0.mlp, @hidden
    return
  }
  graph @head_4(%rows: i32[4]) -> (i32[4], f32[4, 3]) {
    %y = take_rows @hidden, %rows: f32[4, 64]
    %best, %stats = head_stats %y, @table: i32[4], f32[4, 3]
    return %best, %stats
  }
}";

fn span(rows: usize, at: usize) -> SpanRows {
    SpanRows { rows: 0..rows, slot: 0, at, from: 0, visible: at + rows }
}

fn works(module: &Module, kind: EntryKind, rows: usize, spans: &[SpanRows]) -> Vec<Work> {
    let program = Program::new(module).unwrap();
    let call = Call { graph: program.graph(kind, rows).unwrap(), rows, spans };
    call.graph.nodes.iter().map(|n| program.work(&call, n).unwrap()).collect()
}

#[test]
fn counts_are_those_of_the_mathematics() {
    let module = parse(TEXT).unwrap();
    let work = |weight_bytes, cache_bytes, value_bytes, operations| Work {
        weight_bytes,
        cache_bytes,
        value_bytes,
        operations,
    };
    // Rows of 64 numbers take 256 bytes, of 32 take 128; a cache row of keys and values takes 2 · 64.
    let row = 256;
    let found = works(&module, EntryKind::Step, 4, &[span(4, 60)]);
    let wanted = [
        // An id, 32 bytes of codes and two scales of a table row, and the row.
        work(0, 0, 4 * (4 + 36 + row), 0),
        work(9216, 0, 4 * (row + row + 128 + 128), 2 * 4 * 64 * 128),
        work(0, 4 * 128, 4 * (128 + 128), 0),
        // Four rows see 64 cache rows each, with 2 · 64 multiply-adds; the cache rows are read once.
        work(0, 64 * 128, 4 * 2 * row, 2 * 4 * 64 * 128),
        work(9216, 0, 4 * 2 * row, 2 * 4 * 64 * 128),
        work(0, 0, 4 * 2 * row, 0),
    ];
    assert_eq!(found, wanted);
    let found = works(&module, EntryKind::Head, 3, &[]);
    // Of a row: what is gathered, its number, and what is made; then what is read, and what the head says.
    assert_eq!(found, [work(0, 0, 3 * (4 + 2 * row), 0), work(18432, 0, 3 * (row + 4 + 12), 2 * 3 * 256 * 64)]);
    let mut sum = found[0];
    sum.add(&found[1]);
    assert_eq!((sum.bytes(), sum.operations), (18432 + 3 * (4 + 2 * row + row + 16), 98304));
    assert!((found[1].intensity() - 98304.0 / (18432.0 + 816.0)).abs() < 1e-12);
}

#[test]
fn times_are_counts_over_limits() {
    let module = parse(TEXT).unwrap();
    let program = Program::new(&module).unwrap();
    let machine = round();
    let limits = machine.of(2).unwrap();
    let spans = [span(1, 63)];
    let call = Call { graph: program.graph(EntryKind::Step, 1).unwrap(), rows: 1, spans: &spans };
    // Weights of the step and the head, and 64 rows of the one layer's cache.
    let set = 2 * 9216 + 18432 + 64 * 128;
    assert_eq!(program.working_set(&spans), set);
    let times =
        |set| call.graph.nodes.iter().map(|n| program.estimate(limits, &call, n, set).unwrap()).collect::<Vec<_>>();
    let near = |found: f64, nanoseconds: f64| {
        assert!((found * 1e9 / nanoseconds - 1.0).abs() < 1e-9, "{} {nanoseconds}", found * 1e9);
    };
    let cached = times(set);
    // One nanosecond per number that is made, gathered or written.
    for (node, numbers) in [(0, 64.0), (2, 64.0), (5, 64.0)] {
        near(cached[node].seconds, numbers);
        assert_eq!(cached[node].bound(), Bound::Compute);
    }
    // 128 · 64 elements at 200 GOPS, 64 numbers prepared in 0.5 ns each, two regions of 2 µs.
    near(cached[1].seconds, 81.92 + 32.0 + 4000.0);
    near(cached[1].compute, 81.92 + 32.0);
    near(cached[1].memory, 92.16);
    near(cached[1].overhead, 4000.0);
    assert_eq!(cached[1].bound(), Bound::Overhead);
    // 64 keys · 128 multiply-adds at 25 per nanosecond, 10 ns for each of two heads, one region.
    near(cached[3].seconds, 64.0 * 128.0 / 25.0 + 20.0 + 2000.0);
    // SwiGLU makes 64 numbers.
    near(cached[4].seconds, 81.92 + 32.0 + 64.0 + 4000.0);
    // From memory, products and attention are slower, and what is read takes ten times as long.
    let streamed = times(1 << 30);
    near(streamed[1].seconds, 5.0 * 81.92 + 32.0 + 4000.0);
    near(streamed[1].memory, 921.6);
    near(streamed[3].seconds, 64.0 * 128.0 / 12.5 + 20.0 + 2000.0);
    near(streamed[0].seconds, 64.0);
    let rows = [span(4, 0)];
    let head = Call { graph: program.graph(EntryKind::Head, 4).unwrap(), rows: 4, spans: &rows };
    let found = program.estimate(limits, &head, &head.graph.nodes[1], set).unwrap();
    // Between one row at 200 GOPS and 512 at 2000 lie times of an element of 0.01 and 0.512 ns.
    let element = 0.01 + (0.512 - 0.01) * 3.0 / 511.0;
    near(found.seconds, 256.0 * 64.0 * element + 4.0 * 64.0 * 0.5 + 4.0 * 256.0 + 4000.0);
}

#[test]
fn what_takes_longest_is_the_bound() {
    let estimate = |memory, compute, overhead| Estimate { seconds: 1.0, memory, compute, overhead };
    assert_eq!(estimate(3.0, 2.0, 1.0).bound(), Bound::Memory);
    assert_eq!(estimate(2.0, 3.0, 1.0).bound(), Bound::Compute);
    assert_eq!(estimate(2.0, 3.0, 4.0).bound(), Bound::Overhead);
}

#[test]
fn another_compile_has_other_bytes() {
    let module = parse(TEXT).unwrap();
    let q8 = DType::Quant("q8".parse().unwrap());
    let other = changed(&module, Some(q8), Some(DType::CACHE_Q8)).unwrap();
    // Int8: 2048 bytes of codes and 32 of scales in a tile of 128 inputs, rounded up to 64.
    let found = works(&other, EntryKind::Step, 4, &[span(4, 60)]);
    assert_eq!(found[1].weight_bytes, (128 / 16) * 2112);
    assert_eq!((found[2].cache_bytes, found[3].cache_bytes), (4 * 72, 64 * 72));
    assert_eq!(found[1].operations, 2 * 4 * 64 * 128);
    // Vectors stay what they are, and so does a module of which nothing is changed.
    assert_eq!(other.weights[other.weight("norm").unwrap()].ty, module.weights[module.weight("norm").unwrap()].ty);
    assert_eq!(changed(&module, None, None).unwrap(), module);
    assert!(changed(&module, Some(DType::I8), None).unwrap_err().to_string().contains("cannot be stored as i8"));
}

#[test]
fn limits_that_are_missing_name_the_node() {
    let module = parse(&TEXT.replace("q4g32", "q4g64")).unwrap();
    let program = Program::new(&module).unwrap();
    let (machine, spans) = (round(), [span(4, 0)]);
    let call = Call { graph: program.graph(EntryKind::Step, 4).unwrap(), rows: 4, spans: &spans };
    let error = program.estimate(machine.of(2).unwrap(), &call, &call.graph.nodes[1], 1).unwrap_err().to_string();
    assert!(error.contains("%l0.q") && error.contains("q4g64 weights") && error.contains("--measure"), "{error}");
    assert!(Program::new(&Module::new("empty")).is_err());
}
