//! Why a program cannot be loaded on the CPU.

/// A program that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The program asks for something this executor does not have.
    #[error("the program cannot run here: {0}; compile it again with this version")]
    Program(String),
    /// Buffers of this size cannot be had.
    #[error("not enough memory for {what} ({bytes} bytes): compile with a smaller --max-seq, or free memory")]
    Memory {
        /// What the buffer is for.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// `DLX_ISA` names something that this CPU lacks.
    #[error("{0}")]
    Isa(String),
    /// The thread pool could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
}

/// A program that this executor does not run.
pub(super) fn bad(what: String) -> LoadError {
    LoadError::Program(what)
}
