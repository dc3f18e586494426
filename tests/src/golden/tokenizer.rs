//! placeholder
pub fn run_tokenizer(_: &super::Case) -> Result<(), String> { Err("x".into()) }
