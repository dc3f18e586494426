//! What happens to one mutant: it is opened, loaded, asked a question, and its answer compared with that of the original.
//!
//! A worker is a process of its own, because an abort ends it. It writes one line before and one after every mutant, so
//! that whoever watches knows which one it was.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;

use dlx_runtime::artifact::Artifact;
use dlx_runtime::cpu::CpuOptions;
use dlx_runtime::selftest::SelfTest;
use dlx_runtime::session::{Prompt, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::wgpu::plan::Plan;
use dlx_runtime::{LoadOptions, Model};

use crate::container::{Sections, section, sign, sign_header, take_apart};
use crate::edits;
use crate::free::explained;
use crate::rng::Rng;

/// Tokens of an answer.
const MAX_NEW: usize = 12;

/// What a worker is asked to do.
pub(crate) struct Job {
    pub(crate) seed: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
}

/// An original.
struct Base {
    sections: Sections,
    answer: String,
}

/// Works off a job on the artifacts of a directory.
pub(crate) fn work(job: &Job, dir: &Path, log: &Path) {
    let mut log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "dlxa"));
    paths.sort();
    let bases: Vec<Base> = paths
        .iter()
        .map(|path| Base { sections: take_apart(&Artifact::open(path).unwrap()), answer: ask(path, true).unwrap() })
        .collect();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("mutant.dlxa");
    static PANIC: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| *PANIC.lock().unwrap() = info.to_string().replace('\n', " ")));
    for number in job.first..job.end {
        writeln!(log, "begin {number}").unwrap();
        let mut rng = Rng::new(job.seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let base = &bases[rng.below(bases.len())];
        let (what, outcome) = match catch_unwind(AssertUnwindSafe(|| mutant(&mut rng, base, &path))) {
            Ok(done) => done,
            Err(_) => (String::new(), format!("panic {}", PANIC.lock().unwrap())),
        };
        writeln!(log, "end {number} {} {}", peak_kib(), format!("{outcome} <- {what}").replace(['\n', '\r'], " "))
            .unwrap();
    }
}

/// Makes a mutant and says what was changed and what became of it.
fn mutant(rng: &mut Rng, base: &Base, path: &Path) -> (String, String) {
    let mut sections = base.sections.clone();
    let mut what = String::new();
    let mut header = false;
    let on_device = device();
    // On a device only its plan is of interest.
    let place = if on_device { 62 + rng.below(8) } else { rng.below(100) };
    match place {
        0..25 => edit(rng, &mut sections, "manifest", &mut what),
        25..62 => {
            let text = section(&mut sections, "program:cpu").unwrap();
            for _ in 0..1 + rng.below(4) / 3 {
                let _ = write!(what, "{}; ", edits::program(rng, text));
            }
        }
        62..70 => edit(rng, &mut sections, "plan:wgpu", &mut what),
        70..72 => drop(write!(what, "{}", edits::program(rng, section(&mut sections, "program:wgpu").unwrap()))),
        72..78 => edit(rng, &mut sections, "golden", &mut what),
        78..84 => edit(rng, &mut sections, "text", &mut what),
        84..92 => {
            edit(rng, &mut sections, "tokenizer", &mut what);
            if rng.below(2) == 0 {
                sign_tokenizer(&mut sections);
                what += " and its hash";
            }
        }
        92..97 => what = edits::table(rng, &mut sections),
        _ => header = true,
    }
    let Some(mut file) = sign(&sections) else { return (what, "error no header".into()) };
    if header {
        what = edits::bytes(rng, &mut file[..dlx_runtime::artifact::PAGE].to_vec());
        for _ in 0..1 + rng.below(3) {
            let at = 8 + rng.below(600);
            file[at] ^= 1 << rng.below(8);
            let _ = write!(what, " header {at}");
        }
        sign_header(&mut file);
    }
    std::fs::write(path, &file).unwrap();
    let plan = plan(&sections);
    let outcome = match (ask(path, true), plan) {
        (Err(e), _) => {
            // What the golden vectors stop must not break anything without them.
            if e.contains("self-test") {
                let _ = ask(path, false);
            }
            format!("error {e}")
        }
        (Ok(answer), _) if answer != base.answer => {
            if explained(&base.sections, &sections) {
                "free".into()
            } else {
                format!("silent {answer:?} instead of {:?}", base.answer)
            }
        }
        (Ok(_), Err(e)) => format!("error {e}"),
        (Ok(_), Ok(())) => "same".into(),
    };
    (what, outcome)
}

/// Edits a JSON section.
fn edit(rng: &mut Rng, sections: &mut Sections, name: &str, what: &mut String) {
    let Some(data) = section(sections, name) else { return };
    for _ in 0..1 + rng.below(4) / 3 {
        let edit = if rng.below(5) == 0 { edits::bytes(rng, data) } else { edits::json(rng, data) };
        let _ = write!(what, "{name} {edit}; ");
    }
}

/// Gives the manifest the hash that the tokenizer has now.
fn sign_tokenizer(sections: &mut Sections) {
    let hash = blake3::hash(section(sections, "tokenizer").unwrap()).to_hex().to_string();
    let manifest = section(sections, "manifest").unwrap();
    let mut tree: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    tree["model"]["tokenizer_hash"] = hash.into();
    *manifest = serde_json::to_vec(&tree).unwrap();
}

/// Checks the plan as loading does before it opens a device.
fn plan(sections: &Sections) -> Result<(), String> {
    let of = |name: &str| sections.iter().find(|(n, _)| n == name).map(|(_, bytes)| &bytes[..]);
    let plan: Plan = serde_json::from_slice(of("plan:wgpu").unwrap_or_default()).map_err(|e| e.to_string())?;
    let text = std::str::from_utf8(of("program:wgpu").unwrap_or_default()).map_err(|e| e.to_string())?;
    let program = dlx_ir::parse(text).map_err(|e| e.to_string())?;
    dlx_ir::verify(&program).map_err(|e| e[0].to_string())?;
    plan.check(of("weights").unwrap_or_default().len() as u64)?;
    plan.check_program(&program)
}

/// What an artifact answers on the CPU.
fn ask(path: &Path, self_test: bool) -> Result<String, String> {
    let artifact = Artifact::open(path).map_err(|e| e.to_string())?;
    let cpu = CpuOptions { threads: 1, isa: None };
    let target = if device() { "wgpu" } else { "cpu" };
    let self_test = if self_test { SelfTest::Whole } else { SelfTest::Skip };
    let options = LoadOptions { target: Some(target.into()), cpu, self_test, ..LoadOptions::default() };
    let model = Model::load(&artifact, &options).map_err(|e| e.to_string())?;
    let prompt = match &model.template {
        Some(_) => {
            let messages = vec![Message::new("user", "What is the capital of France?")];
            Prompt::Chat { messages, variables: serde_json::Map::new() }
        }
        None => Prompt::Text("The capital of France is".into()),
    };
    let mut session = Session::new(model).map_err(|e| e.to_string())?;
    let report = session.generate(&Request::new(prompt, MAX_NEW), &mut |_| ControlFlow::Continue(()));
    let report = report.map_err(|e| e.to_string())?;
    Ok(format!("{:?} {:?} {:?}", report.text, report.ids, report.finish))
}

/// Whether mutants run on a graphics device.
fn device() -> bool {
    std::env::var_os("DLX_MUTANT_WGPU").is_some()
}

/// Most memory that this process has had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0)
}
