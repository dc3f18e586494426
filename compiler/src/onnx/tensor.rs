//! The values of one tensor as packed little-endian bytes, wherever the file keeps them.
//!
//! Invariant: a [`RawTensor`] has exactly the bytes that its type and dimensions ask for, and no product of its dimensions
//! overflows. What is allocated is bounded by the values that the file holds, never by what the dimensions claim.

use std::borrow::Cow;
use std::path::Path;

use dlx_ir::Error;

use super::elem::{ElemType, Field};
use super::external::{self, External};
use super::header::{Header, bad, place, shape};
use super::proto::TensorProto;

/// A tensor's type, shape and values.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// What its elements are; never [`ElemType::String`].
    pub elem: ElemType,
    /// Dimensions, outermost first; none for a scalar.
    pub dims: Vec<usize>,
    /// Row-major little-endian values. Elements of fewer than 8 bits lie packed, the first in the lowest bits. Bytes that
    /// come from the file may be unaligned.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> RawTensor<'a> {
    /// The values of a tensor of the model at `path`, whose external files are `files`.
    ///
    /// # Errors
    /// When type, dimensions and values do not fit each other, or the values are strings.
    pub(super) fn read(path: &Path, files: &'a External, t: &'a TensorProto) -> Result<RawTensor<'a>, Error> {
        let header = Header::of(path, t)?;
        if header.elem == ElemType::String {
            return Err(Error::new(place(path, t), "holds strings where numbers are needed")
                .help("remove text processing from the model: dlxc compiles what comes after the tokenizer"));
        }
        let filled = filled(t);
        if t.segment.is_some() {
            return Err(bad(path, t, "is one segment of a larger tensor".into()));
        }
        let bytes = if external::is_external(t) {
            external::only_external(path, t, &filled)?;
            Cow::Borrowed(files.bytes(path, t, &header)?)
        } else {
            match (t.raw_data.as_deref().filter(|raw| !raw.is_empty() || filled.is_empty()), filled.as_slice()) {
                (Some(raw), []) if raw.len() == header.bytes => Cow::Borrowed(raw),
                (Some(raw), []) => {
                    let message = format!("has {} bytes, {} need {}", raw.len(), shape(&header), header.bytes);
                    return Err(bad(path, t, message));
                }
                (None, []) if header.count == 0 => Cow::Borrowed(&[][..]),
                (None, []) => return Err(bad(path, t, format!("has no values, {} need some", shape(&header)))),
                (None, [(field, len)]) => {
                    check_field(path, t, &header, *field, *len)?;
                    Cow::Owned(pack(path, t, &header)?)
                }
                (Some(_), [(field, _), ..]) => {
                    return Err(bad(path, t, format!("has values twice: in raw_data and in {}", field.name())));
                }
                (None, [(a, _), (b, _), ..]) => {
                    return Err(bad(path, t, format!("has values twice: in {} and in {}", a.name(), b.name())));
                }
            }
        };
        Ok(RawTensor { elem: header.elem, dims: header.dims, bytes })
    }
}

/// The strings of a tensor of strings.
///
/// # Errors
/// When it is none, has not as many strings as its dimensions ask for, or one is not UTF-8.
pub(super) fn strings<'a>(path: &Path, t: &'a TensorProto) -> Result<Vec<&'a str>, Error> {
    let header = Header::of(path, t)?;
    if header.elem != ElemType::String {
        return Err(bad(path, t, format!("holds {} where strings are needed", header.elem)));
    }
    if external::is_external(t) || t.raw_data.is_some() {
        return Err(bad(path, t, "holds strings as bytes, and ONNX has no such form".into()));
    }
    if t.string_data.len() != header.count {
        return Err(bad(
            path,
            t,
            format!("has {} strings, {} need {}", t.string_data.len(), shape(&header), header.count),
        ));
    }
    let text =
        |s: &'a Vec<u8>| std::str::from_utf8(s).map_err(|_| bad(path, t, "has a string that is not UTF-8".into()));
    t.string_data.iter().map(text).collect()
}

/// The fields that hold values, but `raw_data`, and how many.
fn filled(t: &TensorProto) -> Vec<(Field, usize)> {
    let all = [
        (Field::Float, t.float_data.len()),
        (Field::Int32, t.int32_data.len()),
        (Field::Int64, t.int64_data.len()),
        (Field::Double, t.double_data.len()),
        (Field::Uint64, t.uint64_data.len()),
        (Field::String, t.string_data.len()),
    ];
    all.into_iter().filter(|(_, len)| *len > 0).collect()
}

/// Fails unless `len` values in `field` are what the header asks for.
fn check_field(path: &Path, t: &TensorProto, header: &Header, field: Field, len: usize) -> Result<(), Error> {
    let wanted = header.elem.field();
    if field != wanted {
        let message =
            format!("has {len} values in {}, those of {} belong in {}", field.name(), header.elem, wanted.name());
        return Err(bad(path, t, message));
    }
    let want = match header.elem {
        // Numbers of two parts.
        ElemType::Complex64 | ElemType::Complex128 => header.count.checked_mul(2),
        // One entry is one byte.
        elem if elem.bits() < 6 => Some(header.bytes),
        _ => Some(header.count),
    };
    if want != Some(len) {
        let want = want.map_or_else(|| "more".into(), |n| n.to_string());
        return Err(bad(path, t, format!("has {len} values in {}, {} need {want}", field.name(), shape(header))));
    }
    Ok(())
}

/// The values of the typed field that the element type uses, as raw data would hold them.
fn pack(path: &Path, t: &TensorProto, header: &Header) -> Result<Vec<u8>, Error> {
    let out_of_range = |v: &dyn std::fmt::Display, field: Field| {
        bad(path, t, format!("has {v} in {}, which is no {}", field.name(), header.elem))
    };
    let mut out = Vec::with_capacity(header.bytes);
    match header.elem.field() {
        Field::Float => t.float_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Field::Double => t.double_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Field::Int64 => t.int64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Field::Uint64 if header.elem == ElemType::Uint64 => {
            t.uint64_data.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        Field::Uint64 => {
            for v in &t.uint64_data {
                out.extend(u32::try_from(*v).map_err(|_| out_of_range(v, Field::Uint64))?.to_le_bytes());
            }
        }
        Field::Int32 if matches!(header.elem, ElemType::Float6E2m3 | ElemType::Float6E3m2) => {
            // One element an entry here, a little-endian bit stream in raw data.
            let (mut bits, mut have) = (0u32, 0);
            for v in &t.int32_data {
                let v6 = u32::try_from(*v).ok().filter(|v| *v < 64).ok_or_else(|| out_of_range(v, Field::Int32))?;
                bits |= v6 << have;
                have += 6;
                while have >= 8 {
                    out.push(bits.to_le_bytes()[0]);
                    bits >>= 8;
                    have -= 8;
                }
            }
            out.extend((have > 0).then_some(bits.to_le_bytes()[0]));
        }
        Field::Int32 => {
            for v in &t.int32_data {
                let le = match header.elem {
                    ElemType::Int32 => Some(v.to_le_bytes()),
                    ElemType::Int16 => i16::try_from(*v).ok().map(|_| v.to_le_bytes()),
                    ElemType::Int8 => i8::try_from(*v).ok().map(|_| v.to_le_bytes()),
                    ElemType::Bool => (0..=1).contains(v).then_some(v.to_le_bytes()),
                    // Two's complement in a byte may have been written signed or not.
                    ElemType::Int4 | ElemType::Int2 => (-128..=255).contains(v).then_some(v.to_le_bytes()),
                    elem if elem.bits() == 16 => u16::try_from(*v).ok().map(|_| v.to_le_bytes()),
                    _ => u8::try_from(*v).ok().map(|_| v.to_le_bytes()),
                };
                let [a, b, c, d] = le.ok_or_else(|| out_of_range(v, Field::Int32))?;
                match header.elem.bits() {
                    32 => out.extend([a, b, c, d]),
                    16 => out.extend([a, b]),
                    _ => out.push(a),
                }
            }
        }
        Field::String => return Err(bad(path, t, "holds strings where numbers are needed".into())),
    }
    Ok(out)
}
