//! Kernels that do not run in their fastest variant: what is told of them.

use super::plan::Variant;

/// Kernels of a role that do not run in their fastest variant although the device has its features.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Replaced {
    /// Role of the kernels.
    pub role: String,
    /// Features that the variant in use needs; empty for the plain one.
    pub now: String,
    /// Features that the variant left out needs.
    pub instead_of: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for Replaced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Replaced { role, now, instead_of, reason } = self;
        write!(f, "{role} kernels: {now} instead of {instead_of}, {reason}")
    }
}

/// The tier of a variant.
pub(super) fn needs(variant: &Variant) -> String {
    let names: Vec<String> = variant.needs.iter().map(|f| format!("{f:?}").to_lowercase()).collect();
    if names.is_empty() { "plain".into() } else { names.join("+") }
}
