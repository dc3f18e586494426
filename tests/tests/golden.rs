//! Golden cases of the model families, on the reference executor.

use dlx_tests::golden::{Case, family, run_case, run_tokenizer, run_unit};
use dlx_tests::naive::Naive;

/// Runs `check` on the cases that `wanted` selects, prints the counts per kind and fails if there are none.
fn check(family_name: &str, wanted: impl Fn(&Case) -> bool, check: impl Fn(&Case) -> Result<(), String>) {
    let cases = family(family_name).unwrap();
    let (wanted, skipped): (Vec<_>, Vec<_>) = cases.into_iter().partition(wanted);
    assert!(!wanted.is_empty(), "{family_name}: no cases");
    let mut failures = Vec::new();
    let mut counts = std::collections::BTreeMap::new();
    for case in &wanted {
        match check(case) {
            Ok(()) => *counts.entry(case.kind().to_owned()).or_insert(0) += 1,
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    let skipped: Vec<&str> = skipped.iter().map(|case| case.name.as_str()).collect();
    println!("{family_name}: passed {counts:?}, {} failed, not run: {skipped:?}", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn on_naive(case: &Case, buckets: &[usize]) -> Result<(), String> {
    let block = case.block().ok_or("no block length")?;
    run_case(&mut Naive::load(&case.model_dir(), block, 128, buckets)?, case)
}

#[test]
fn sdar() {
    check("sdar", |case| case.exact() && case.kind() != "tokenizer", |case| on_naive(case, &[64]));
}

#[test]
fn sdar_prefilled_in_small_steps() {
    check("sdar", |case| case.exact() && case.kind() == "generate", |case| on_naive(case, &[case.block().unwrap()]));
}

#[test]
fn sdar_tokenizer() {
    check("sdar", |case| case.kind() == "tokenizer", run_tokenizer);
}

#[test]
fn units() {
    let checked = ["dream_sample_tokens", "num_transfer_tokens", "top_p_top_k_filters"];
    check("units", |case| checked.contains(&case.name.as_str()), run_unit);
}
