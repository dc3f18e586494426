//! Artifacts as lists of sections, taken apart and signed again.

use dlx_runtime::artifact::{Artifact, PAGE, Section, encode, place};

/// Sections in file order.
pub(crate) type Sections = Vec<(String, Vec<u8>)>;

/// The sections of a file.
pub(crate) fn take_apart(artifact: &Artifact) -> Sections {
    let bytes = |s: &Section| artifact.section(&s.name).unwrap_or_default().to_vec();
    artifact.sections().iter().map(|s| (s.name.clone(), bytes(s))).collect()
}

/// A file of these sections with right checksums; `None` when no header can describe them.
pub(crate) fn sign(sections: &Sections) -> Option<Vec<u8>> {
    let (mut table, mut file) = (Vec::new(), vec![0; PAGE]);
    for (name, bytes) in sections {
        let offset = place(name, file.len() as u64)?;
        file.resize(usize::try_from(offset).ok()?, 0);
        let hash = *blake3::hash(bytes).as_bytes();
        table.push(Section { name: name.clone(), offset, len: bytes.len() as u64, hash });
        file.extend_from_slice(bytes);
    }
    let header = encode(&table).ok()?;
    file[..PAGE].copy_from_slice(&header);
    Some(file)
}

/// Sets a header's checksum to that of its bytes.
pub(crate) fn sign_header(file: &mut [u8]) {
    file[24..56].fill(0);
    let sum = blake3::hash(&file[..PAGE]);
    file[24..56].copy_from_slice(sum.as_bytes());
}

/// The section of that name.
pub(crate) fn section<'s>(sections: &'s mut Sections, name: &str) -> Option<&'s mut Vec<u8>> {
    sections.iter_mut().find(|(n, _)| n == name).map(|(_, bytes)| bytes)
}
