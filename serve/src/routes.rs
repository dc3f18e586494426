//! The endpoints.
//!
//! Invariant: every path answers, with a status and a body that clients understand, and whatever panics is an error of that
//! one request.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::answer::{answer, draining, loading, served};
use crate::choices::Kind;
use crate::error::{ApiError, json_response};
use crate::metrics::Metrics;
use crate::{App, Served, guard};

/// Longest body.
pub(crate) const MAX_BODY: usize = 16 << 20;

/// Time in which a body must have come.
const BODY_TIME: Duration = Duration::from_secs(30);

const PATHS: [&str; 11] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{id}",
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/version",
    "/v1/responses",
    "/v1/infill",
];

/// The endpoint of a path; what is no endpoint is not repeated, in logs or metrics.
pub(crate) fn known(path: &str) -> &'static str {
    if path.starts_with("/v1/models/") {
        return PATHS[3];
    }
    PATHS.iter().find(|known| **known == path).copied().unwrap_or("other")
}

/// All endpoints of an app.
pub(crate) fn router(app: Arc<App>) -> Router {
    let chat = |State(app): State<Arc<App>>, body: Body| complete(app, Kind::Chat, body);
    let text = |State(app): State<Arc<App>>, body: Body| complete(app, Kind::Text, body);
    let response = |State(app): State<Arc<App>>, body: Body| complete(app, Kind::Response, body);
    let infill = |State(app): State<Arc<App>>, body: Body| complete(app, Kind::Infill, body);
    Router::new()
        .route(PATHS[0], post(chat))
        .route(PATHS[1], post(text))
        .route(PATHS[2], get(models))
        .route("/v1/models/{*id}", get(model))
        .route(PATHS[4], get(ready))
        .route(PATHS[5], get(|| async { json_response(StatusCode::OK, &json!({"status": "ok"})) }))
        .route(PATHS[6], get(ready))
        .route(PATHS[7], get(metrics))
        .route(
            PATHS[8],
            get(|| async { json_response(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")})) }),
        )
        .route(PATHS[9], post(response))
        .route(PATHS[10], post(infill))
        .fallback(|| async {
            ApiError::request(StatusCode::NOT_FOUND, "there is no such path: see docs/serve.md", "unknown_url")
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path does not take that method: see docs/serve.md";
            ApiError::request(StatusCode::METHOD_NOT_ALLOWED, message, "method_not_allowed")
        })
        .layer(from_fn_with_state(Arc::clone(&app), guard::check))
        .layer(CatchPanicLayer::custom(|_: Box<dyn Any + Send>| {
            ApiError::server("something went wrong with this request").into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(&app), guard::log))
        .with_state(app)
}

async fn complete(app: Arc<App>, kind: Kind, body: Body) -> Result<Response<Body>, ApiError> {
    let body = read(body).await?;
    answer(app, kind, body).await
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let large = || {
        let message = format!("the body is longer than {MAX_BODY} bytes");
        ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, message, "body_too_large")
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(large());
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.to_string().contains("length limit") => Err(large()),
        Ok(Err(_)) => Err(ApiError::request(StatusCode::BAD_REQUEST, "the body was not sent whole", "incomplete_body")),
        Err(_) => {
            let message = "the body took longer than 30 seconds";
            Err(ApiError::request(StatusCode::BAD_REQUEST, message, "incomplete_body"))
        }
    }
}

async fn models(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    let models = app.models.get().ok_or_else(loading)?;
    let list: Vec<Value> = models.iter().map(|(name, served)| described(name, served)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": list})))
}

async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, ApiError> {
    // What is no text is no model's name.
    let id = id.map_or_else(|_| String::from("\u{FFFD}"), |Path(id)| id);
    Ok(json_response(StatusCode::OK, &described(&id, served(&app, &id)?)))
}

fn described(name: &str, served: &Served) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "dlxc",
        "max_model_len": served.batch.max_seq(),
    })
}

async fn ready(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    if app.draining.load(Ordering::Acquire) {
        return Err(draining());
    }
    let models = app.models.get().ok_or_else(loading)?;
    if let Some(name) = models.iter().find(|(_, served)| !served.batch.is_alive()).map(|(name, _)| name) {
        let message = format!("the model `{name}` has stopped: start the server again");
        return Err(ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, "model_stopped", 60));
    }
    Ok(json_response(StatusCode::OK, &json!({"status": "ok"})))
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let mut response = Response::new(Body::from(Metrics::text(&app)));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
