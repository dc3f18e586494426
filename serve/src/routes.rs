//! The endpoints.
//!
//! Invariant: every path answers, with a status and a body that clients understand, and whatever panics is an error of that
//! one request.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::answer::{answer, draining};
use crate::choices::Kind;
use crate::error::{ApiError, json_response, json_text};
use crate::metrics::Metrics;
use crate::models::{Loaded, Served, described};
use crate::{App, admin, embeddings, guard, openapi, page};

/// Longest body.
pub(crate) const MAX_BODY: usize = 16 << 20;

/// Every path, as OpenAPI writes it.
pub(crate) const PATHS: [&str; 17] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/infill",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{id}",
    "/admin/models/load",
    "/admin/models/unload",
    "/health",
    "/health/ready",
    "/health/live",
    "/metrics",
    "/version",
    "/openapi.json",
    "/",
    "/page/{file}",
];

/// The endpoint of a path; what is no endpoint is not repeated, in logs or metrics.
pub(crate) fn known(path: &str) -> &'static str {
    let covers = |known: &str| match known.split_once('{') {
        Some((before, _)) => path.strip_prefix(before).is_some_and(|rest| !rest.is_empty()),
        None => path == known,
    };
    PATHS.into_iter().find(|known| covers(known)).unwrap_or("other")
}

/// All endpoints of an app.
pub(crate) fn router(app: Arc<App>) -> Router {
    let made = |kind: Kind| post(move |State(app): State<Arc<App>>, body: Body| complete(app, kind, body));
    let embed = |State(app): State<Arc<App>>, body: Body| async move {
        let body = read(&app, body).await?;
        embeddings::answer(app, body).await
    };
    let load = |State(app): State<Arc<App>>, body: Body| async move {
        let body = read(&app, body).await?;
        admin::load(app, body).await
    };
    let unload = |State(app): State<Arc<App>>, body: Body| async move {
        let body = read(&app, body).await?;
        admin::unload(&app, &body)
    };
    let fixed = |body: Value| get(move || std::future::ready(json_response(StatusCode::OK, &body)));
    let page = |uri: Uri| std::future::ready(page::file(uri.path()).ok_or_else(unknown));
    Router::new()
        .route("/v1/chat/completions", made(Kind::Chat))
        .route("/v1/completions", made(Kind::Text))
        .route("/v1/responses", made(Kind::Response))
        .route("/v1/infill", made(Kind::Infill))
        .route("/v1/embeddings", post(embed))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/admin/models/load", post(load))
        .route("/admin/models/unload", post(unload))
        .route("/health", get(ready))
        .route("/health/ready", get(ready))
        .route("/health/live", fixed(json!({"status": "ok"})))
        .route("/metrics", get(metrics))
        .route("/version", fixed(json!({"version": env!("CARGO_PKG_VERSION")})))
        .route("/openapi.json", get(|| std::future::ready(json_text(StatusCode::OK, openapi::TEXT))))
        .route("/", get(page))
        .route("/page/{file}", get(page))
        .fallback(|| async { unknown() })
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

/// There is nothing at a path.
pub(crate) fn unknown() -> ApiError {
    ApiError::request(StatusCode::NOT_FOUND, "there is no such path: see docs/serve.md", "unknown_url")
}

async fn complete(app: Arc<App>, kind: Kind, body: Body) -> Result<Response<Body>, ApiError> {
    let body = read(&app, body).await?;
    answer(app, kind, body).await
}

async fn read(app: &App, body: Body) -> Result<Bytes, ApiError> {
    let large = || {
        let message = format!("the body is longer than {MAX_BODY} bytes");
        ApiError::request(StatusCode::PAYLOAD_TOO_LARGE, message, "body_too_large")
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(large());
    }
    match tokio::time::timeout(app.limits.body, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if error.to_string().contains("length limit") => Err(large()),
        Ok(Err(_)) => Err(ApiError::request(StatusCode::BAD_REQUEST, "the body was not sent whole", "incomplete_body")),
        Err(_) => {
            let message = format!("the body took longer than {} s", app.limits.body.as_secs());
            Err(ApiError::request(StatusCode::BAD_REQUEST, message, "incomplete_body"))
        }
    }
}

async fn models(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    let list: Vec<Value> = app.models.all()?.iter().map(|(name, served)| described(name, served)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": list})))
}

async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response<Body>, ApiError> {
    // What is no text is no model's name.
    let id = id.map_or_else(|_| String::from("\u{FFFD}"), |Path(id)| id);
    Ok(json_response(StatusCode::OK, &described(&id, &*app.models.get(&id)?)))
}

async fn ready(State(app): State<Arc<App>>) -> Result<Response<Body>, ApiError> {
    if app.draining.load(Ordering::Acquire) {
        return Err(draining());
    }
    let stopped = |served: &Served| matches!(&served.model, Loaded::Generator(batch) if !batch.is_alive());
    if let Some((name, _)) = app.models.all()?.iter().find(|(_, served)| stopped(served)) {
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
