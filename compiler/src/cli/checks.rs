//! What `--verify-each` found, for people and for scripts.

use serde_json::json;

use super::table::{self, Align};
use crate::check::each::Checked;

/// Checks of all targets, in order.
#[derive(Default)]
pub(super) struct Checks(Vec<(String, Vec<String>, Vec<Checked>)>);

impl Checks {
    /// The checks that follow are of a target, on what the notes say.
    pub(super) fn begin(&mut self, target: &str, notes: &[String]) {
        self.0.push((target.to_owned(), notes.to_vec(), Vec::new()));
    }

    pub(super) fn add(&mut self, checked: &Checked) {
        if let Some((.., all)) = self.0.last_mut() {
            all.push(checked.clone());
        }
    }

    /// A table for each target.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for (target, notes, all) in &self.0 {
            let rows: Vec<Vec<String>> = all.iter().map(|c| row(target, c)).collect();
            let columns = [
                ("target", Align::Left),
                ("pass", Align::Left),
                ("keeps", Align::Left),
                ("allowed", Align::Right),
                ("error", Align::Right),
                ("flips", Align::Right),
                ("results", Align::Right),
                ("time", Align::Right),
                ("", Align::Left),
            ];
            out.push_str(&table::table(&columns, &rows));
            notes.iter().for_each(|n| out.push_str(&format!("note: {n}\n")));
            out.push('\n');
        }
        out
    }

    /// The same as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        let one = |(target, notes, passes): &(String, Vec<String>, Vec<Checked>)| json!({"target": target, "notes": notes, "passes": passes});
        self.0.iter().map(one).collect()
    }
}

fn row(target: &str, c: &Checked) -> Vec<String> {
    let verdict = match (&c.skipped, c.holds(), c.comparison.compared) {
        (Some(why), ..) => format!("not run: {why}"),
        (None, false, _) => "FAILED".into(),
        (None, true, 0) if c.comparison.unmatched > 0 => "not compared: it takes or gives other things".into(),
        (None, true, 0) => "changed nothing".into(),
        (None, true, _) => "ok".into(),
    };
    let pass = c.pass.split_once('{').map_or(c.pass.as_str(), |(name, _)| name).to_owned();
    let of = |n: usize| if c.comparison.compared == 0 { String::new() } else { n.to_string() };
    let error = if c.comparison.compared == 0 { String::new() } else { format!("{:.1e}", c.comparison.error) };
    let allowed = if c.keeps == "bits" { "0".into() } else { format!("{:e}", c.limit) };
    let (flips, results) = (of(c.comparison.flips), of(c.comparison.compared));
    vec![target.to_owned(), pass, c.keeps.to_owned(), allowed, error, flips, results, table::duration(c.time), verdict]
}
