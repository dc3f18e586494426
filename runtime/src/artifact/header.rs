//! The first page of a `.dlxa` file: what a reader and a writer must agree on, byte for byte.
//!
//! ```text
//! offset  bytes  field (numbers little-endian)
//! 0       8      magic 89 'D' 'L' 'X' 'A' 0D 0A 1A
//! 8       4      format version
//! 12      4      number of sections, at most 42
//! 16      8      length of the file
//! 24      32     blake3 of this page with these 32 bytes zero
//! 56      8      zero
//! 64      96×n   table: name (48, zero-padded), offset (8), length (8), blake3 of the section (32)
//! …       …      zero up to 4096
//! ```
//!
//! Invariant: a page decodes only if encoding what was decoded gives the same page, and there is exactly one layout for a
//! list of sections: in table order, each at the next multiple of its alignment, zero bytes between. So every byte of a
//! file is covered by a check. Deliberately absent: compression, optional fields, time stamps, paths.

/// Length of the header page, and the alignment of the weights section.
pub const PAGE: usize = 4096;

/// Alignment of every other section and of each weight within the weights section.
pub const ALIGN: usize = 64;

/// The format that this build reads and writes.
pub const VERSION: u32 = 1;

/// Most sections that fit in the table.
pub const MAX_SECTIONS: usize = (PAGE - TABLE) / ENTRY;

/// Longest section name in bytes.
pub const MAX_NAME: usize = 48;

/// Name of the one memory-mapped section, the only one that opening does not read.
pub const WEIGHTS: &str = "weights";

pub(super) const MAGIC: [u8; 8] = *b"\x89DLXA\r\n\x1a";
const SUM: std::ops::Range<usize> = 24..56;
const TABLE: usize = 64;
const ENTRY: usize = 96;

/// One row of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name such as `manifest` or `program:cpu`.
    pub name: String,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// blake3 of the bytes.
    pub hash: [u8; 32],
}

impl Section {
    /// First byte after the section.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// Whether `name` can stand in a section table: 1 to [`MAX_NAME`] printable ASCII characters.
pub fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic())
}

/// Where a section called `name` starts when the one before it ends at `end`; `None` past the end of `u64`.
pub fn place(name: &str, end: u64) -> Option<u64> {
    end.checked_next_multiple_of(if name == WEIGHTS { PAGE as u64 } else { ALIGN as u64 })
}

/// The header page of a file with these sections, which must satisfy [`check_layout`].
///
/// # Errors
/// The sentence of [`check_layout`].
pub fn encode(sections: &[Section]) -> Result<[u8; PAGE], String> {
    let file_len = check_layout(sections)?;
    let mut page = [0; PAGE];
    let count = u32::try_from(sections.len()).expect("check_layout bounds the number of sections");
    page[..8].copy_from_slice(&MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page[12..16].copy_from_slice(&count.to_le_bytes());
    page[16..24].copy_from_slice(&file_len.to_le_bytes());
    for (section, row) in sections.iter().zip(page[TABLE..].chunks_exact_mut(ENTRY)) {
        row[..section.name.len()].copy_from_slice(section.name.as_bytes());
        row[48..56].copy_from_slice(&section.offset.to_le_bytes());
        row[56..64].copy_from_slice(&section.len.to_le_bytes());
        row[64..96].copy_from_slice(&section.hash);
    }
    let sum = blake3::hash(&page);
    page[SUM].copy_from_slice(sum.as_bytes());
    Ok(page)
}

/// Checks names and places of a section list and returns the length of the file.
///
/// # Errors
/// A sentence about the first section that is wrong.
pub fn check_layout(sections: &[Section]) -> Result<u64, String> {
    if sections.len() > MAX_SECTIONS {
        return Err(format!("{} sections, at most {MAX_SECTIONS} fit", sections.len()));
    }
    let mut end = PAGE as u64;
    for (i, section) in sections.iter().enumerate() {
        if !valid_name(&section.name) {
            return Err(format!("section {i} has a name that is not 1 to {MAX_NAME} printable ASCII characters"));
        }
        if sections.iter().take(i).any(|s| s.name == section.name) {
            return Err(format!("two sections are called `{}`", section.name));
        }
        let start = place(&section.name, end);
        if start != Some(section.offset) {
            return Err(format!("section `{}` is at byte {}, not where it belongs", section.name, section.offset));
        }
        end = section.end().ok_or_else(|| format!("section `{}` is longer than any file", section.name))?;
    }
    Ok(end)
}

/// What the first page says, once it is known to be consistent.
pub(super) struct Header {
    pub(super) file_len: u64,
    pub(super) sections: Vec<Section>,
}

/// Why a page is not a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadPage {
    Magic,
    Version(u32),
    Damaged(String),
}

pub(super) fn decode(page: &[u8; PAGE]) -> Result<Header, BadPage> {
    let (head, table) = page.split_at(TABLE);
    if !head.starts_with(&MAGIC) {
        return Err(BadPage::Magic);
    }
    let version = u32_at(head, 8);
    if version != VERSION {
        return Err(BadPage::Version(version));
    }
    let mut zeroed = *page;
    zeroed[SUM].fill(0);
    if blake3::hash(&zeroed) != blake3::Hash::from(bytes_at::<32>(head, SUM.start)) {
        return Err(BadPage::Damaged("the checksum of the header does not match".into()));
    }
    let count = u32_at(head, 12);
    let file_len = u64_at(head, 16);
    let count = usize::try_from(count)
        .ok()
        .filter(|&n| n <= MAX_SECTIONS)
        .ok_or_else(|| BadPage::Damaged(format!("{count} sections, at most {MAX_SECTIONS} fit")))?;
    let sections = table
        .chunks_exact(ENTRY)
        .take(count)
        .enumerate()
        .map(|(i, row)| {
            let name = row.get(..MAX_NAME).unwrap_or_default();
            let name = name.split(|&b| b == 0).next().unwrap_or_default();
            let name = std::str::from_utf8(name)
                .map_err(|_| BadPage::Damaged(format!("the name of section {i} is not text")))?;
            Ok(Section { name: name.into(), offset: u64_at(row, 48), len: u64_at(row, 56), hash: bytes_at(row, 64) })
        })
        .collect::<Result<Vec<_>, BadPage>>()?;
    let again = encode(&sections).map_err(BadPage::Damaged)?;
    if again != *page {
        return Err(BadPage::Damaged("unused header bytes are not zero or the file length is wrong".into()));
    }
    Ok(Header { file_len, sections })
}

/// `N` bytes at a constant offset of a fixed-size row.
fn bytes_at<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    row.get(at..).and_then(|r| r.first_chunk()).copied().expect("the offset is a constant within the row")
}

fn u32_at(row: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(row, at))
}

fn u64_at(row: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(row, at))
}
