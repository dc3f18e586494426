//! What stands before every endpoint: request ids and logs, the `Host` and `Origin` that a browser shows, keys.
//!
//! Invariant: no line of the log holds anything of a body or a key. Keys are compared in constant time. No answer allows
//! another website's pages to read it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::App;
use crate::error::ApiError;
use crate::page::is_page;
use crate::routes::{known, unknown};

pub(crate) const REQUEST_ID: &str = "x-request-id";

/// Longest request id of a client's own that is taken over.
const MAX_ID: usize = 128;

/// Gives each request an id and writes a line about it.
pub(crate) async fn log(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<axum::body::Body> {
    let begin = Instant::now();
    let id = request_id(request.headers());
    let retry = request.headers().get("x-stainless-retry-count").and_then(|v| v.to_str().ok());
    let retry: u32 = retry.and_then(|v| v.parse().ok()).unwrap_or(0);
    let (method, path) = (request.method().clone(), known(request.uri().path()));
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    app.metrics.request(path, status);
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    tracing::info!(request_id = %id, %method, path, status, ms, retry, "request");
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The client's own id where it is harmless, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !id.is_empty() && id.len() <= MAX_ID && id.chars().all(harmless)
    };
    let own = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(sane);
    own.map_or_else(|| Uuid::new_v4().simple().to_string(), str::to_owned)
}

/// Lets through who calls the server by a name of its own, not through a page of another website, and shows a key.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<axum::body::Body> {
    let refused = host(&app, request.headers()).and_then(|()| key(&app, &request));
    match refused {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// The host without its port.
fn name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

fn host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let forbidden = |what: &str| Err(ApiError::request(StatusCode::FORBIDDEN, what, "host_not_allowed"));
    let given = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let Some(given) = given else {
        return Err(ApiError::request(StatusCode::BAD_REQUEST, "the request has no `Host` header", "no_host"));
    };
    // A website that points its own name at this machine shows that name; addresses cannot be pointed anywhere.
    let ours = |host: &str| {
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok()
            || app.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
    };
    if !ours(name(given)) {
        return forbidden("this server is not known by that `Host`: name it with --allow-host");
    }
    let origin = headers.get(header::ORIGIN).map(|v| v.to_str().unwrap_or_default());
    let same = |origin: &str| origin.split_once("://").is_some_and(|(_, host)| host.eq_ignore_ascii_case(given));
    if origin.is_some_and(|origin| !same(origin)) {
        return forbidden("pages of other origins may not use this server");
    }
    Ok(())
}

fn key(app: &App, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    let admin = path.starts_with("/admin/");
    let keys = if admin { &app.admin_keys } else { &app.keys };
    if admin && keys.is_empty() {
        return Err(unknown());
    }
    if keys.is_empty() || path.starts_with("/health") || is_page(path) {
        return Ok(());
    }
    let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
    // All keys are looked at, so the time says nothing of which one is near.
    let found = keys.iter().fold(subtle::Choice::from(0), |found, key| found | key.as_bytes().ct_eq(shown));
    if found.into() { Ok(()) } else { Err(ApiError::key()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_without_their_port() {
        for (authority, host) in
            [("localhost:80", "localhost"), ("a.b", "a.b"), ("[::1]:8080", "::1"), ("127.0.0.1:1", "127.0.0.1")]
        {
            assert_eq!(name(authority), host);
        }
    }

    #[test]
    fn only_harmless_ids_are_taken_over() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(with("abc-1_2.3"), "abc-1_2.3");
        for other in ["a b", "x\"y", &"x".repeat(129)] {
            assert_eq!(with(other).len(), 32, "{other}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
