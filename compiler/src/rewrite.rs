//! An artifact written again with one section changed.
//!
//! Invariant: the destination either keeps what it held or holds a complete artifact, and every other section keeps its
//! checksum.

use std::path::Path;

use dlx_ir::Error;
use dlx_runtime::artifact::{self, Artifact};
use dlx_targets::artifact_writer::ArtifactWriter;

/// Writes `artifact` to `to`, which may be its own file, with `bytes` as section `name`; a new one comes last.
///
/// # Errors
/// When the artifact's weights are damaged, or the file cannot be written.
pub(crate) fn with_section(artifact: &Artifact, to: &Path, name: &str, bytes: &[u8]) -> Result<u64, Error> {
    let mut writer = ArtifactWriter::create(to)?;
    for section in artifact.sections() {
        let old = artifact.section(&section.name).unwrap_or_default();
        if section.name == artifact::WEIGHTS {
            writer.append(old)?;
            // What is copied must be what was signed before: a new checksum would vouch for whatever was read.
            writer.expect_weights(section.hash);
            continue;
        }
        writer.section(section.name.clone(), if section.name == name { bytes } else { old });
    }
    if artifact.section(name).is_none() {
        writer.section(name, bytes);
    }
    writer.finish()
}
