//! An OpenAI-compatible HTTP server over [`Batch`]es: chat and text completions, models, health, metrics.
//!
//! Invariant: every parameter of a request is honored or refused by name, and every answer that is no success has the
//! error shape of OpenAI's API, on every path. What a client sends never reaches the logs. It decodes nothing itself: the
//! model runs on the batch's own thread, and a step never waits for a client.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dlx_runtime::batch::Batch;

mod answer;
mod canvas;
mod chat;
mod choices;
mod completions;
mod error;
mod guard;
mod infill;
mod listen;
mod listener;
mod metrics;
mod params;
mod responses;
mod routes;
mod stream;

pub use listen::{ServeError, serve};

/// How to serve.
pub struct Options {
    /// Where connections come in; bound, so that its address is known.
    pub listener: TcpListener,
    /// Keys, one of which a request must show; without any, nobody is asked.
    pub keys: Vec<String>,
    /// Names that clients may call this server by in the `Host` header, besides `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// Longest time for running answers to end after the server was told to stop.
    pub drain: Duration,
}

/// What all requests share.
struct App {
    /// Set when every model is loaded and has passed its self-test.
    models: OnceLock<BTreeMap<String, Served>>,
    keys: Vec<String>,
    hosts: Vec<String>,
    timeout: Duration,
    draining: AtomicBool,
    answering: AtomicUsize,
    metrics: metrics::Metrics,
}

/// A model by its name.
struct Served {
    batch: Batch,
    /// When it was loaded, in seconds since 1970.
    created: u64,
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

/// Writes the server's log to stderr from now on. A second call changes nothing.
pub fn log(format: LogFormat) {
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
