//! File tests: `tests/filetests/<pass>/*.dlx`, each a module with what is expected of it.
//!
//! ```text
//! ; test: opt dce                    runs a pipeline; the verifier accepts the module before it
//! ; test: same dce                   every pass of a pipeline keeps what it says, on seeded weights and inputs
//! ; test: parse                      the text does not parse
//! ; test: verify                     the text parses and is not valid
//! module @m { … }
//! ; expect:                          opt: the module afterwards, each line behind a `; `
//! ; module @m {
//! ; error: line                      opt, parse: instead of `; expect:`, the lines of the error
//! ```
//! In a `verify` file, `; error: part of a message` follows the line that it is about, or stands on a line of its own
//! below it; every error must be announced. A comment in the expectation's form keeps the whole file readable by
//! `dlxc opt`.
//!
//! `DLX_BLESS=1` rewrites the expectations of `opt` and `parse` files. Without it a missing expectation fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dlx_ir::{Error, Module, VerifiedModule, parse, verify};
use dlx_passes::{PASSES, parse_pipeline, run_pipeline};
use dlxc::check::each::{Checked, SEED, Tolerances, verify_each};
use dlxc::check::source::Seeded;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests")
}

fn files() -> Vec<PathBuf> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let mut all: Vec<_> = std::fs::read_dir(dir)
            .expect("the workspace can be read")
            .map(|e| e.expect("the workspace can be read").path())
            .collect();
        all.sort();
        all
    };
    entries(&root()).iter().flat_map(|dir| entries(dir)).filter(|f| f.extension().is_some_and(|e| e == "dlx")).collect()
}

#[test]
fn every_file_meets_its_expectation() {
    let bless = std::env::var_os("DLX_BLESS").is_some();
    let files = files();
    assert!(!files.is_empty(), "there are no file tests in {}", root().display());
    let failures: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let outcome = check(path, bless).err()?;
            Some(format!("{}\n{outcome}\n", path.strip_prefix(root()).unwrap().display()))
        })
        .collect();
    println!("{} file tests", files.len());
    assert!(failures.is_empty(), "{} of {} fail\n\n{}", failures.len(), files.len(), failures.join("\n"));
}

#[test]
fn every_pass_has_files() {
    let tested: BTreeSet<String> = files()
        .iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let pipeline = text.lines().next()?.strip_prefix("; test: opt ")?.to_owned();
            let dir = path.parent()?.file_name()?.to_str()?.to_owned();
            let steps = parse_pipeline(&pipeline).ok()?;
            steps.iter().any(|s| s.pass.name == dir).then_some(dir)
        })
        .collect();
    let missing: Vec<_> = PASSES.iter().map(|p| p.name).filter(|name| !tested.contains(*name)).collect();
    assert!(missing.is_empty(), "no file tests in tests/filetests/ for {missing:?}");
}

/// The example in a pass's documentation is the file test `doc.dlx` of that pass.
#[test]
fn every_documented_example_is_a_file_test() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../passes/src");
    let mut examples = 0;
    for pass in PASSES {
        let Ok(source) = std::fs::read_to_string(sources.join(format!("{}.rs", pass.name.replace('-', "_")))) else {
            continue;
        };
        let doc: Vec<&str> = source.lines().map_while(|l| l.strip_prefix("//!")).map(str::trim).collect();
        let Some(start) = doc.iter().position(|l| *l == "```text") else { continue };
        let becomes = doc.iter().position(|l| l.starts_with("becomes")).expect("an example says what it becomes");
        let is_code = |l: &str| ["%", "weight ", "kv_write "].iter().any(|s| l.starts_with(s));
        let before: Vec<&str> = doc[start..becomes].iter().copied().filter(|l| is_code(l)).collect();
        let after = doc[becomes..].join("\n");
        let after: Vec<&str> = after.split(['`', '\n']).filter(|l| is_code(l)).collect();
        assert!(!before.is_empty() && !after.is_empty(), "{}: the example is empty", pass.name);
        let text = std::fs::read_to_string(root().join(pass.name).join("doc.dlx")).unwrap();
        let (input, expected) = text.split_once("; expect:").expect("doc.dlx has an expectation");
        for (lines, part) in [(before, input), (after, expected)] {
            for line in lines {
                assert!(part.contains(line), "{}: doc.dlx does not have the documented line\n{line}", pass.name);
            }
        }
        examples += 1;
    }
    assert!(examples >= 10, "only {examples} passes have an example");
}

fn check(path: &Path, bless: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let header = text.lines().next().and_then(|l| l.strip_prefix("; test: "));
    let header = header.ok_or(
        "the first line is not `; test: opt PIPELINE`, `; test: same PIPELINE`, `; test: parse` or `; test: verify`",
    )?;
    if header == "verify" {
        return check_verify(&text);
    }
    if let Some(pipeline) = header.strip_prefix("same ") {
        return check_same(&text, pipeline);
    }
    let end = text.find("\n; expect:").into_iter().chain(text.find("\n; error:")).min();
    let (input, expected) = text.split_at(end.map_or(text.len(), |at| at + 1));
    let found = match (header, header.strip_prefix("opt ")) {
        ("parse", _) => parse(input).map(|_| "; the text parses\n".to_owned()).unwrap_or_else(|e| error_lines(&e)),
        (_, Some(pipeline)) => optimise(input, pipeline)?,
        _ => return Err(format!("`{header}` is not opt, parse or verify")),
    };
    if found == expected {
        return Ok(());
    }
    if bless {
        return std::fs::write(path, format!("{input}{found}")).map_err(|e| e.to_string());
    }
    let help = "run with DLX_BLESS=1, then read the difference";
    Err(format!("{help}\n{}", difference(expected, &found)))
}

/// Checks that a pipeline changes nothing but what its passes say.
fn check_same(text: &str, pipeline: &str) -> Result<(), String> {
    let module = parse(text).map_err(|e| format!("the text does not parse: {e}"))?;
    let module = VerifiedModule::new(module).map_err(|e| format!("the module is not valid: {}", e[0]))?;
    let steps = parse_pipeline(pipeline).map_err(|e| e.to_string())?;
    let weights = Seeded { module: &module, seed: SEED };
    let (all, _) =
        verify_each(&module, &steps, &weights, SEED, &Tolerances::default(), &mut |_| {}).map_err(|e| e.to_string())?;
    if all.iter().all(|c| c.comparison.compared == 0) {
        return Err("no pass changed anything that could be compared".into());
    }
    all.iter().find_map(Checked::error).map_or(Ok(()), |e| Err(e.to_string()))
}

/// The expectation that the outcome of a pipeline meets.
fn optimise(input: &str, pipeline: &str) -> Result<String, String> {
    let module = parse(input).map_err(|e| format!("the input does not parse: {e}"))?;
    let module = VerifiedModule::new(module).map_err(|e| format!("the input is not valid: {}", e[0]))?;
    round_trip(&module)?;
    let steps = match parse_pipeline(pipeline) {
        Ok(steps) => steps,
        Err(e) => return Ok(error_lines(&e)),
    };
    let module = match run_pipeline(module, &steps, &mut |_, _, _| Ok(())) {
        Ok((module, _)) => module,
        Err(failure) => return Ok(error_lines(&failure.error)),
    };
    round_trip(&module)?;
    let lines = module.to_string();
    let lines = lines.lines().map(|l| if l.is_empty() { ";\n".to_owned() } else { format!("; {l}\n") });
    Ok(std::iter::once("; expect:\n".to_owned()).chain(lines).collect())
}

fn round_trip(module: &Module) -> Result<(), String> {
    let text = module.to_string();
    let again = parse(&text).map_err(|e| format!("the printed module does not parse: {e}\n{text}"))?;
    if again.to_string() == text { Ok(()) } else { Err(format!("printing does not round-trip\n{text}")) }
}

fn error_lines(error: &Error) -> String {
    error.to_string().lines().map(|l| format!("; error: {l}\n")).collect()
}

/// Lines that differ, with a few before them.
fn difference(expected: &str, found: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let tail = |lines: &[&str], sign: &str| -> String {
        lines[same..].iter().take(12).map(|l| format!("{sign} {l}\n")).collect()
    };
    let before: String = a[same.saturating_sub(3)..same].iter().map(|l| format!("  {l}\n")).collect();
    format!("{before}{}{}", tail(&a, "-"), tail(&b, "+"))
}

/// Checks that exactly the announced errors are found, each on the line that announces it.
fn check_verify(text: &str) -> Result<(), String> {
    let mut announced: Vec<(usize, &str, String)> = Vec::new();
    let mut subject = (0, "");
    for (i, line) in text.lines().enumerate() {
        let (code, comment) = line.split_once("; error: ").map_or((line, None), |(code, text)| (code, Some(text)));
        let code = code.trim();
        if !code.is_empty() && !code.starts_with(';') {
            subject = (i + 1, code);
        }
        if let Some(message) = comment {
            announced.push((subject.0, subject.1, message.to_owned()));
        }
    }
    if announced.is_empty() {
        return Err("no `; error:` is announced".into());
    }
    let module = parse(text).map_err(|e| format!("the text does not parse: {e}"))?;
    round_trip(&module)?;
    let mut errors = verify(&module).err().unwrap_or_default();
    let mut problems = Vec::new();
    for (number, line, message) in announced {
        match errors.iter().position(|e| e.message.contains(&message) && is_about(e, line)) {
            Some(i) => drop(errors.remove(i)),
            None => problems.push(format!("line {number}: not reported: {message}")),
        }
    }
    problems.extend(errors.iter().map(|e| format!("not announced: {e}")));
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// Whether the place of an error is that line: the text of a node, weight or state, or the head of what it is in.
fn is_about(error: &Error, line: &str) -> bool {
    let place = match error.place.strip_prefix("graph @").and_then(|p| p.split_once(": ")) {
        Some((_, inner)) => inner,
        None => &error.place,
    };
    line.contains(place)
}
