//! A connection on which hyper's own refusals have a body.
//!
//! What hyper cannot read as a request it answers by itself, with a status and nothing else. Clients of the API expect an
//! error object on every path, so such an answer is replaced while it is written.
//!
//! Invariant: every other byte passes as it is. An answer of this server is never taken for one of hyper's, since all of
//! its own have a request id.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use crate::error::ApiError;
use crate::guard::REQUEST_ID;
use axum::http::StatusCode;

/// See the module.
pub(crate) struct Spoken<S> {
    stream: S,
    /// What is written in place of hyper's answer, and how much of it has been.
    instead: Option<(Vec<u8>, usize)>,
}

impl<S> Spoken<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, instead: None }
    }
}

/// What to write in place of a refusal of hyper's own.
fn instead(written: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(written).ok()?.strip_suffix("\r\n\r\n")?.to_ascii_lowercase();
    let (status, headers) = head.strip_prefix("http/1.1 ")?.split_once("\r\n")?;
    let status = StatusCode::from_bytes(status.get(..3)?.as_bytes()).ok()?;
    if headers.contains(REQUEST_ID) {
        return None;
    }
    let (message, code) = match status {
        StatusCode::BAD_REQUEST => ("this is no HTTP/1.1 request", "malformed_request"),
        StatusCode::URI_TOO_LONG => ("the path is too long", "uri_too_long"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ("the headers are too many or too long", "headers_too_large"),
        _ => return None,
    };
    let body = ApiError::request(status, message, code).body().to_string();
    tracing::info!(status = status.as_u16(), "no request");
    let (id, length) = (Uuid::new_v4().simple(), body.len());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{REQUEST_ID}: {id}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    );
    Some(answer.into_bytes())
}

impl<S: AsyncRead + Unpin> AsyncRead for Spoken<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Spoken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            self.instead = instead(buf).map(|bytes| (bytes, 0));
        }
        let Self { stream, instead } = &mut *self;
        let Some((bytes, done)) = instead else { return Pin::new(stream).poll_write(cx, buf) };
        while let Some(rest) = bytes.get(*done..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Ok(0)),
                n => *done += n,
            }
        }
        *instead = None;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_of_hyper_are_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = String::from_utf8(instead(bare).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 ") && head.contains(&format!("content-length: {}", body.len())));
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["code"], "headers_too_large");
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nabc",
            b"data: HTTP/1.1 400 \r\n\r\n",
            b"\xff\r\n\r\n",
            b"",
        ] {
            assert_eq!(instead(other), None);
        }
    }
}
