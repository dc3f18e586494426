//! Runs the node cases of the `onnx` package and compares what passes with `tests/onnx/expected.txt`.
//!
//! That file lists what fails, by way and reason. A case that fails and is not listed is a failure of this test, and so is one
//! that passes and is listed: `DLX_ONNX_BLESS=1` writes the file anew. Arguments select cases by part of their name, and say
//! why each fails. Not a libtest harness, so that it always prints the table.
#![allow(clippy::print_stdout, reason = "the report of a test program")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use dlx_tests::nodes::{Case, Outcome, Way, cases};

/// What became of each case in each way.
type Outcomes = BTreeMap<String, BTreeMap<Way, Outcome>>;

/// Cases that are known to fail, with the reason, by way.
type Expected = BTreeMap<Way, BTreeMap<String, String>>;

fn main() -> ExitCode {
    let begin = Instant::now();
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let set = |name: &str| std::env::var(name).is_ok_and(|v| v == "1");
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = match directory(home) {
        Ok(directory) => directory,
        Err(why) => {
            println!("\n****  onnx_nodes: SKIPPED, no operator was tested  ****\n{why}");
            return if set("DLX_REQUIRE_ONNX") { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let file = home.join("onnx/expected.txt");
    let (all, expected) = match cases(&directory).and_then(|all| Ok((all, read(&file)?))) {
        Ok(both) => both,
        Err(error) => {
            println!("FAILED {error}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<&Case> =
        all.iter().filter(|c| filter.is_empty() || filter.iter().any(|part| c.name.contains(part.as_str()))).collect();
    let outcomes = run(&chosen);
    let bless = set("DLX_ONNX_BLESS") && filter.is_empty();
    if bless && let Err(error) = std::fs::write(&file, written(&outcomes, &expected)) {
        println!("FAILED {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if !filter.is_empty() {
        for (name, ways) in &outcomes {
            for (way, outcome) in ways {
                println!("{} {name}: {}", way.name(), outcome.as_ref().err().map_or("ok", String::as_str));
            }
        }
    }
    let wrong = if bless { 0 } else { differences(&outcomes, &expected) };
    let ops = std::fs::read_to_string(home.join("onnx/ops.txt")).unwrap_or_default();
    table(&chosen, &outcomes, &ops.split_whitespace().collect());
    println!("\nonnx_nodes: {} cases in {:.1} s, {wrong} not as expected", chosen.len(), begin.elapsed().as_secs_f64());
    if wrong > 0 {
        println!("if that is as it should be, DLX_ONNX_BLESS=1 writes {} anew: read the difference", file.display());
    }
    if wrong == 0 && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where the cases are, written there if they are not yet.
fn directory(home: &Path) -> Result<PathBuf, String> {
    let directory =
        std::env::var_os("DLX_ONNX_CASES").map_or_else(|| home.join("../target/onnx-node-cases"), PathBuf::from);
    if directory.join("index.json").is_file() {
        return Ok(directory);
    }
    let out = Command::new("python3").arg(home.join("onnx/cases.py")).arg(&directory).output();
    match out {
        Ok(out) if out.status.success() => Ok(directory),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        Err(error) => Err(format!("python3: {error}")),
    }
}

/// Runs cases on as many threads as there are cores.
fn run(cases: &[&Case]) -> Outcomes {
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Outcomes::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = Instant::now();
                    let outcome = case.run();
                    if begin.elapsed().as_secs_f64() > 5.0 {
                        println!("slow: {} took {:.1} s", case.name, begin.elapsed().as_secs_f64());
                    }
                    outcomes.lock().expect("no case panics outside its guard").insert(case.name.clone(), outcome);
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    outcomes.into_inner().expect("no case panics outside its guard")
}

/// The expectations: `# way` opens a part, `## reason` a group, and each other line is a case.
fn read(file: &Path) -> Result<Expected, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut expected = Expected::new();
    let (mut way, mut reason) = (None, "");
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        if let Some(text) = line.strip_prefix("## ") {
            reason = text;
        } else if let Some(name) = line.strip_prefix("# ") {
            way = Way::ALL.into_iter().find(|w| name.split(':').next() == Some(w.name()));
        } else {
            let way = way.ok_or_else(|| format!("{}: `{line}` stands under no way", file.display()))?;
            expected.entry(way).or_default().insert(line.trim().to_owned(), reason.to_owned());
        }
    }
    Ok(expected)
}

/// The expectations that outcomes meet. A reason that a person has written, in parentheses, stays.
fn written(outcomes: &Outcomes, before: &Expected) -> String {
    let mut text = String::new();
    for way in Way::ALL {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, ways) in outcomes {
            if let Some(Err(why)) = ways.get(&way) {
                let said = before.get(&way).and_then(|known| known.get(name)).filter(|reason| reason.starts_with('('));
                groups.entry(said.map_or(why, String::as_str)).or_default().insert(name);
            }
        }
        let failing: usize = groups.values().map(BTreeSet::len).sum();
        let _ = writeln!(text, "# {}: {failing} cases fail", way.name());
        for (why, names) in groups {
            let _ = writeln!(text, "\n## {why}");
            for name in names {
                let _ = writeln!(text, "{name}");
            }
        }
        text.push('\n');
    }
    text
}

/// Prints what is not as expected, and counts it.
fn differences(outcomes: &Outcomes, expected: &Expected) -> usize {
    let mut wrong = 0;
    for (name, ways) in outcomes {
        for (way, outcome) in ways {
            let known = expected.get(way).is_some_and(|known| known.contains_key(name));
            match outcome {
                Err(why) if !known => println!("FAILED {name} ({}): {why}", way.name()),
                Ok(_) if known => println!("PASSES {name} ({}), and is listed as failing", way.name()),
                _ => continue,
            }
            wrong += 1;
        }
    }
    wrong
}

/// Prints how many cases pass, in each way and of each set.
fn table(cases: &[&Case], outcomes: &Outcomes, ops: &BTreeSet<&str>) {
    let listed = |c: &&Case| c.ops.iter().any(|op| ops.contains(op.as_str()));
    let alone = |c: &&Case| c.ops.iter().all(|op| ops.contains(op.as_str()));
    type Chosen<'a> = &'a dyn Fn(&&Case) -> bool;
    let sets: [(&str, Chosen<'_>); 5] = [
        ("all", &|_| true),
        ("numeric", &|c| c.numeric),
        ("of ops.txt, plain", &|c| !c.expanded && listed(c)),
        ("  of these, numeric", &|c| !c.expanded && listed(c) && c.numeric),
        ("of ops.txt alone, expanded", &|c| c.expanded && alone(c)),
    ];
    println!("\n{:28}{:>8}{}", "", "cases", Way::ALL.map(|w| format!("{:>12}", w.name())).concat());
    for (name, chosen) in sets {
        let of: Vec<&str> = cases.iter().copied().filter(|c| chosen(c)).map(|c| c.name.as_str()).collect();
        let passed =
            Way::ALL.map(|way| of.iter().filter(|n| outcomes[**n].get(&way).is_some_and(Result::is_ok)).count());
        println!("{name:28}{:>8}{}", of.len(), passed.map(|n| format!("{n:>12}")).concat());
    }
    let relying = |way: &Way| outcomes.values().filter(|ways| ways.get(way) == Some(&Ok(true))).count();
    println!("{:36}{}", "  relying on a declared shape", Way::ALL.map(|way| format!("{:>12}", relying(&way))).concat());
}
