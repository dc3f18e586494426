//! One page about a compile: what the passes did, what is in the artifact, and how an answer came about.
//!
//! Invariant: the page is one file that loads nothing, and its bytes depend on the inputs alone. Every text from a file is
//! untrusted: the template escapes what it writes, data for the script stands in a block that cannot end early, and a
//! policy in the page forbids whatever does not carry a number that depends on all of it.

mod decode;
mod draw;
mod dump;
mod fold;
mod lines;
mod passes;
mod programs;
mod sizes;
mod stages;
mod time;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dlx_ir::{Error, VerifiedModule};
use dlx_runtime::artifact::{Artifact, ArtifactError, program_section};
use dlx_runtime::graph::read_graph_manifest;
use dlx_runtime::manifest::{Manifest, Quality};
use dlx_runtime::trace::Trace;
use dlx_runtime::{ModelError, read_manifest};
use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};
use serde::Serialize;
use serde_json::json;

use crate::cli::table;
use dump::Dump;
use lines::Lines;
use programs::Program;
pub use time::Machine;
use time::Time;

/// Most bytes of a page; a browser shows more, but nobody waits for it.
const MAX_PAGE: usize = 64 << 20;
const TEMPLATE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// What a page is made of: one of each kind at most.
#[derive(Default)]
pub struct Inputs {
    dump: Option<(PathBuf, Vec<Dump>)>,
    artifact: Option<Artifact>,
    trace: Option<(PathBuf, Trace)>,
}

impl Inputs {
    /// Reads directories of stages, artifacts and recordings, each known by what is in it.
    ///
    /// # Errors
    /// When one is none of them or is damaged, or there are two of a kind.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut inputs = Inputs::default();
        for path in paths {
            let again = match Kind::of(path)? {
                Kind::Dump => inputs.dump.replace((path.clone(), dump::read(path)?)).is_some(),
                Kind::Artifact => inputs.artifact.replace(open(path)?).is_some(),
                Kind::Trace => inputs.trace.replace((path.clone(), recording(path)?)).is_some(),
            };
            if again {
                let message = "is the second of its kind, and a page is about one compile";
                return Err(Error::new(path.display(), message)
                    .help("give one directory of stages, one artifact and one recording at most"));
            }
        }
        Ok(inputs)
    }

    /// The artifact, if one was given.
    pub fn artifact(&self) -> Option<&Artifact> {
        self.artifact.as_ref()
    }
}

enum Kind {
    Dump,
    Artifact,
    Trace,
}

impl Kind {
    fn of(path: &Path) -> Result<Self, Error> {
        let failed = |e: std::io::Error| {
            Error::new(path.display(), format!("cannot be read: {e}")).help("check that it exists and can be read")
        };
        let found = std::fs::metadata(path).map_err(failed)?;
        if found.is_dir() {
            return Ok(Kind::Dump);
        }
        // Opening a pipe would wait for a writer.
        if !found.is_file() {
            return Err(Error::new(path.display(), "is neither a file nor a directory"));
        }
        let mut first = [0];
        let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut first)).map_err(failed)?;
        Ok(if read == 1 && first[0] == b'{' { Kind::Trace } else { Kind::Artifact })
    }
}

fn open(path: &Path) -> Result<Artifact, Error> {
    Artifact::open(path).map_err(|e| match e {
        ArtifactError::NotAnArtifact { path } => {
            Error::new(path.display(), "is neither an artifact, nor a recording, nor a directory of stages").help(
                "give what `dlxc compile -o OUT.dlxa --dump DIR` wrote, or a recording of a decode (docs/report.md)",
            )
        }
        e => Error::new("", e.to_string()),
    })
}

fn recording(path: &Path) -> Result<Trace, Error> {
    let trace = Trace::read(path).map_err(|e| Error::new("", e.to_string()))?;
    if trace.steps.len() > decode::MAX_PASSES {
        let message = format!("has {} passes, and a page shows {} at most", trace.steps.len(), decode::MAX_PASSES);
        return Err(Error::new(path.display(), message).help("record a shorter answer"));
    }
    Ok(trace)
}

/// An input as the top of the page names it.
#[derive(Serialize)]
struct Named {
    kind: &'static str,
    name: String,
    about: String,
}

/// What is known of an artifact besides its programs.
#[derive(Default)]
struct Known {
    quality: Option<Quality>,
    time: Option<Time>,
    /// Why there is no time.
    timeless: String,
}

/// The page. `facts` are those of the artifact, as `dlxc inspect` tells them.
///
/// # Errors
/// When a program of the artifact is damaged, or the page would be too large.
pub fn page(inputs: &Inputs, facts: &[(String, String)], machine: Option<&Machine>) -> Result<String, Error> {
    let mut lines = Lines::default();
    let mut named = Vec::new();
    let passes = inputs.dump.as_ref().map(|(path, dumps)| {
        let stages: usize = dumps.iter().map(|d| d.stages.len()).sum();
        named.push(Named { kind: "stages", name: file_name(path), about: format!("{stages} stages") });
        passes::passes(dumps, &mut lines)
    });
    let (timelines, stages) = passes.unzip();
    let (mut programs, mut known) = (Vec::new(), Known::default());
    if let Some(artifact) = &inputs.artifact {
        programs = self::programs(artifact)?;
        known = self::known(artifact, &programs, machine)?;
        let bytes: u64 = artifact.sections().iter().map(|s| s.len).sum();
        named.push(Named { kind: "artifact", name: file_name(artifact.path()), about: table::bytes(bytes) });
    }
    let shown = (!programs.is_empty()).then(|| programs::show(&programs, &mut lines));
    let sizes = (!programs.is_empty()).then(|| sizes::sizes(&programs));
    let (decode, film) = inputs.trace.as_ref().map(|(_, trace)| decode::decode(trace)).unzip();
    if let Some((path, trace)) = &inputs.trace {
        named.push(Named { kind: "recording", name: file_name(path), about: format!("{} passes", trace.steps.len()) });
    }
    let data = json!({"lines": lines.into_texts(), "dumps": stages, "programs": shown, "film": film});
    let data = script_safe(&data.to_string());
    let nonce = blake3::hash(format!("{STYLE}{SCRIPT}{data}").as_bytes()).to_hex();
    let context = context! {
        nonce => &nonce[..32],
        css => Value::from_safe_string(STYLE.to_owned()),
        js => Value::from_safe_string(SCRIPT.to_owned()),
        data => Value::from_safe_string(data),
        inputs => Serde(&named),
        timelines => Serde(&timelines),
        facts => Serde(&facts),
        sizes => Serde(&sizes),
        quality => Serde(&known.quality),
        time => Serde(&known.time),
        timeless => known.timeless,
        has_graphs => !programs.is_empty(),
        decode => Serde(&decode),
        version => env!("CARGO_PKG_VERSION"),
    };
    let failed = |e: minijinja::Error| Error::new("page", format!("cannot be written: {e:#}"));
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    // The name's ending makes it escape what it is given.
    environment.add_template("page.html", TEMPLATE).map_err(failed)?;
    let page = environment.get_template("page.html").and_then(|t| t.render(context)).map_err(failed)?;
    if page.len() > MAX_PAGE {
        let message = format!("would have {}, more than a browser shows", table::bytes(page.len() as u64));
        return Err(Error::new("page", message).help("give fewer inputs, or compile with fewer --buckets"));
    }
    Ok(page)
}

/// JSON that ends no script block and starts no comment in one, whatever its strings hold.
fn script_safe(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The programs of an artifact, verified.
fn programs(artifact: &Artifact) -> Result<Vec<Program>, Error> {
    let targets = match read_manifest(artifact) {
        Ok(manifest) => manifest.targets,
        Err(ModelError::Graph { .. }) => vec!["cpu".to_owned()],
        Err(e) => return Err(Error::new("", e.to_string())),
    };
    let mut programs = Vec::with_capacity(targets.len());
    for target in targets {
        let section = program_section(&target);
        let place = |e: Error| Error::new(format!("{}: section `{section}`", artifact.path().display()), e.to_string());
        let text = artifact.text(&section).map_err(|e| Error::new("", e.to_string()))?;
        let module = VerifiedModule::new(dlx_ir::parse(text).map_err(place)?).map_err(|e| place(Error::first_of(e)))?;
        programs.push(Program { target, module: module.into_inner() });
    }
    Ok(programs)
}

fn known(artifact: &Artifact, programs: &[Program], machine: Option<&Machine>) -> Result<Known, Error> {
    let Manifest { policy, quality, .. } = match read_manifest(artifact) {
        Ok(manifest) => manifest,
        Err(_) => {
            read_graph_manifest(artifact).map_err(|e| Error::new("", e.to_string()))?;
            let timeless = "This artifact holds graphs that generate no text: their time is not predicted.".to_owned();
            return Ok(Known { timeless, ..Known::default() });
        }
    };
    let cpu = programs.iter().find(|p| p.target == "cpu");
    let timeless = match (cpu, machine) {
        (None, _) => "This artifact has no program for the CPU, and the time of others is not predicted.",
        (_, None) => {
            "No limits of a machine are known, so this counts work and predicts no time. Run dlxc explain ARTIFACT --measure once on the machine, or give its file with --machine FILE."
        }
        _ => "",
    };
    let time = cpu.map(|cpu| time::time(&cpu.module, &policy, machine)).transpose()?;
    Ok(Known { quality, time, timeless: timeless.to_owned() })
}
