//! One array in NumPy's format: a magic, a version, a Python dictionary of type, order and shape, and the elements.

use std::io::{Read, Write};

use dlx_ir::{DType, Tensor};

use super::{Array, size};

/// First bytes of a file.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest dictionary that is read; those of plain arrays have a hundred bytes.
const MAX_HEADER: usize = 1 << 16;
/// Most dimensions, as in NumPy.
const MAX_RANK: usize = 64;

/// Names of the types, without the byte order.
const TYPES: [(&str, DType); 12] = [
    ("f8", DType::F64),
    ("f4", DType::F32),
    ("f2", DType::F16),
    ("i8", DType::I64),
    ("i4", DType::I32),
    ("i2", DType::I16),
    ("i1", DType::I8),
    ("u8", DType::U64),
    ("u4", DType::U32),
    ("u2", DType::U16),
    ("u1", DType::U8),
    ("b1", DType::Bool),
];

/// Reads the type and shape of an array.
pub(super) fn header(file: &mut impl Read) -> Result<(DType, Vec<usize>), String> {
    let short = |e: std::io::Error| format!("cannot be read: {e}");
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(short)?;
    if !start.starts_with(MAGIC) {
        return Err("is no array of NumPy".into());
    }
    let mut len = [0; 4];
    let field = if start[6] == 1 { 2 } else { 4 };
    file.read_exact(&mut len[..field]).map_err(short)?;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if !(1..=3).contains(&start[6]) || len > MAX_HEADER {
        return Err(format!("has a header of version {} and {len} bytes, which is not NumPy's", start[6]));
    }
    let mut text = vec![0; len];
    file.read_exact(&mut text).map_err(short)?;
    dictionary(&String::from_utf8_lossy(&text))
}

/// The elements behind the header.
pub(super) fn data(file: &mut impl Read, array: &Array) -> Result<Tensor, String> {
    let size = size(array.dtype, &array.shape)?;
    let mut bytes = Vec::new();
    let failed = |e: std::io::Error| format!("cannot be read: {e}");
    // Room is made as the bytes come, not as the header says.
    file.by_ref().take(size as u64).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() < size {
        return Err(format!("ends after {} of {size} bytes", bytes.len()));
    }
    if file.read(&mut [0]).map_err(failed)? != 0 {
        return Err(format!("goes on after its {size} bytes"));
    }
    Tensor::from_le_bytes(array.dtype, &array.shape, &bytes)
}

/// Writes an array.
pub(super) fn write(out: &mut impl Write, t: &Tensor) -> std::io::Result<()> {
    let name = TYPES.iter().find(|(_, dtype)| *dtype == t.dtype).map(|(name, _)| *name);
    let name = name.ok_or_else(|| std::io::Error::other(format!("NumPy has no {}", t.dtype)))?;
    let order = if t.dtype.size() == Some(1) { '|' } else { '<' };
    let mut shape: String = t.shape.iter().map(|n| format!("{n}, ")).collect();
    if t.shape.len() > 1 {
        shape.truncate(shape.len() - 2);
    } else {
        shape.truncate(shape.trim_end().len());
    }
    let mut text = format!("{{'descr': '{order}{name}', 'fortran_order': False, 'shape': ({shape}), }}");
    // The elements begin at a multiple of 64.
    let before = MAGIC.len() + 4;
    text.extend(std::iter::repeat_n(' ', (before + text.len() + 1).next_multiple_of(64) - before - text.len() - 1));
    text.push('\n');
    let len = u16::try_from(text.len()).map_err(std::io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    out.write_all(&t.to_le_bytes())
}

/// What `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }` says.
fn dictionary(text: &str) -> Result<(DType, Vec<usize>), String> {
    let bad = || format!("has a header that is not NumPy's: {}", text.trim().chars().take(80).collect::<String>());
    let field = |key: &str| {
        let at = text.find(&format!("'{key}'")).ok_or_else(bad)?;
        let rest = text[at + key.len() + 2..].trim_start().strip_prefix(':').ok_or_else(bad)?;
        Ok::<&str, String>(rest.trim_start())
    };
    let descr = field("descr")?;
    let descr = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map(|(d, _)| d);
    let descr = descr.ok_or("is a structured array; save plain arrays")?;
    let (order, name) = descr.split_at_checked(1).ok_or_else(bad)?;
    let known = TYPES.iter().find(|(known, _)| *known == name);
    let dtype = match (order, known) {
        (">", Some((_, dtype))) if dtype.size() != Some(1) => {
            return Err("is big-endian; save x.astype(x.dtype.newbyteorder('<'))".into());
        }
        ("<" | ">" | "|" | "=", Some((_, dtype))) => *dtype,
        _ => return Err(format!("has elements of type '{descr}'; use floats, integers or bools of a fixed size")),
    };
    let shape = field("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).map(|(s, _)| s).ok_or_else(bad)?;
    let sizes = shape.split(',').map(str::trim).filter(|s| !s.is_empty());
    let shape = sizes.map(|s| s.parse::<usize>().map_err(|_| bad())).collect::<Result<Vec<_>, _>>()?;
    if shape.len() > MAX_RANK {
        return Err(bad());
    }
    let long = shape.iter().filter(|n| **n > 1).count() > 1;
    if long && !field("fortran_order")?.starts_with("False") {
        return Err("is stored by columns; save numpy.ascontiguousarray(x)".into());
    }
    size(dtype, &shape)?;
    Ok((dtype, shape))
}
