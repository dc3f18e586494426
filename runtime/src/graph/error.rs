//! Why a graph could not be loaded or run.

use crate::artifact::ArtifactError;
use std::path::PathBuf;

/// Why a graph could not be loaded or run. Every message says what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The file is no sound artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The artifact holds a text generator.
    #[error("{}: generates text and has no graphs to run; use `dlxc run`, or `Model::load` in an app", path.display())]
    Generator {
        /// The artifact.
        path: PathBuf,
    },
    /// A section does not hold what it should.
    #[error("{}: section `{section}` cannot be read: {reason}; compile it again with this version", path.display())]
    Section {
        /// The artifact.
        path: PathBuf,
        /// The section.
        section: String,
        /// What is wrong.
        reason: String,
    },
    /// The program is none that runs as a graph.
    #[error("the program cannot run as a graph: {0}")]
    Program(String),
    /// More memory than is allowed or there.
    #[error("{needed} bytes of weights and values are needed, {why}")]
    Memory {
        /// Bytes of all weights, and of the values that are live at one time in the largest graph.
        needed: u64,
        /// What stands against it, and what to do.
        why: String,
    },
    /// Inputs that no graph takes.
    #[error("{reason}\nhelp: the model has {entries}")]
    Input {
        /// The first input that is wrong, and what is expected.
        reason: String,
        /// What there is.
        entries: String,
    },
    /// An op has no result for these values.
    #[error("{node}: {reason}")]
    Node {
        /// The node's text.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The recorded results came out differently.
    #[error("self-test: {0}; copy or compile the artifact again, and report it if that does not help")]
    SelfTest(String),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}
