//! TLS, with a certificate that may be renewed while the server runs.
//!
//! Invariant: a certificate that cannot be read does not replace one that works; it is logged, and tried again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Pause between two looks at the files.
const LOOK: Duration = Duration::from_secs(10);

/// See the module.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    now: Mutex<Now>,
}

struct Now {
    acceptor: TlsAcceptor,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Tls {
    /// Reads a certificate, with those it is signed by, and its private key, both PEM.
    ///
    /// # Errors
    /// What is wrong with which file; for people.
    pub fn new(cert: PathBuf, key: PathBuf) -> Result<Self, String> {
        let acceptor = acceptor(&cert, &key)?;
        let now = Now { acceptor, changed: changed(&cert), looked: Instant::now() };
        Ok(Self { cert, key, now: Mutex::new(now) })
    }

    /// What greets the next client.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.looked.elapsed() >= LOOK {
            now.looked = Instant::now();
            let changed = changed(&self.cert);
            if changed != now.changed {
                match acceptor(&self.cert, &self.key) {
                    Ok(acceptor) => {
                        (now.acceptor, now.changed) = (acceptor, changed);
                        tracing::info!("the certificate was read again");
                    }
                    Err(why) => tracing::warn!(%why, "the certificate was not read again"),
                }
            }
        }
        now.acceptor.clone()
    }
}

fn changed(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn acceptor(cert: &std::path::Path, key: &std::path::Path) -> Result<TlsAcceptor, String> {
    let failed = |path: &std::path::Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let chain = CertificateDer::pem_file_iter(cert).map_err(|e| failed(cert, &e))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| failed(cert, &e))?;
    if chain.is_empty() {
        return Err(failed(cert, &"holds no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, secret).map_err(|e| failed(cert, &e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
