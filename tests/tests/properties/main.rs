//! Properties of the IR and the passes on random modules and random text.

mod generate;
mod meaning;
mod plan;
mod text;

use dlx_ir::{Error, Module, VerifiedModule};
use dlx_passes::{parse_pipeline, run_pipeline};
use proptest::prelude::*;

/// Choices of a random module of up to `n / 4` nodes or so.
fn choices(n: usize) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0..1000u32, 0..n)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// The module after a pipeline.
fn after(module: &Module, pipeline: &str) -> Result<Module, Error> {
    let module = VerifiedModule::new(module.clone()).map_err(Error::first_of)?;
    let steps = parse_pipeline(pipeline)?;
    let outcome = run_pipeline(module, &steps, &mut |_, _, _| Ok(()));
    outcome.map(|(module, _)| module.into_inner()).map_err(|f| f.error)
}
