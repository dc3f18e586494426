//! The checks of the compiler, checked: sound passes hold, and a wrong rewrite in any of them is found and named.

mod bytes;
mod foreign;
mod model;
mod plant;

use std::collections::BTreeSet;

use dlx_ir::{VerifiedModule, parse};
use dlx_passes::{PASSES, Step, parse_pipeline};
use dlxc::check::bisect::bisect;
use dlxc::check::each::{SEED, Tolerances, verify_each};
use dlxc::check::source::Seeded;

use model::cases;

#[test]
fn every_pass_holds_and_finds_work() {
    let mut worked: BTreeSet<&str> = BTreeSet::new();
    for (module, steps) in cases() {
        let weights = Seeded { module: &module, seed: SEED };
        let (all, _) = verify_each(&module, &steps, &weights, SEED, &Tolerances::default(), &mut |_| {}).unwrap();
        for (checked, step) in all.iter().zip(&steps) {
            assert!(checked.holds(), "{}", checked.error().unwrap());
            if checked.comparison.compared > 0 {
                worked.insert(step.pass.name);
            }
        }
        assert!(bisect(&module, &steps, &weights, SEED).unwrap().is_none());
    }
    let idle: Vec<_> = PASSES.iter().map(|p| p.name).filter(|p| !worked.contains(p)).collect();
    assert!(idle.is_empty(), "found no work, or could not be compared: {idle:?}");
}

/// What a planted fault led to.
struct Planted {
    pass: &'static str,
    line: String,
}

/// Plants every fault behind every pass, and checks that it is found, named and reduced.
fn plant_everywhere(module: &VerifiedModule, good: &[Step]) -> Vec<Planted> {
    let weights = Seeded { module, seed: SEED };
    let mut all = Vec::new();
    for (at, step) in good.iter().enumerate() {
        for (what, fault) in plant::FAULTS {
            let steps = plant::planted(good, at, *fault);
            let verdict = bisect(module, &steps, &weights, SEED).expect("the stages run");
            // A fault that finds nothing of its kind changes nothing.
            let Some(place) = plant::place() else { continue };
            let case = format!("{} ({what}: {place})", step.pass.name);
            let verdict = verdict.unwrap_or_else(|| panic!("{case}: nothing was found"));
            assert_eq!(verdict.number, at + 1, "{case}: {}", verdict.pass);
            let nodes = verdict.between.after.iter();
            let named = nodes.clone().any(|n| place.contains(n.as_str()) || n.contains(&place));
            // The verifier, which finds what shares bytes, names the value that lies wrong and the first one that it lies on.
            let either = |e: &String| {
                e.matches('%').count() == 2 && e.split(' ').any(|w| w.starts_with('%') && place.contains(w))
            };
            let named = named || verdict.error.as_ref().is_some_and(either);
            assert!(named, "{case}: named {:#?} {:?}", verdict.between, verdict.error);
            let repro = verdict.repro.unwrap_or_else(|| panic!("{case}: no repro"));
            assert!(repro.nodes <= 12, "{case}: {} nodes\n{}", repro.nodes, repro.text);
            assert!(!holds(&repro.text, &steps[at]), "{case}: the repro does not fail\n{}", repro.text);
            assert!(holds(&repro.text, step), "{case}: the repro fails with the sound pass\n{}", repro.text);
            let (runs, stages, nodes) = (verdict.runs, verdict.stages, repro.nodes);
            let line = format!(
                "{:<17} {what:<16} {runs:>4} {stages:>6} {:>5} {:>7} {nodes:>5}",
                step.pass.name,
                usize::BITS - (stages - 1).leading_zeros(),
                verdict.between.after.len(),
            );
            all.push(Planted { pass: step.pass.name, line });
        }
    }
    all
}

#[test]
fn a_wrong_rewrite_in_any_pass_is_found_and_named() {
    let planted: Vec<Planted> = cases().iter().flat_map(|(module, steps)| plant_everywhere(module, steps)).collect();
    println!("{:<17} {:<16} runs stages  log2  named repro", "pass", "fault");
    planted.iter().for_each(|p| println!("{}", p.line));
    let met: BTreeSet<&str> = planted.iter().map(|p| p.pass).collect();
    let missed: Vec<_> = PASSES.iter().map(|p| p.name).filter(|p| !met.contains(p)).collect();
    assert!(missed.is_empty(), "no fault was planted in {missed:?}");
}

/// Whether a pass keeps what it says on a file test's module.
fn holds(text: &str, step: &Step) -> bool {
    let module = VerifiedModule::new(parse(text).expect("a repro is valid")).expect("a repro is valid");
    let weights = Seeded { module: &module, seed: SEED };
    match verify_each(&module, std::slice::from_ref(step), &weights, SEED, &Tolerances::default(), &mut |_| {}) {
        Ok((all, _)) => all.iter().all(dlxc::check::each::Checked::holds),
        Err(_) => false,
    }
}

#[test]
fn a_repro_names_the_pass_that_it_is_for() {
    let (module, good) = cases().swap_remove(0);
    let weights = Seeded { module: &module, seed: SEED };
    let at = good.iter().position(|s| s.pass.name == "fuse-norm").unwrap();
    let steps = plant::planted(&good, at, plant::FAULTS[3].1);
    let text = bisect(&module, &steps, &weights, SEED).unwrap().unwrap().repro.unwrap().text;
    let header = text.lines().next().unwrap();
    assert_eq!(header, "; test: same fuse-norm");
    assert_eq!(parse_pipeline(header.strip_prefix("; test: same ").unwrap()).unwrap().len(), 1);
}

/// Rows that attend nothing are a mean where masks are added, and zeros in attention: docs/onnx.md says so.
const UNEQUAL: &[&str] = &["raise-attention/padding.dlx"];

/// What every file test's pass does to its module is what the pass says.
#[test]
fn passes_keep_what_they_say_on_file_tests() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let (mut checked, mut compared, mut problems) = (0, 0, Vec::new());
    for dir in std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            let text = std::fs::read_to_string(&path).unwrap();
            let Some(pipeline) = text.lines().next().and_then(|l| l.strip_prefix("; test: opt ")) else { continue };
            let end = text.find("\n; expect:").into_iter().chain(text.find("\n; error:")).min().unwrap_or(text.len());
            let Ok(module) = parse(&text[..end]) else { continue };
            let (Ok(module), Ok(steps)) = (VerifiedModule::new(module), parse_pipeline(pipeline)) else { continue };
            if UNEQUAL.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let weights = Seeded { module: &module, seed: SEED };
            checked += 1;
            match verify_each(&module, &steps, &weights, SEED, &Tolerances::default(), &mut |_| {}) {
                Ok((all, _)) => {
                    compared += all.iter().map(|c| c.comparison.compared).sum::<usize>();
                    problems.extend(all.iter().find_map(|c| c.error()).map(|e| format!("{}: {e}", path.display())));
                }
                Err(e) => println!("{}: {}", path.display(), e.to_string().lines().next().unwrap_or_default()),
            }
        }
    }
    println!("{checked} files, {compared} results compared");
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    assert!(compared > 100, "{checked} files, {compared} results");
}
