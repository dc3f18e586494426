//! An OpenAI-compatible HTTP server over [`Batch`](dlx_runtime::batch::Batch)es and
//! [`Embedder`](dlx_runtime::embed::Embedder)s.
//!
//! Invariant: every parameter of a request is honored or refused by name, and every answer that is no success has the
//! error shape of OpenAI's API, on every path. What a client sends never reaches the logs. It decodes nothing itself: the
//! model runs on the batch's own thread, and a step never waits for a client.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

mod admin;
mod answer;
mod canvas;
mod chat;
mod choices;
mod completions;
mod embeddings;
mod error;
mod format;
mod guard;
mod infill;
mod listen;
mod listener;
mod logprobs;
mod metrics;
mod models;
mod openapi;
mod page;
mod params;
mod responses;
mod routes;
mod spoken;
mod stream;
mod tls;
mod tools;

pub use admin::{Loader, NotLoaded};
pub use listen::{ServeError, serve};
pub use models::Loaded;
pub use tls::Tls;

/// How to serve.
pub struct Options {
    /// Where connections come in; bound, so that its address is known.
    pub listener: TcpListener,
    /// What connections are encrypted with, if they are.
    pub tls: Option<Tls>,
    /// Keys, one of which a request must show; without any, nobody is asked.
    pub keys: Vec<String>,
    /// Keys that loading and unloading ask for; without any, there is neither.
    pub admin_keys: Vec<String>,
    /// Loads models by name while the server runs.
    pub loader: Option<Loader>,
    /// Names that clients may call this server by in the `Host` header, besides `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// Longest time for running answers to end after the server was told to stop.
    pub drain: Duration,
    /// How long clients may take.
    pub limits: Limits,
}

/// How long clients may take, and how long they hear nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the headers of a request, also of the next one on the same connection.
    pub headers: Duration,
    /// Time for a body.
    pub body: Duration,
    /// Time without a byte read by a client that is written to.
    pub write: Duration,
    /// Time without an event after which a comment shows that a stream is alive.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { headers: seconds(60), body: seconds(30), write: seconds(30), keep_alive: seconds(10) }
    }
}

/// What all requests share.
struct App {
    models: models::Models,
    turns: embeddings::Turns,
    keys: Vec<String>,
    admin_keys: Vec<String>,
    loader: Option<Loader>,
    /// Held while a model is loaded.
    loading: tokio::sync::Mutex<()>,
    hosts: Vec<String>,
    timeout: Duration,
    limits: Limits,
    draining: AtomicBool,
    answering: AtomicUsize,
    metrics: metrics::Metrics,
}

/// An answer that is being made; the server does not end before it.
struct Answering(Arc<App>);

impl Answering {
    fn new(app: &Arc<App>) -> Self {
        app.answering.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(app))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object per line.
    Json,
}

/// Writes the server's log to stderr from now on; of panics only where they were, since their messages may hold what a
/// client sent. A second call changes nothing.
pub fn log(format: LogFormat) {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let begun = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if begun.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "a panic");
        }));
    }
}
