//! A server on a loopback port, and a client that speaks HTTP by hand, so that what is on the wire is seen as it is.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dlx_runtime::batch::{Batch, Capacity};
use dlx_runtime::exec::Executor;
use dlx_runtime::{LoadOptions, Model};
use dlx_serve::{Limits, Loaded, Loader, Options, ServeError, Tls, serve};
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::Value;

/// A running server.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    pub(crate) stop: &'static AtomicBool,
    pub(crate) batch: Batch,
    thread: Option<JoinHandle<()>>,
}

/// What a server is started with.
pub(crate) struct Setup {
    pub(crate) capacity: Capacity,
    pub(crate) keys: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) max_seq: usize,
    /// Which of the trained tiny models is served, or another directory from that of the examples on.
    pub(crate) model: &'static str,
    /// Another chat template than the model's own.
    pub(crate) template: Option<&'static str>,
    /// Further models, by their names.
    pub(crate) more: Vec<(String, Loaded)>,
    /// What stands between the model and its executor.
    pub(crate) between: fn(Box<dyn Executor + Send>) -> Box<dyn Executor + Send>,
    pub(crate) limits: Limits,
    pub(crate) tls: Option<Tls>,
    pub(crate) admin_keys: Vec<String>,
    pub(crate) loader: Option<Loader>,
}

/// Where a trained tiny model lies.
pub(crate) fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models").join(name)
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            capacity: Capacity { sequences: 4, waiting: 16, ..Capacity::default() },
            keys: Vec::new(),
            timeout: Duration::from_secs(60),
            max_seq: 256,
            model: "sdar-tiny",
            template: None,
            more: Vec::new(),
            between: |executor| executor,
            limits: Limits::default(),
            tls: None,
            admin_keys: Vec::new(),
            loader: None,
        }
    }
}

impl Server {
    /// Starts a server of a model by the name `tiny` and waits until it is ready, unless it speaks TLS alone.
    pub(crate) fn start(setup: Setup) -> Self {
        let own = model(setup.model);
        let changed = setup.template.map(|template| with_template(&own, template));
        let path = changed.as_ref().map_or(own.as_path(), tempfile::TempDir::path);
        let options = CompileOptions { max_seq: Some(setup.max_seq), ..CompileOptions::default() };
        let loaded = compiled::load(path, &options, &LoadOptions::default()).unwrap();
        let Model { manifest, executor, tokenizer, template, .. } = loaded;
        let executor = (setup.between)(executor.into_executor());
        let batch = Batch::with_executor(executor, tokenizer, template, manifest.policy, setup.capacity).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), &*Box::leak(Box::new(AtomicBool::new(false))));
        let options = Options {
            listener,
            keys: setup.keys,
            hosts: vec!["models.example".into()],
            timeout: setup.timeout,
            drain: Duration::from_secs(30),
            tls: setup.tls,
            admin_keys: setup.admin_keys,
            loader: setup.loader,
            limits: setup.limits,
        };
        let secure = options.tls.is_some();
        let mut loaded = BTreeMap::from([("tiny".to_owned(), Loaded::Generator(batch.clone()))]);
        loaded.extend(setup.more);
        let thread = std::thread::spawn(move || {
            let served: Result<(), ServeError<()>> = serve(options, || Ok(loaded), stop);
            assert!(served.is_ok());
        });
        let server = Server { at, stop, batch, thread: Some(thread) };
        while !secure && server.get("/health/ready").status != 200 {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Waits for the server to end after it was told to.
    pub(crate) fn ended(mut self) {
        self.thread.take().expect("it is asked once").join().unwrap();
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that has read enough may close before all is written.
        let _ = stream.write_all(bytes);
        Answer::read(&mut stream)
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.raw(request(method, path, headers, body).as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "", &body.to_string())
    }

    /// A chat completion of one message with these parameters.
    pub(crate) fn chat(&self, parameters: Value) -> Answer {
        self.post("/v1/chat/completions", &chat(parameters))
    }

    /// Waits until nothing runs.
    pub(crate) fn idle(&self) {
        for _ in 0..12_000 {
            let load = self.batch.load();
            if load.running == 0 && load.waiting == 0 && load.slots_taken == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the batch never comes to rest: {:?}", self.batch.load());
    }
}

/// A checkpoint with another chat template.
fn with_template(model: &Path, template: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(model).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(path, config.to_string()).unwrap();
    dir
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let host = if headers.to_ascii_lowercase().contains("host:") { "" } else { "host: localhost\r\n" };
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\n{host}connection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

/// The body of a chat of one message, with these parameters over it.
pub(crate) fn chat(parameters: Value) -> Value {
    let mut body = serde_json::json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is 27 + 45?"}],
    });
    for (name, value) in parameters.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    /// Reads until the connection ends.
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        // A connection that is reset has sent what it had to.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).expect("answers are UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        let headers: BTreeMap<String, String> = lines
            .filter_map(|l| l.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let chunked = headers.get("transfer-encoding").is_some_and(|v| v == "chunked");
        let body = if chunked { dechunked(body) } else { body.to_owned() };
        Answer { status, headers, body }
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.headers.get("content-type").map(String::as_str), Some("application/json"), "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// Status, `param` and `code` of an error, whose shape is checked.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let error = body["error"].as_object().unwrap();
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!((keys, body.as_object().unwrap().len()), (vec!["message", "type", "param", "code"], 1), "{body}");
        assert!(!error["message"].as_str().unwrap().is_empty() && error["type"].is_string());
        assert!(self.headers.contains_key("x-request-id"));
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("param"), text("code"))
    }

    /// The events of a stream, which is checked to be framed as every client reads it.
    pub(crate) fn events(&self) -> Vec<Value> {
        for (name, value) in
            [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]
        {
            assert_eq!(self.headers.get(name).map(String::as_str), Some(value));
        }
        assert!(!self.body.contains('\r') && self.body.ends_with("\n\n"));
        let blocks: Vec<&str> =
            self.body.trim_end_matches('\n').split("\n\n").filter(|b| !b.starts_with(':')).collect();
        assert!(blocks.iter().all(|b| b.starts_with("data: ") && !b.contains('\n')), "{}", self.body);
        let mut events: Vec<&str> = blocks.iter().map(|b| &b["data: ".len()..]).collect();
        let done = events.pop();
        if done != Some("[DONE]") {
            events.extend(done);
        }
        events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

fn dechunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(chunk) = rest.get(..size) else { break };
        whole += chunk;
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}
