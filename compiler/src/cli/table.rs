//! Aligned text tables and numbers that people can read.
//!
//! Invariant: output depends on the arguments alone, and no line ends with spaces. Machine-readable output is JSON, not this.

use std::fmt::Write;
use std::time::Duration;

use unicode_width::UnicodeWidthStr;

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a header line, columns two spaces apart. Missing cells are empty, surplus ones are not shown.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, (title, _))| rows.iter().map(|r| cell(r, i).width()).max().unwrap_or(0).max(title.width()))
        .collect();
    let mut out = String::new();
    let mut line = |cells: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for (i, ((_, align), width)) in columns.iter().zip(&widths).enumerate() {
            let cell = cells(i);
            let space = " ".repeat(width - cell.width().min(*width));
            let gap = if i == 0 { "" } else { "  " };
            let (before, after) = if *align == Align::Left { ("", space.as_str()) } else { (space.as_str(), "") };
            write!(text, "{gap}{before}{cell}{after}").expect("writing to a string cannot fail");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&|i| columns.get(i).map(|(title, _)| (*title).to_owned()).unwrap_or_default());
    for row in rows {
        line(&|i| cell(row, i));
    }
    out
}

/// Bytes in decimal units: `999 B`, `3.44 GB`.
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A count: `999`, `1.72 G`.
pub fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T", "P", "E"])
}

/// A duration: `350 µs`, `12.3 ms`, `4.56 s`, `3 min 20 s`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs_f64();
    if s >= 99.95 {
        let whole = (s.round()) as u64;
        return format!("{} min {} s", whole / 60, whole % 60);
    }
    if d.is_zero() {
        return "0 s".into();
    }
    let (value, unit) = if s >= 0.9995 {
        (s, "s")
    } else if s >= 0.000_999_5 {
        (s * 1e3, "ms")
    } else {
        (s * 1e6, "µs")
    };
    format!("{} {unit}", three_digits(value))
}

fn scaled(n: u64, units: &[&str]) -> String {
    if n < 1000 {
        return format!("{n} {}", units.first().unwrap_or(&"")).trim_end().to_owned();
    }
    let mut value = n as f64;
    let mut unit = "";
    for next in units {
        unit = next;
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
    }
    format!("{} {unit}", three_digits(value))
}

/// Three significant digits, for values from 0.1 up to 999.5.
fn three_digits(value: f64) -> String {
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [("quantize", "1.2 ms"), ("größe", "12 ms"), ("世界", ""), ("plan-memory", "0 s")]
            .map(|(a, b)| vec![a.to_owned(), b.to_owned(), String::new()]);
        let text = table(&[("pass", Align::Left), ("time", Align::Right), ("note", Align::Left)], &rows);
        let want = "\
pass           time  note
quantize     1.2 ms
größe         12 ms
世界
plan-memory     0 s
";
        assert_eq!(text, want);
        assert_eq!(table(&[("a", Align::Left)], &[]), "a\n");
        assert_eq!(table(&[("a", Align::Left)], &[vec![], vec!["x".into(), "surplus".into()]]), "a\n\nx\n");
    }

    #[test]
    fn numbers_have_three_digits() {
        for (n, want) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_996, "10.0 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (3_441_000_000, "3.44 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(n), want);
        }
        assert_eq!((count(12), count(1_720_574_976)), ("12".to_owned(), "1.72 G".to_owned()));
        for (ns, want) in [
            (0, "0 s"),
            (1_500, "1.50 µs"),
            (999_400, "999 µs"),
            (12_345_678, "12.3 ms"),
            (999_600_000, "1.00 s"),
            (99_940_000_000, "99.9 s"),
            (99_960_000_000, "1 min 40 s"),
            (200_000_000_000, "3 min 20 s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(ns)), want);
        }
    }
}
