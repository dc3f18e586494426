//! The report of `dlxc diff`, as text or Markdown.

use std::path::Path;

use serde::Serialize;

use super::table::{self, Align};
use crate::check::built::TensorDiff;
use crate::check::diff::{Changes, Numbers};

/// What differs between two stages of one name.
#[derive(Serialize)]
pub(super) struct Stage {
    pub(super) name: String,
    /// What is there in one build alone, or cannot be compared.
    pub(super) note: Option<String>,
    pub(super) changes: Vec<Changes>,
    pub(super) numbers: Option<Numbers>,
}

impl Stage {
    pub(super) fn differs(&self, tolerance: f32) -> bool {
        self.note.is_some() || !self.changes.is_empty() || self.numbers.as_ref().is_some_and(|n| n.differ(tolerance))
    }
}

/// How a report is written.
pub(super) struct View {
    pub(super) markdown: bool,
    /// Most lines of a graph.
    pub(super) lines: usize,
    pub(super) tolerance: f32,
}

impl View {
    pub(super) fn text(&self, a: &Path, b: &Path, stages: &[Stage], tensors: &[TensorDiff]) -> String {
        let mut out = String::new();
        let differing: Vec<&Stage> = stages.iter().filter(|s| s.differs(self.tolerance)).collect();
        let different = tensors.iter().filter(|t| t.differs(self.tolerance)).count();
        let verdict = match (differing.first(), different) {
            (None, 0) => "nothing differs".to_owned(),
            (Some(s), _) if stages.len() > 1 => {
                format!("{} of {} stages differ, from {} on", differing.len(), stages.len(), s.name)
            }
            (Some(_), _) => "they differ".to_owned(),
            (None, n) => format!("{n} of {} tensors differ", tensors.len()),
        };
        let title = format!("{} and {}: {verdict}", a.display(), b.display());
        out.push_str(&if self.markdown { format!("### {title}\n\n") } else { format!("{title}\n\n") });
        if stages.len() > 1 {
            let rows: Vec<Vec<String>> = stages.iter().map(|s| self.row(s)).collect();
            out.push_str(&self.table(&["stage", "- lines", "+ lines", "logits", "flips", "first value"], &rows));
        }
        // The stages behind the first one differ because it does.
        for stage in differing.iter().take(1) {
            out.push_str(&self.stage(stage));
        }
        let rows: Vec<Vec<String>> = tensors.iter().filter(|t| t.differs(self.tolerance)).map(tensor_row).collect();
        if !rows.is_empty() {
            out.push_str(
                &self.table(&["tensor", "error", "largest difference", ""], &rows[..rows.len().min(self.lines)]),
            );
            self.more(&mut out, rows.len());
        }
        out
    }

    fn row(&self, s: &Stage) -> Vec<String> {
        let sum = |of: fn(&Changes) -> usize| s.changes.iter().map(of).sum::<usize>().to_string();
        let (logits, flips, first) = match &s.numbers {
            Some(n) => (
                n.logits.map_or_else(String::new, |l| format!("{l:.2e}")),
                format!("{} of {}", n.flips, n.rows),
                n.first.as_ref().map_or_else(String::new, |f| format!("%{}", f.value)),
            ),
            None => Default::default(),
        };
        let first = s.note.clone().unwrap_or(first);
        vec![s.name.clone(), sum(|c| c.removed), sum(|c| c.added), logits, flips, first]
    }

    fn stage(&self, s: &Stage) -> String {
        let mut out = String::new();
        self.heading(&mut out, &s.name);
        if let Some(note) = &s.note {
            out.push_str(&format!("{note}\n\n"));
        }
        for change in &s.changes {
            let what = format!("{}: {} lines less, {} more", change.place, change.removed, change.added);
            let lines = change.lines.iter().take(self.lines).map(|l| format!("{l}\n")).collect::<String>();
            out.push_str(&if self.markdown {
                format!("{what}\n\n```diff\n{lines}```\n")
            } else {
                format!("{what}\n{lines}")
            });
            self.more(&mut out, change.lines.len());
        }
        if let Some(numbers) = &s.numbers {
            out.push_str(&self.numbers(numbers));
        }
        out
    }

    fn numbers(&self, n: &Numbers) -> String {
        let mut out = String::new();
        match &n.first {
            Some(first) => {
                let (value, error) = (&first.value, first.error);
                out.push_str(&format!("first value that differs: %{value}, by {error:.2e}\n"));
                out.push_str(&if self.markdown {
                    format!("```\n{}\n```\n", first.node)
                } else {
                    format!("  {}\n", first.node)
                });
            }
            None => out.push_str(&format!("no value of {} differs by more than {:e}\n", n.compared, self.tolerance)),
        }
        if let Some(logits) = n.logits {
            out.push_str(&format!(
                "logits: {logits:.2e}; the most likely token is another one in {} of {} rows",
                n.flips, n.rows
            ));
            if let Some(decisions) = n.decisions {
                out.push_str(&format!("; {decisions} would be revealed by one and not by the other"));
            }
            out.push('\n');
        }
        if n.first.is_some() {
            let rows: Vec<Vec<String>> =
                n.growth.iter().map(|g| vec![format!("%{}", g.value), format!("{:.2e}", g.error)]).collect();
            self.heading(&mut out, "how the error grows");
            out.push_str(&self.table(&["value", "error"], &rows));
        }
        out
    }

    fn heading(&self, out: &mut String, text: &str) {
        out.push_str(&if self.markdown { format!("\n#### {text}\n\n") } else { format!("\n{text}\n") });
    }

    fn more(&self, out: &mut String, all: usize) {
        if all > self.lines {
            out.push_str(&format!("… and {} more; see --lines\n", all - self.lines));
        }
        out.push('\n');
    }

    fn table(&self, columns: &[&str], rows: &[Vec<String>]) -> String {
        if !self.markdown {
            let columns: Vec<_> = columns.iter().map(|c| (*c, Align::Left)).collect();
            return table::table(&columns, rows);
        }
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let escaped = |c: &String| c.replace('|', "\\|").replace('\n', " ");
        let mut out = line(columns.iter().map(|c| (*c).to_owned()).collect());
        out.push_str(&line(columns.iter().map(|_| "---".to_owned()).collect()));
        rows.iter().for_each(|row| out.push_str(&line(row.iter().map(escaped).collect())));
        out
    }
}

fn tensor_row(t: &TensorDiff) -> Vec<String> {
    let number = |n: Option<f32>| n.map_or_else(String::new, |n| format!("{n:.2e}"));
    vec![t.name.clone(), number(t.error), number(t.largest), t.note.clone().unwrap_or_default()]
}
