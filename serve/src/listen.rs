//! Connections, and how the server begins and ends.
//!
//! Invariant: it accepts connections before the models are there, and is ready only after their self-tests. Told to stop, it
//! refuses new work, lets running answers end, and ends itself. A client that sends its headers slowly, or does not
//! read, loses its connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dlx_runtime::batch::{Batch, PrefixCache};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::answer::now;
use crate::metrics::Metrics;
use crate::{App, Options, Served, routes};

/// Most connections at a time; further ones are closed.
const CONNECTIONS: usize = 1024;

/// Longest headers of a request in bytes.
const MAX_HEADERS: usize = 64 << 10;

/// Time for the headers of a request, also of the next one on the same connection.
const HEADER_TIME: Duration = Duration::from_secs(60);

/// Time without a byte read by a client that is written to.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Pause between two looks at what says that the server should stop.
const POLL: Duration = Duration::from_millis(50);

/// Threads that read and encode requests.
const READERS: usize = 4;

/// Serves what `load` gives, by names, until `stop` is set and running answers have ended.
///
/// # Errors
/// What `load` says, or that the system gives no threads or takes the socket away.
pub fn serve<E: Send + 'static>(
    options: Options,
    load: impl FnOnce() -> Result<BTreeMap<String, Batch>, E> + Send + 'static,
    stop: &'static AtomicBool,
) -> Result<(), ServeError<E>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(READERS + 1)
        .enable_all()
        .build()
        .map_err(ServeError::Io)?;
    let served = runtime.block_on(run(options, load, stop));
    // Whatever still runs was asked to end and did not.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Why a server ended before it was told to.
#[derive(Debug)]
pub enum ServeError<E> {
    /// The system.
    Io(std::io::Error),
    /// A model could not be loaded.
    Load(E),
}

async fn run<E: Send + 'static>(
    options: Options,
    load: impl FnOnce() -> Result<BTreeMap<String, Batch>, E> + Send + 'static,
    stop: &'static AtomicBool,
) -> Result<(), ServeError<E>> {
    options.listener.set_nonblocking(true).map_err(ServeError::Io)?;
    let listener = TcpListener::from_std(options.listener).map_err(ServeError::Io)?;
    let app = Arc::new(App {
        models: OnceLock::new(),
        keys: options.keys,
        hosts: options.hosts,
        timeout: options.timeout,
        draining: AtomicBool::new(false),
        answering: AtomicUsize::new(0),
        metrics: Metrics::default(),
    });
    let mut loading = Some(tokio::task::spawn_blocking(load));
    let router = routes::router(Arc::clone(&app));
    let (connections, graceful) = (Arc::new(Semaphore::new(CONNECTIONS)), GracefulShutdown::new());
    let mut drained_by = None;
    loop {
        if stop.load(Ordering::Relaxed) && drained_by.is_none() {
            app.draining.store(true, Ordering::Release);
            tracing::info!(answering = app.answering.load(Ordering::Acquire), "draining");
            drained_by = Some(Instant::now() + options.drain);
        }
        if let Some(by) = drained_by
            && (app.answering.load(Ordering::Acquire) == 0 || Instant::now() >= by)
        {
            break;
        }
        if let Some(task) = loading.take_if(|task| task.is_finished()) {
            let loaded = task.await.map_err(|e| ServeError::Io(std::io::Error::other(e)))?.map_err(ServeError::Load)?;
            let created = now();
            for (model, batch) in &loaded {
                match batch.prefix_cache() {
                    PrefixCache::On { page, rows } => tracing::info!(model, page, rows, "prefix cache"),
                    PrefixCache::Off(why) => tracing::info!(model, why, "no prefix cache"),
                }
            }
            let served = loaded.into_iter().map(|(name, batch)| (name, Served { batch, created }));
            app.models.get_or_init(|| served.collect());
            tracing::info!("ready");
        }
        let Ok(accepted) = tokio::time::timeout(POLL, listener.accept()).await else { continue };
        // What fails concerns that connection, or passes when others are closed.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::info!("a connection was refused: there are too many");
            continue;
        };
        let connection = connection(stream, router.clone());
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no event.
            let _ = watched.await;
            drop(permit);
        });
    }
    // Streams that were cut by the time limit, and the last bytes of the others.
    let _ = tokio::time::timeout(Duration::from_secs(2), graceful.shutdown()).await;
    tracing::info!("stopped");
    Ok(())
}

type Connection =
    http1::Connection<TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>, TowerToHyperService<axum::Router>>;

fn connection(stream: TcpStream, router: axum::Router) -> Connection {
    // A chunk is one token at times: it must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(MAX_HEADERS);
    builder.serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}
