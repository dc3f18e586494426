//! The page at `/`: a chat, an infill editor and metrics, for people.
//!
//! Invariant: it asks nothing of any other machine, and nothing of it is executed that is not in these files; the headers
//! say so to the browser. It holds nothing secret, so it is given to anybody, who then needs a key for the rest.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};

const POLICY: &str =
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path below `/`, kind and text of each file.
const FILES: [(&str, &str, &str); 10] = [
    ("", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("page/app.js", SCRIPT, include_str!("page/app.js")),
    ("page/cells.js", SCRIPT, include_str!("page/cells.js")),
    ("page/chat.js", SCRIPT, include_str!("page/chat.js")),
    ("page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("page/infill.js", SCRIPT, include_str!("page/infill.js")),
    ("page/metrics.js", SCRIPT, include_str!("page/metrics.js")),
    ("page/server.js", SCRIPT, include_str!("page/server.js")),
    ("page/store.js", SCRIPT, include_str!("page/store.js")),
    ("page/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The file of a path, if there is one.
pub(crate) fn file(path: &str) -> Option<Response<Body>> {
    let (_, kind, text) = FILES.iter().find(|(name, ..)| path.strip_prefix('/') == Some(*name))?;
    let mut response = Response::new(Body::from(*text));
    *response.status_mut() = StatusCode::OK;
    for (name, value) in [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server has another page.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

/// Whether a path belongs to the page.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path.starts_with("/page/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_asks_nothing_of_others() {
        assert!(FILES.iter().map(|(.., text)| text.len()).sum::<usize>() <= 100_000);
        for (name, _, text) in FILES {
            let outside = text.matches("://").count() - text.matches("http://www.w3.org/").count();
            assert_eq!(outside, 0, "{name} names another machine");
            assert!(!text.contains("innerHTML") && !text.contains("style=\""), "{name} makes markup of text");
        }
    }
}
