//! Compares the reference evaluator and the CPU artifact with the oracle, and prints how far they are apart:
//! `cargo test -p dlx-oracle -- --nocapture`.
#![allow(clippy::print_stdout, reason = "the report of a test program")]

use std::collections::BTreeMap;

use dlx_ir::{DType, OPS, Tensor, compute};
use dlx_oracle::cases::{self, Case, Rng};
use dlx_oracle::compare::{Worst, compare};
use dlx_oracle::value::Operand;
use dlx_oracle::{ops, states, weights};

/// Of each op: cases compared, and the worst.
#[derive(Default)]
struct Table(BTreeMap<&'static str, (usize, Worst)>);

impl Table {
    fn add(&mut self, op: &'static str, found: Worst, cases: usize) {
        let row = self.0.entry(op).or_default();
        *row = (row.0 + cases, row.1.and(found));
    }
}

/// What is wrong with a case, or how far its results are apart.
fn run(case: &Case) -> Result<Worst, String> {
    let args: Vec<&Tensor> = case.args.iter().collect();
    let got = compute(&case.op, &args).map_err(|e| format!("the evaluator: {e}"))?;
    let operands: Vec<Operand> = case.args.iter().map(Operand::new).collect();
    let oracle = ops::oracle(&case.op, &operands)?;
    if got.len() != oracle.len() {
        return Err(format!("{} results, the oracle's {}", got.len(), oracle.len()));
    }
    let mut worst = Worst::default();
    for (got, oracle) in got.iter().zip(&oracle) {
        worst = worst.and(compare(got, oracle, case.within)?);
    }
    Ok(worst)
}

/// A failure with the operands' types, and their elements where they are few.
fn told(case: &Case, error: &str) -> String {
    let types: Vec<_> = case.args.iter().map(|x| format!("{}{:?}", x.dtype, x.shape)).collect();
    let few: Vec<_> = case.args.iter().filter(|x| x.data.len() <= 16).map(|x| format!("{:?}", x.data)).collect();
    format!("{:?} of {}: {error}\n    {}", case.op, types.join(", "), few.join("\n    "))
}

#[test]
fn every_op_agrees() {
    let mut table = Table::default();
    let mut failed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in cases::all() {
        let name = case.op.name();
        match std::panic::catch_unwind(|| run(&case)) {
            Ok(Ok(worst)) => table.add(name, worst, 1),
            Ok(Err(error)) => failed.entry(name).or_default().push(told(&case, &error)),
            Err(_) => failed.entry(name).or_default().push(told(&case, "burn panics")),
        }
    }
    let mut rng = Rng(0x5eed_0002);
    for cache in states::caches() {
        match states::check_cache(cache, &mut rng) {
            Ok([written, attended]) => {
                table.add("kv_write", written.0, written.1);
                table.add("cached_attention", attended.0, attended.1);
            }
            Err(error) => failed.entry("cached_attention").or_default().push(error),
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        match states::check_rows(dtype, &mut rng) {
            Ok((worst, calls)) => {
                table.add("store_rows", worst, calls);
                table.add("take_rows", worst, calls);
            }
            Err(error) => failed.entry("take_rows").or_default().push(format!("{dtype}: {error}")),
        }
    }
    println!(
        "\n{:<8} {:>16} {:>14}   quantized, against the plain quantizer",
        "format", "squared error", "worse groups"
    );
    for format in weights::formats() {
        match weights::check(format, &mut rng) {
            Ok(found) => {
                let (worse, groups) = found.worse;
                println!(
                    "{:<8} {:>15.1}% {:>14}",
                    format.to_string(),
                    100.0 * found.squares,
                    format!("{worse}/{groups}")
                );
                table.add("quantize", found.worst, groups);
            }
            Err(error) => failed.entry("quantize").or_default().push(format!("{format}: {error}")),
        }
    }

    println!("\n{:<18} {:>6} {:>9} {:>12} {:>12}", "op", "cases", "elements", "absolute", "relative");
    for op in OPS {
        if let Some((cases, worst)) = table.0.get(op.name) {
            let (name, elements) = (op.name, worst.elements);
            println!("{name:<18} {cases:>6} {elements:>9} {:>12.2e} {:>12.2e}", worst.absolute, worst.relative);
        }
    }
    let mut all = String::new();
    for (op, list) in &failed {
        all += &format!(
            "\n{op}: {} cases differ, the first of them:\n  {}",
            list.len(),
            list[..list.len().min(4)].join("\n  ")
        );
    }
    assert!(failed.is_empty(), "{all}");
    let without: Vec<_> = OPS.iter().map(|op| op.name).filter(|name| !table.0.contains_key(name)).collect();
    assert!(without.is_empty(), "ops that nothing here was compared for: {without:?}; see cases.rs");
}

/// A wrong result must be seen: each op's first result with its last element moved.
#[test]
fn a_wrong_element_is_seen() {
    let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
    for case in cases::all() {
        if seen.contains_key(case.op.name()) {
            continue;
        }
        let args: Vec<&Tensor> = case.args.iter().collect();
        let mut got = compute(&case.op, &args).unwrap().remove(0);
        let operands: Vec<Operand> = case.args.iter().map(Operand::new).collect();
        let oracle = ops::oracle(&case.op, &operands).unwrap().remove(0);
        assert!(compare(&got, &oracle, case.within).is_ok(), "{:?}", case.op);
        moved(&mut got);
        seen.insert(case.op.name(), compare(&got, &oracle, case.within).is_err());
    }
    let blind: Vec<_> = seen.iter().filter(|(_, seen)| !**seen).collect();
    assert!(blind.is_empty() && seen.len() > 30, "{blind:?}");
}

fn moved(x: &mut Tensor) {
    use dlx_ir::Data;
    match &mut x.data {
        Data::F64(x) => x.iter_mut().next_back().into_iter().for_each(|v| *v += 1e-2),
        Data::F32(x) => x.iter_mut().next_back().into_iter().for_each(|v| *v += 1e-2),
        Data::I32(x) => x.iter_mut().next_back().into_iter().for_each(|v| *v += 1),
        Data::I64(x) => x.iter_mut().next_back().into_iter().for_each(|v| *v += 1),
        Data::Bool(x) => x.iter_mut().next_back().into_iter().for_each(|v| *v = !*v),
    }
}
