//! Connections, and how the server begins and ends.
//!
//! Invariant: it accepts connections before the models are there, and is ready only after their self-tests. Told to stop, it
//! refuses new work, lets running answers end, and ends itself. A client that sends its headers slowly, or does not
//! read, loses its connection.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dlx_runtime::batch::PrefixCache;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::embeddings::Turns;
use crate::metrics::Metrics;
use crate::models::{Loaded, Models};
use crate::spoken::Spoken;
use crate::tls::Tls;
use crate::{App, Limits, Options, routes};

/// Most connections at a time; further ones are closed.
const CONNECTIONS: usize = 1024;

/// Longest headers of a request in bytes.
const MAX_HEADERS: usize = 64 << 10;

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
    load: impl FnOnce() -> Result<BTreeMap<String, Loaded>, E> + Send + 'static,
    stop: &'static AtomicBool,
) -> Result<(), ServeError<E>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // One more loads models, and one makes embeddings.
        .max_blocking_threads(READERS + 2)
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
    load: impl FnOnce() -> Result<BTreeMap<String, Loaded>, E> + Send + 'static,
    stop: &'static AtomicBool,
) -> Result<(), ServeError<E>> {
    options.listener.set_nonblocking(true).map_err(ServeError::Io)?;
    let listener = TcpListener::from_std(options.listener).map_err(ServeError::Io)?;
    let app = Arc::new(App {
        models: Models::default(),
        turns: Turns::default(),
        keys: options.keys,
        admin_keys: options.admin_keys,
        loader: options.loader,
        loading: tokio::sync::Mutex::default(),
        hosts: options.hosts,
        timeout: options.timeout,
        limits: options.limits,
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
            for (model, loaded) in &loaded {
                let Loaded::Generator(batch) = loaded else { continue };
                match batch.prefix_cache() {
                    PrefixCache::On { page, rows } => tracing::info!(model, page, rows, "prefix cache"),
                    PrefixCache::Off(why) => tracing::info!(model, why, "no prefix cache"),
                }
            }
            app.models.begin(loaded);
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
        let (router, limits, watcher) = (router.clone(), options.limits, graceful.watcher());
        let acceptor = options.tls.as_ref().map(Tls::acceptor);
        tokio::spawn(async move {
            // A client that breaks off is no event.
            if let Some(stream) = greeted(stream, acceptor, limits).await {
                let _ = watcher.watch(connection(stream, router, limits)).await;
            }
            drop(permit);
        });
    }
    // Streams that were cut by the time limit, and the last bytes of the others.
    let _ = tokio::time::timeout(Duration::from_secs(2), graceful.shutdown()).await;
    tracing::info!("stopped");
    Ok(())
}

/// Bytes to and from a client.
trait Bytes: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Bytes for S {}

type Stream = Spoken<Pin<Box<TimeoutStream<Pin<Box<dyn Bytes>>>>>>;

type Connection = http1::Connection<TokioIo<Stream>, TowerToHyperService<axum::Router>>;

/// The stream of a client, after the handshake where it is encrypted; nothing where that fails or takes too long.
async fn greeted(stream: TcpStream, acceptor: Option<TlsAcceptor>, limits: Limits) -> Option<Pin<Box<dyn Bytes>>> {
    // A chunk is one token at times: it must not wait for the next one.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else { return Some(Box::pin(stream)) };
    let stream = tokio::time::timeout(limits.headers, acceptor.accept(stream)).await.ok()?.ok()?;
    Some(Box::pin(stream))
}

fn connection(stream: Pin<Box<dyn Bytes>>, router: axum::Router, limits: Limits) -> Connection {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.headers).max_buf_size(MAX_HEADERS);
    builder.serve_connection(TokioIo::new(Spoken::new(Box::pin(stream))), TowerToHyperService::new(router))
}
