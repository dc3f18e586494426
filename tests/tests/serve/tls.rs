//! TLS: an encrypted connection works like another, and what is not encrypted is not answered.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dlx_serve::{Limits, Tls};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::client::{Answer, Server, Setup, chat, request};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/tls").join(name)
}

/// A connection of a client that trusts this certificate.
fn connect(server: &Server, trusted: &str, host: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file(trusted)).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), host.to_owned().try_into().unwrap()).unwrap();
    StreamOwned::new(client, server.connect())
}

fn ask(server: &Server, bytes: &str) -> Answer {
    let mut stream = connect(server, "cert.pem", "localhost");
    stream.write_all(bytes.as_bytes()).unwrap();
    Answer::read(&mut stream)
}

fn server() -> Server {
    let limits = Limits { headers: Duration::from_millis(500), ..Limits::default() };
    let tls = Tls::new(file("cert.pem"), file("key.pem")).unwrap();
    let server = Server::start(Setup { tls: Some(tls), limits, ..Setup::default() });
    while ask(&server, &request("GET", "/health/ready", "", "")).status != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

#[test]
fn answers_and_streams_are_encrypted() {
    let server = server();
    let body = chat(json!({"stream": true})).to_string();
    let events = ask(&server, &request("POST", "/v1/chat/completions", "", &body)).events();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "72");
    let refused = ask(&server, "GET\r\n\r\n");
    assert_eq!(refused.error(), (400, String::new(), "malformed_request".into()));
    let page = ask(&server, &request("GET", "/", "origin: https://localhost\r\n", ""));
    assert_eq!(page.status, 200);
}

#[test]
fn strangers_get_nothing() {
    let server = server();
    // A client that trusts another certificate, or calls the server by a name that is not in it.
    for (trusted, host) in [("other-cert.pem", "localhost"), ("cert.pem", "evil.example")] {
        let mut stream = connect(&server, trusted, host);
        assert!(stream.write_all(request("GET", "/version", "", "").as_bytes()).and_then(|()| stream.flush()).is_err());
    }
    let mut plain = server.connect();
    plain.write_all(request("GET", "/version", "", "").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP"), "an answer that is not encrypted");
    // A handshake that never goes on ends.
    let mut half = server.connect();
    let _ = half.read_to_end(&mut bytes);
}

#[test]
fn files_that_are_no_certificate_are_named() {
    let failed = |cert: &str, key: &str| Tls::new(file(cert), file(key)).err().unwrap();
    assert!(failed("none.pem", "key.pem").contains("none.pem"));
    assert!(failed("key.pem", "key.pem").contains("holds no certificate"));
    assert!(failed("cert.pem", "cert.pem").contains("cert.pem"));
    assert!(failed("cert.pem", "other-key.pem").contains("cert.pem"), "a key of another certificate");
}
