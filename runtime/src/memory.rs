//! The memory certificate: what a process that runs an artifact holds at most, part by part, and the limit on it.
//!
//! Here is what a certificate is and how a limit is kept; [`count`] makes one of a program or plan.

pub mod count;

use serde::{Deserialize, Serialize};

/// Names of the parts that grow with slots.
const CACHES: &str = "caches";
const DECODING: &str = "decoding";

/// When a part is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// From the load on.
    Always,
    /// While the artifact is loaded and tests itself; then it is given back.
    Loading,
    /// Once it answers.
    Running,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// When it is held.
    pub when: When,
    /// Its bytes at most.
    pub bytes: u64,
}

/// What running one target of an artifact takes at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The target.
    pub target: String,
    /// Threads that it is for.
    pub threads: usize,
    /// Sequences that the caches hold.
    pub slots: usize,
    /// What is held always, and the more of what loading and what running holds.
    pub total: u64,
    /// The parts.
    pub parts: Vec<Part>,
}

impl Certificate {
    /// The parts together: what is held always, and the more of what loading and what running holds.
    fn sum(&self) -> u64 {
        add(self.held(When::Always), self.held(When::Loading).max(self.held(When::Running)))
    }

    /// Bytes of the parts that are held then.
    pub fn held(&self, when: When) -> u64 {
        self.parts.iter().filter(|p| p.when == when).map(|p| p.bytes).fold(0, add)
    }

    /// Bytes of the part of that name; 0 if there is none.
    pub fn part(&self, name: &str) -> u64 {
        self.parts.iter().find(|p| p.name == name).map_or(0, |p| p.bytes)
    }

    /// The same with caches for so many sequences.
    #[must_use]
    pub fn with_slots(&self, slots: usize) -> Self {
        let mut more = Certificate { slots, ..self.clone() };
        for part in more.parts.iter_mut().filter(|p| [CACHES, DECODING].contains(&p.name.as_str())) {
            part.bytes = mul(part.bytes / self.slots.max(1) as u64, slots as u64);
        }
        more.total = more.sum();
        more
    }

    /// Refuses what takes more than `limit` bytes.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub fn within(&self, limit: u64) -> Result<(), OverLimit> {
        if self.total <= limit { Ok(()) } else { Err(OverLimit { limit, certificate: Box::new(self.clone()) }) }
    }
}

/// What manifests and programs both say: parts that are no estimates.
pub(crate) const FACTS: [&str; 4] = ["weights", "activations", "hidden states", CACHES];

/// A limit that the certificate does not keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OverLimit {
    /// The limit.
    pub limit: u64,
    /// What it would take.
    pub certificate: Box<Certificate>,
}

impl std::fmt::Display for OverLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Certificate { target, slots, total, parts, .. } = &*self.certificate;
        let sequences = if *slots == 1 { String::new() } else { format!(" with {slots} sequences") };
        write!(f, "target {target}{sequences} takes up to {total} bytes, and the limit is {}:", self.limit)?;
        let mut parts: Vec<&Part> = parts.iter().collect();
        parts.sort_by_key(|p| std::cmp::Reverse(p.bytes));
        for part in parts {
            let when = match part.when {
                When::Always => "",
                When::Loading => " (loading)",
                When::Running => " (running)",
            };
            write!(f, " {} {}{when},", part.name, part.bytes)?;
        }
        write!(
            f,
            " of which the more of loading and running counts; raise the limit, use fewer sequences, or compile with \
                   `--max-memory {}`, which says what fits",
            self.limit
        )
    }
}

/// A limit that an executor keeps while it grows.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// The limit.
    pub(crate) limit: u64,
    /// What was loaded.
    pub(crate) certificate: Certificate,
    /// Rows of logits that were counted.
    pub(crate) logits_rows: usize,
}

impl Budget {
    /// Refuses caches for so many sequences if they do not fit beside `kept` bytes of those that are there.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(crate) fn admit(&self, slots: usize, kept: u64) -> Result<(), OverLimit> {
        self.certificate.with_slots(slots).within(self.limit.saturating_sub(kept))
    }
}

fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

fn mul(a: u64, b: u64) -> u64 {
    a.saturating_mul(b)
}
