//! Recordings of decodes: every pass, what the model said of each row that was read, what was revealed and why.
//!
//! A recording is a text file of one JSON object per line: a head, for every pass a `pass` and, if it decided anything, a
//! `decision`, and an `end`. `docs/trace.md` describes it. [`Recorder`] makes one from the events of a call, [`Trace::read`]
//! reads it, [`rerun`] decodes again what it says.
//!
//! Invariant: numbers are written so that they read as the same bits, and what is no number is left out. A recording that
//! was read is complete, and no index in it lies outside what it records. Nothing here changes what is decoded.

mod read;
mod record;
mod rerun;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::AnyExecutor;
use crate::artifact::Artifact;
use crate::decode::{DecodePolicy, FinishReason, ForwardKind, Reads, Why};
use crate::manifest::Manifest;

pub use record::Recorder;
pub use rerun::{How, Next, Rerun, RerunError, rerun};

/// What the first line says of the format.
pub const FORMAT: &str = "dlxc-trace";
/// Version of the format that is written and read.
pub const VERSION: u32 = 1;

/// What was run, and on what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// [`Artifact::identity`].
    pub artifact: String,
    /// Compiler that made it, and its version.
    pub compiler: String,
    /// BLAKE3 of its tokenizer.
    pub tokenizer: String,
    /// Program that ran.
    pub target: String,
    /// The machine or graphics device.
    pub device: String,
    /// Instruction set, or variants of the kernels; with those that a self-test replaced.
    pub kernels: Vec<String>,
    /// Threads; nothing on a graphics device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

impl About {
    /// What a loaded artifact says of itself.
    pub fn of(artifact: &Artifact, manifest: &Manifest, executor: &AnyExecutor) -> Self {
        let (target, kernels, threads) = match executor {
            AnyExecutor::Cpu(cpu) => ("cpu", cpu.isa().to_string(), Some(cpu.threads())),
            #[cfg(feature = "wgpu")]
            AnyExecutor::Wgpu(wgpu) => ("wgpu", wgpu.adapter().tier.to_owned(), None),
        };
        About {
            artifact: artifact.identity(),
            compiler: manifest.compiler.clone(),
            tokenizer: manifest.model.tokenizer_hash.clone(),
            target: target.to_owned(),
            device: executor.device(),
            kernels: [vec![kernels], executor.replaced()].concat(),
            threads,
        }
    }
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the runtime that recorded.
    pub runtime: String,
    /// What was run, and on what.
    pub about: About,
    /// How it was decoded, the seed with it.
    pub policy: DecodePolicy,
    /// The prompt in tokens.
    pub prompt: Vec<i32>,
    /// Most tokens to return after the prompt.
    pub max_new: usize,
}

/// A forward pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fed {
    /// What it is for.
    pub kind: ForwardKind,
    /// Position of the first token that it feeds.
    pub start: usize,
    /// Rows that it feeds, hidden tokens left out.
    pub rows: usize,
    /// Positions whose cache rows it finds.
    pub past: usize,
    /// Cache row of the first row, which is also its rotary position.
    pub at: usize,
    /// Cache rows that it may attend.
    pub visible: usize,
    /// Sequences that it feeds: with guidance a second one, whose prompt is masked.
    pub spans: usize,
    /// What is read of its rows.
    pub reads: Reads,
    /// The rows that are read, counted from its first.
    pub looks: Vec<usize>,
}

/// What the model said of a position. A number that the policy does not ask for is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The position.
    pub position: usize,
    /// The token chosen for it: the most likely one, or the one that was drawn.
    pub token: i32,
    /// Probability of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prob: Option<f32>,
    /// That probability minus the one of the second most likely token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Entropy of the distribution in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f32>,
    /// Entropy of the row at temperature 1, before any filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_entropy: Option<f32>,
    /// How sure the model is, by the policy's measure; a lead has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// The position's own random number, where the rule or the measure is random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f32>,
    /// The random number of the token, where tokens are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draw: Option<f32>,
}

impl Row {
    /// Its numbers, by name.
    pub fn numbers(&self) -> [(&'static str, Option<f32>); 7] {
        [
            ("prob", self.prob),
            ("margin", self.margin),
            ("entropy", self.entropy),
            ("row_entropy", self.row_entropy),
            ("confidence", self.confidence),
            ("noise", self.noise),
            ("draw", self.draw),
        ]
    }
}

/// What was made of a pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// Why positions got their tokens.
    pub why: Why,
    /// How many positions the schedule gave to this step, with what earlier steps left.
    pub quota: usize,
    /// The same as a part of the masked positions, before rounding.
    pub part: f32,
    /// First position of the block, and the one after it.
    pub block: [usize; 2],
    /// What the model said of each position that was looked at.
    pub rows: Vec<Row>,
    /// Positions that got a token, in the order in which they were taken, and the tokens.
    pub revealed: Vec<(usize, i32)>,
    /// The block afterwards.
    pub canvas: Vec<i32>,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Why the call ended.
    pub finish: FinishReason,
    /// Tokens of the prompt that the caches held from a call before.
    pub held: usize,
    /// The tokens returned.
    pub ids: Vec<i32>,
    /// Text of every token that occurs.
    pub tokens: BTreeMap<i32, String>,
}

/// A line after the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// A pass that is about to run.
    Pass(Fed),
    /// What was made of the pass before.
    Decision(Decided),
    /// The call is over.
    End(End),
}

/// A pass and what was made of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The pass.
    pub pass: Fed,
    /// What was made of it, if it decided anything.
    pub decision: Option<Decided>,
    /// Line of the pass in its file; 0 when it comes from no file.
    #[serde(skip)]
    pub line: usize,
}

/// A recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What was decoded, and on what.
    pub head: Head,
    /// Its passes, in order.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: End,
}

/// A recording that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{}: {source}; check that the file exists and can be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not what was recorded.
    #[error("{}: line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
    /// It cannot be written.
    #[error("the trace cannot be written: {0}")]
    Write(#[from] io::Error),
    /// A number is infinite.
    #[error("{name} of position {position} is not finite, which a trace cannot hold: a weight is broken or too large")]
    NotFinite {
        /// Which number.
        name: &'static str,
        /// The position.
        position: usize,
    },
    /// A trace has one model.
    #[error("a trace cannot hold a speculative decode, which two models make: record it without speculation")]
    Speculative,
    /// Events came without the one that begins a call.
    #[error("a trace begins with a call: give the recorder every event of the call")]
    NotBegun,
}

#[cfg(test)]
mod tests;
