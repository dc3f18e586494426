//! What the compiler knows about devices, and how a compiled model becomes a file.

pub mod artifact_writer;
