//! `dlxc serve`: artifacts behind an OpenAI-compatible HTTP server.
//!
//! Invariant: the first line on stdout is where it listens; logs go to stderr and hold nothing that a client wrote.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dlx_ir::Error;
use dlx_runtime::batch::{Batch, Capacity};
use dlx_runtime::embed::Embedder;
use dlx_runtime::graph::{GraphOptions, read_graph_manifest};
use dlx_runtime::{AnyExecutor, Model};
use dlx_serve::{Limits, Loaded, Loader, NotLoaded, Options, ServeError, Tls, serve};

use super::{Failure, Place, terminal};
use crate::options::QuantSpec;

/// Longest file of keys.
const MAX_KEYS: u64 = 1 << 20;

/// Serve compiled models over HTTP, in the way of OpenAI's API
#[derive(Parser, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// .dlxa files, or model directories to compile first; each is served by the name of its file or directory.
    #[arg(value_name = "ARTIFACT|MODEL", required_unless_present = "models_dir")]
    pub models: Vec<PathBuf>,
    /// Address to listen on; 0.0.0.0 lets other machines in.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// File with one API key per line; requests must show one of them.
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// PEM file of a certificate, with those it is signed by: connections are then encrypted. It is read again when it has
    /// changed.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// File with one key per line that loading and unloading while running ask for; without it there is neither.
    #[arg(long, value_name = "FILE")]
    pub admin_key_file: Option<PathBuf>,
    /// Directory of .dlxa files that may be loaded by their names while running.
    #[arg(long, value_name = "DIR", requires = "admin_key_file")]
    pub models_dir: Option<PathBuf>,
    /// Name by which clients may call this server, besides localhost and addresses; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Requests that a model answers side by side; each takes caches of its own.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub sequences: u16,
    /// Further requests that may wait for a model.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub waiting: u16,
    /// Cache rows that are kept for prompts that begin alike, or off.
    #[arg(long, value_name = "ROWS|off", default_value = "4096", value_parser = prefix_rows)]
    pub prefix_cache: usize,
    /// Longest time for an answer, such as 30s or 10m.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::run::time)]
    pub timeout: Duration,
    /// Longest time for running answers to end after Ctrl-C or a termination signal.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = super::run::time)]
    pub drain: Duration,
    /// Threads that compute, one per core if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Format of the weights when a model directory is compiled first; int4 if not given, but what comes quantized stays so.
    #[arg(long, value_name = "FORMAT")]
    pub quant: Option<QuantSpec>,
    /// Where models run.
    #[command(flatten)]
    pub place: Place,
    /// Print the address and the logs as JSON.
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  dlxc serve sdar.dlxa
  dlxc serve sdar.dlxa qwen.dlxa --port 8000 --sequences 16
  dlxc serve sdar.dlxa --host 0.0.0.0 --allow-host models.example.com --api-key-file keys.txt \
    --tls-cert chain.pem --tls-key key.pem
  dlxc serve sdar.dlxa --models-dir models --admin-key-file admin.txt
  curl http://localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\": \"sdar\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 27 + 45?\"}]}'

docs/serve.md says what requests may ask for.";

/// Serves until it is told to stop.
pub fn run(args: &Args) -> Result<(), Failure> {
    let names = names(&args.models)?;
    let admin_keys = args.admin_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    let keys = args.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    let tls = args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| Tls::new(cert, key)).transpose();
    let tls =
        tls.map_err(|e| Error::new("--tls-cert", e).help("give PEM files of a certificate and its private key"))?;
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind((args.host.as_str(), args.port)).map_err(|e| {
        Error::new(&address, format!("cannot be listened on: {e}"))
            .help("use another --port or --host, or 0 for a free port")
    })?;
    let at = listener.local_addr().map_err(|e| Error::new(&address, e.to_string()))?;
    dlx_serve::log(if args.json { dlx_serve::LogFormat::Json } else { dlx_serve::LogFormat::Text });
    let url = format!("{}://{at}", if tls.is_some() { "https" } else { "http" });
    terminal::print(&if args.json {
        format!("{}\n", serde_json::json!({"address": url}))
    } else {
        format!("{url}\n")
    })?;
    let (sequences, waiting) = (usize::from(args.sequences), usize::from(args.waiting));
    let capacity = Capacity { sequences, waiting, prefix_rows: args.prefix_cache, ..Capacity::default() };
    let how = How { quant: args.quant, place: args.place.clone(), threads: args.threads, capacity };
    let options = Options {
        listener,
        tls,
        keys,
        admin_keys,
        loader: Some(loader(names.clone(), args.models_dir.clone(), how.clone())),
        hosts: [args.allow_host.clone(), vec![args.host.clone()]].concat(),
        timeout: args.timeout,
        drain: args.drain,
        limits: Limits::default(),
    };
    let load = move || {
        let loaded = names.into_iter().map(|(name, path)| Ok((name, how.load(&path)?)));
        loaded.collect::<Result<BTreeMap<_, _>, Failure>>()
    };
    match serve(options, load, terminal::interrupt_flag()) {
        Ok(()) => Ok(()),
        Err(ServeError::Load(failure)) => Err(failure),
        Err(ServeError::Io(e)) => Err(Error::new(url, format!("cannot be served: {e}")).into()),
    }
}

/// How models are loaded.
#[derive(Clone)]
struct How {
    quant: Option<QuantSpec>,
    place: Place,
    threads: Option<u16>,
    /// What a model has room for.
    capacity: Capacity,
}

impl How {
    /// Loads a text generator or an encoder; a model directory is compiled first.
    fn load(&self, path: &Path) -> Result<Loaded, Failure> {
        let Self { quant, place, threads, capacity } = self;
        let artifact = super::opened(super::artifact_of(path, *quant, place)?, place)?;
        if read_graph_manifest(&artifact).is_ok() {
            let limit = GraphOptions::default();
            let options = GraphOptions { memory: place.max_memory.unwrap_or(limit.memory), ..limit };
            let embedder = Embedder::load(&artifact, &options).map_err(|e| Error::new("", e.to_string()))?;
            return Ok(Loaded::Embedder(Arc::new(embedder)));
        }
        let model = super::load(&artifact, place, *threads)?;
        Ok(Loaded::Generator(batch(path, model, *capacity)?))
    }
}

/// Loads by name what the server began with, and artifacts in a directory.
fn loader(names: BTreeMap<String, PathBuf>, dir: Option<PathBuf>, how: How) -> Loader {
    Arc::new(move |name| {
        let path = names.get(name).cloned().or_else(|| inside(dir.as_deref()?, name)).ok_or(NotLoaded::Unknown)?;
        how.load(&path).map_err(|failure| match failure {
            Failure::Error(error) => NotLoaded::Failed(error.to_string()),
            _ => NotLoaded::Failed("the server is shutting down".into()),
        })
    })
}

/// The artifact of a name in a directory; a name is no way out of it.
fn inside(dir: &Path, name: &str) -> Option<PathBuf> {
    let path = dir.join(format!("{name}.dlxa"));
    let plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
    (plain && path.is_file()).then_some(path)
}

fn batch(path: &Path, model: Model, capacity: Capacity) -> Result<Batch, Error> {
    // A graphics device takes a long prompt in large steps at little cost to the others.
    let prefill_rows = match model.executor {
        AnyExecutor::Cpu(_) => capacity.prefill_rows,
        _ => usize::MAX,
    };
    Batch::new(model, Capacity { prefill_rows, ..capacity }).map_err(|e| {
        let help = "use fewer --sequences, a smaller --prefix-cache, or compile with a smaller --max-seq";
        Error::new(path.display(), e.to_string()).help(help)
    })
}

/// Rows of the prefix cache.
pub(super) fn prefix_rows(text: &str) -> Result<usize, String> {
    let rows: Option<u32> = if text == "off" { Some(0) } else { text.parse().ok() };
    rows.and_then(|rows| usize::try_from(rows).ok()).ok_or_else(|| "use a number of rows, or `off`".to_owned())
}

/// Names of models: those of their files or directories.
fn names(models: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut names = BTreeMap::new();
    for path in models {
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = stem.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::new(path.display(), "has no name of its own").help("name the file or directory itself"));
        }
        if let Some(other) = names.insert(name.clone(), path.clone()) {
            let text = format!("would be served by the same name, `{name}`, as {}", other.display());
            return Err(Error::new(path.display(), text).help("rename one of them"));
        }
    }
    Ok(names)
}

fn keys(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |what: String| Error::new(path.display(), what).help("write one API key per line");
    let size = std::fs::metadata(path).map_err(|e| failed(format!("cannot be read: {e}")))?.len();
    if size > MAX_KEYS {
        return Err(failed(format!("has {size} bytes, more than {MAX_KEYS}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed(format!("cannot be read: {e}")))?;
    let keys: Vec<String> = text.lines().map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned).collect();
    if keys.is_empty() { Err(failed("holds no key".into())) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_names_of_their_own() {
        let of = |paths: &[&str]| names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["a/x.dlxa", "b/y.int4.dlxa"]).unwrap().into_keys().collect::<Vec<_>>(), ["x", "y.int4"]);
        assert!(of(&["a/x.dlxa", "b/x.dlxa"]).unwrap_err().message.contains("a/x.dlxa"));
    }

    #[test]
    fn a_name_is_no_way_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("models");
        std::fs::create_dir(&below).unwrap();
        for file in [below.join("x.dlxa"), below.join("x.y.dlxa"), below.join(".dlxa"), dir.path().join("z.dlxa")] {
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(inside(&below, "x"), Some(below.join("x.dlxa")));
        assert_eq!(inside(&below, "x.y"), Some(below.join("x.y.dlxa")));
        for name in ["", "none", "../z", "..", "./x", "models/../x", "x\0", "..\\z", below.join("x").to_str().unwrap()]
        {
            assert_eq!(inside(&below, name), None, "{name:?}");
        }
    }

    #[test]
    fn a_file_of_keys_holds_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "one\n\n two \n").unwrap();
        assert_eq!(keys(&path).unwrap(), ["one", "two"]);
        std::fs::write(&path, "\n").unwrap();
        assert!(keys(&path).unwrap_err().message.contains("no key"));
        assert!(keys(&dir.path().join("none")).is_err());
    }
}
