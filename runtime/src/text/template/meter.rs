//! What one rendering may make, and what is left of it.

use minijinja::{Error, ErrorKind, State};

/// Bytes that one rendering may make or walk, a value counting as [`VALUE`]. A conversation of a megabyte costs a few.
const BYTES: usize = 128 << 20;

/// Bytes that a value counts for besides its text.
pub(super) const VALUE: usize = 64;

/// Most values in one container, nested ones included.
pub(super) const VALUES: usize = 1 << 20;

/// Deepest nesting of values that is looked into.
pub(super) const DEPTH: usize = 100;

struct Left(usize);

/// Pays for `bytes`.
///
/// # Errors
/// There is not as much left.
pub(super) fn pay(state: &mut State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let left = state.get_or_insert_extension(Left(BYTES));
    match left.0.checked_sub(bytes) {
        Some(rest) => {
            left.0 = rest;
            Ok(())
        }
        None => Err(refused("the template makes more text than a prompt can need")),
    }
}

/// What is left.
pub(super) fn left(state: &mut State<'_, '_>) -> usize {
    state.get_or_insert_extension(Left(BYTES)).0
}

pub(super) fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}
