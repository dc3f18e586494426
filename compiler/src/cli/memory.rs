//! Memory certificates as a table.

use dlx_runtime::memory::{Certificate, When};

use super::table::{self, Align};

/// A row per part, and the sum of each certificate: what is always held, and the more of loading and running.
pub fn memory_table(certificates: &[Certificate]) -> String {
    let mut rows = Vec::new();
    for certificate in certificates {
        let row = |name: &str, when: &str, bytes: u64| {
            vec![certificate.target.clone(), name.to_owned(), when.to_owned(), bytes.to_string(), table::bytes(bytes)]
        };
        rows.extend(certificate.parts.iter().map(|part| {
            let when = match part.when {
                When::Always => "always",
                When::Loading => "loading",
                When::Running => "running",
            };
            row(&part.name, when, part.bytes)
        }));
        let name = format!("at most, on {} threads", certificate.threads);
        rows.push(row(&name, "", certificate.total));
    }
    let columns = [
        ("target", Align::Left),
        ("memory", Align::Left),
        ("when", Align::Left),
        ("bytes", Align::Right),
        ("", Align::Right),
    ];
    table::table(&columns, &rows)
}
