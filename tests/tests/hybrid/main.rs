//! Drafting and verifying on the trained tiny checkpoints: four families of drafters for one autoregressive model, and one
//! that verifies itself.
//!
//! `DLX_HYBRID_PROMPTS=500` asks every pair so many questions, `DLX_HYBRID_DRAWS=100000` draws so often; the defaults are a
//! sample of that.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "test program")]

mod controller;
mod greedy;
mod law;
mod refused;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::session::{Report, Request, Session};
use dlx_runtime::{LoadOptions, Model};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;

/// The drafters.
const DRAFTERS: [&str; 4] = ["sdar-tiny", "llada-tiny", "dream-tiny", "fast-dllm-v2-tiny"];
/// The verifier.
const VERIFIER: &str = "qwen2-tiny";

fn path(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(model)
}

fn load_from(path: &Path, target: &str, threads: usize) -> Model {
    let options = CompileOptions { targets: vec![target.into()], max_seq: Some(256), ..CompileOptions::default() };
    let cpu = CpuOptions { threads, ..CpuOptions::default() };
    let load = LoadOptions { device: Some("0".into()), cpu, ..LoadOptions::default() };
    compiled::load(path, &options, &load).unwrap()
}

fn load(model: &str, target: &str, threads: usize) -> Model {
    load_from(&path(model), target, threads)
}

fn session(model: &str, target: &str, threads: usize) -> Session {
    Session::new(load(model, target, threads)).unwrap()
}

fn answer(session: &mut Session, request: &Request) -> Report {
    session.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A number from the environment.
fn wanted<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
