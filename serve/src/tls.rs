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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_certificate_is_read_again_and_a_broken_one_is_not() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/serve/tls");
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let put = |what: &str, seconds: u64| {
            std::fs::copy(fixtures.join(format!("{what}key.pem")), &key).unwrap();
            std::fs::copy(fixtures.join(format!("{what}cert.pem")), &cert).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            std::fs::File::options().append(true).open(&cert).unwrap().set_modified(time).unwrap();
        };
        put("", 1000);
        let tls = Tls::new(cert.clone(), key.clone()).unwrap();
        // As if it had been a while since the files were looked at.
        let look = || {
            tls.now.lock().unwrap().looked = Instant::now().checked_sub(LOOK).unwrap();
            let acceptor = tls.acceptor();
            (Arc::as_ptr(acceptor.config()), tls.now.lock().unwrap().changed)
        };
        let first = look();
        assert_eq!(look(), first, "nothing has changed");
        put("other-", 2000);
        let second = look();
        assert!(second.0 != first.0 && second.1 != first.1);
        std::fs::write(&cert, "no certificate").unwrap();
        assert_eq!(look(), second, "the one that works stays");
        put("", 3000);
        assert_ne!(look(), second);
    }
}
