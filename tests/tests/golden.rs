//! Golden cases of the model families, on the reference executor.

use dlx_tests::golden::{Case, check_family, run_case, run_tokenizer, run_unit};
use dlx_tests::naive::Naive;

fn on_naive(case: &Case, buckets: &[usize]) -> Result<(), String> {
    let block = case.block().ok_or("no block length")?;
    run_case(&mut Naive::load(&case.model_dir(), block, 128, buckets)?, case)
}

#[test]
fn sdar() -> Result<(), String> {
    let wanted = |case: &Case| case.exact() && case.kind() != "tokenizer";
    println!("{}", check_family("sdar", wanted, |case| on_naive(case, &[64]))?);
    Ok(())
}

#[test]
fn sdar_prefilled_block_by_block() -> Result<(), String> {
    let wanted = |case: &Case| case.exact() && case.kind() == "generate";
    let check = |case: &Case| on_naive(case, &[case.block().ok_or("no block length")?]);
    println!("{}", check_family("sdar", wanted, check)?);
    Ok(())
}

#[test]
fn sdar_tokenizer() -> Result<(), String> {
    println!("{}", check_family("sdar", |case| case.kind() == "tokenizer", run_tokenizer)?);
    Ok(())
}

#[test]
fn units() -> Result<(), String> {
    let checked = ["dream_sample_tokens", "num_transfer_tokens", "top_p_top_k_filters"];
    println!("{}", check_family("units", |case| checked.contains(&case.name.as_str()), run_unit)?);
    Ok(())
}
