//! What passes cost on this machine, by the number of rows: measured as they run, or recorded.
//!
//! Invariant: recorded costs do not change, so that whatever is chosen by them repeats itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Measurements that a cost is the median of.
const SAMPLES: usize = 7;

/// Which of the two models a pass is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that drafts.
    Draft,
    /// The one whose law is kept.
    Verify,
}

/// Seconds of a pass, reading its rows with it, by the rows that it feeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// Passes of the drafter.
    pub draft: BTreeMap<usize, f64>,
    /// Passes of the verifier.
    pub verify: BTreeMap<usize, f64>,
}

impl CostTable {
    /// A table read from JSON: `{"draft": {"8": 0.012}, "verify": {"1": 0.02, "9": 0.031}}`, in seconds.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(json: &str) -> Result<Self, String> {
        let table: Self = serde_json::from_str(json).map_err(|e| e.to_string())?;
        for (name, side) in [("draft", &table.draft), ("verify", &table.verify)] {
            if side.is_empty() {
                return Err(format!("`{name}` holds no cost: record at least one"));
            }
            if let Some((rows, cost)) = side.iter().find(|(_, cost)| !(**cost > 0.0 && cost.is_finite())) {
                return Err(format!("`{name}` says {cost} seconds for {rows} rows: a cost is a number above 0"));
            }
        }
        Ok(table)
    }

    /// Seconds of a pass: between two sizes on the line through both, below the smallest as that one, beyond the largest in
    /// proportion. 0 where nothing is known.
    pub fn seconds(&self, side: Side, rows: usize) -> f64 {
        let known = match side {
            Side::Draft => &self.draft,
            Side::Verify => &self.verify,
        };
        match (known.range(..=rows).next_back(), known.range(rows..).next()) {
            (Some((&low, &a)), Some((&high, &b))) if low < high => {
                a + (b - a) * (rows - low) as f64 / (high - low) as f64
            }
            (_, Some((_, &cost))) => cost,
            (Some((&low, &cost)), None) => cost * rows as f64 / low.max(1) as f64,
            (None, None) => 0.0,
        }
    }
}

/// Costs as they become known.
#[derive(Clone, Debug)]
pub(super) enum Costs {
    /// Recorded before.
    Recorded(CostTable),
    /// Medians of the last measurements.
    Measured { table: CostTable, samples: BTreeMap<(bool, usize), Vec<f64>> },
}

impl Costs {
    pub(super) fn new(recorded: Option<CostTable>) -> Self {
        let measured = || Costs::Measured { table: CostTable::default(), samples: BTreeMap::new() };
        recorded.map_or_else(measured, Costs::Recorded)
    }

    pub(super) fn table(&self) -> &CostTable {
        match self {
            Costs::Recorded(table) | Costs::Measured { table, .. } => table,
        }
    }

    pub(super) fn learn(&mut self, side: Side, rows: usize, time: Duration) {
        let Costs::Measured { table, samples } = self else { return };
        let last = samples.entry((side == Side::Draft, rows)).or_default();
        if last.len() == SAMPLES {
            last.remove(0);
        }
        last.push(time.as_secs_f64().max(1e-9));
        let mut sorted = last.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let costs = if side == Side::Draft { &mut table.draft } else { &mut table.verify };
        costs.insert(rows, sorted[(sorted.len() - 1) / 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_between_what_is_known() {
        let table = CostTable::read(r#"{"draft": {"8": 0.5}, "verify": {"1": 1.0, "5": 2.0, "9": 4.0}}"#).unwrap();
        let verify = |rows| table.seconds(Side::Verify, rows);
        assert_eq!([verify(1), verify(3), verify(5), verify(7), verify(18)], [1.0, 1.5, 2.0, 3.0, 8.0]);
        assert_eq!([table.seconds(Side::Draft, 2), table.seconds(Side::Draft, 16)], [0.5, 1.0]);
        for (wrong, what) in [
            ("{}", "missing field"),
            (r#"{"draft": {}, "verify": {"1": 1.0}}"#, "holds no cost"),
            (r#"{"draft": {"1": 0.0}, "verify": {"1": 1.0}}"#, "above 0"),
            (r#"{"draft": {"x": 1.0}, "verify": {"1": 1.0}}"#, "invalid"),
        ] {
            let error = CostTable::read(wrong).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_measured_cost_is_the_median_of_the_last() {
        let mut costs = Costs::new(None);
        for ms in [500, 10, 11, 12, 9, 10, 11, 10] {
            costs.learn(Side::Verify, 4, Duration::from_millis(ms));
        }
        assert_eq!(costs.table().seconds(Side::Verify, 4), 0.010);
        let recorded = CostTable::read(r#"{"draft": {"8": 0.5}, "verify": {"1": 1.0}}"#).unwrap();
        let mut costs = Costs::new(Some(recorded.clone()));
        costs.learn(Side::Verify, 1, Duration::from_secs(9));
        assert_eq!(costs.table(), &recorded);
    }
}
