//! `/v1/embeddings`.
//!
//! Invariant: texts of all requests are embedded one at a time, in turns, so a long list does not hold up a short one for
//! long. A client that is gone stops its text after the node that is being computed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use dlx_runtime::embed::{EmbedError, Embedder};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::answer::draining;
use crate::choices::Cancel;
use crate::error::{ApiError, json_response};
use crate::models::Loaded;
use crate::params::{Params, wrong};
use crate::{Answering, App};

/// Most texts of one request.
const MAX_TEXTS: usize = 2048;

/// What `input` may be.
const INPUT: &str = "a string, a list of up to 2048 strings, a list of token ids, or a list of such lists";

/// Most requests at a time.
const MAX_REQUESTS: usize = 64;

/// Whose turn it is.
pub(crate) struct Turns {
    turn: Semaphore,
    requests: AtomicUsize,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), requests: AtomicUsize::new(0) }
    }
}

/// A request among those that take turns.
struct Place(Arc<App>);

impl Place {
    fn new(app: &Arc<App>) -> Result<Self, ApiError> {
        let one_more = |n: usize| (n < MAX_REQUESTS).then_some(n + 1);
        let taken = app.turns.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.map_err(|n| {
            let message = format!("{n} requests for embeddings are waiting, as many as may: try again later");
            ApiError::later(StatusCode::TOO_MANY_REQUESTS, message, "queue_full", 5)
        })?;
        Ok(Self(Arc::clone(app)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.turns.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is asked for.
struct Asked {
    model: String,
    embedder: Arc<Embedder>,
    texts: Vec<Vec<i32>>,
    base64: bool,
}

/// Answers a body.
pub(crate) async fn answer(app: Arc<App>, body: Bytes) -> Result<Response<Body>, ApiError> {
    if app.draining.load(Ordering::Acquire) {
        return Err(draining());
    }
    let _answering = Answering::new(&app);
    let _place = Place::new(&app)?;
    let by = Instant::now() + app.timeout;
    let broken = |_| ApiError::server("something went wrong with this request");
    let state = Arc::clone(&app);
    // Encoding takes long for long texts.
    let read = tokio::task::spawn_blocking(move || read(&state, &body));
    let Asked { model, embedder, texts, base64 } = read.await.map_err(broken)??;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let cancel = Cancel(Arc::new(AtomicBool::new(false)));
    let mut data = Vec::with_capacity(texts.len());
    for (index, ids) in texts.into_iter().enumerate() {
        let _turn = app.turns.turn.acquire().await.map_err(|_| draining())?;
        let (embedder, cancel) = (Arc::clone(&embedder), Arc::clone(&cancel.0));
        let made = tokio::task::spawn_blocking(move || embedder.embed(&ids, &cancel));
        let Ok(made) = tokio::time::timeout_at(by, made).await else {
            let message = format!("the request takes longer than {} s: send fewer texts", app.timeout.as_secs());
            return Err(ApiError::request(StatusCode::BAD_REQUEST, message, "timeout"));
        };
        let vector = made.map_err(broken)?.map_err(|e| refused(&e, index))?;
        data.push(json!({"object": "embedding", "index": index, "embedding": written(&vector, base64)}));
    }
    app.metrics.read(&model, tokens);
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

/// A vector as numbers, or as the bytes of single-precision numbers, least significant first.
fn written(vector: &[f32], base64: bool) -> Value {
    if base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        return BASE64_STANDARD.encode(bytes).into();
    }
    json!(vector)
}

fn read(app: &App, body: &[u8]) -> Result<Asked, ApiError> {
    let mut params = Params::read(body)?;
    let model = params.string("model")?.ok_or_else(|| wrong("model", "the name of a model"))?;
    let served = app.models.get(&model)?;
    let Loaded::Embedder(embedder) = &served.model else {
        let message = format!("the model `{model}` generates text and makes no embeddings");
        return Err(ApiError::invalid("model", message));
    };
    let (base64, texts) = take(&mut params, embedder.width())?;
    params.finish("")?;
    let texts = texts.into_iter().enumerate().map(|(index, text)| {
        let ids = match text {
            Value::String(text) if !text.is_empty() => embedder.encode(&text).map_err(|e| refused(&e, index))?,
            Value::Array(ids) => {
                let id = |id: &Value| id.as_i64().and_then(|id| i32::try_from(id).ok());
                ids.iter().map(id).collect::<Option<Vec<_>>>().ok_or_else(|| wrong("input", INPUT))?
            }
            _ => return Err(wrong(&place(index), "a text that is not empty, or token ids")),
        };
        embedder.check(&ids).map_err(|e| refused(&e, index))?;
        Ok(ids)
    });
    let texts = texts.collect::<Result<_, _>>()?;
    Ok(Asked { model, embedder: Arc::clone(embedder), texts, base64 })
}

/// Takes what only embeddings have, of a model whose vectors have `width` numbers: whether they are told in base64, and texts
/// or token ids.
pub(crate) fn take(params: &mut Params, width: usize) -> Result<(bool, Vec<Value>), ApiError> {
    let base64 = match params.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(wrong("encoding_format", "float or base64")),
    };
    if params.count("dimensions", 1..=i64::from(i32::MAX))?.is_some_and(|n| n != width) {
        let what = format!(" other than {width}: the model was not trained for shorter vectors");
        return Err(ApiError::unsupported("dimensions", &what));
    }
    params.string("user")?;
    match params.take("input") {
        Some(Value::String(text)) => Ok((base64, vec![Value::String(text)])),
        Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_number) => {
            Ok((base64, vec![Value::Array(list)]))
        }
        Some(Value::Array(list)) if (1..=MAX_TEXTS).contains(&list.len()) => Ok((base64, list)),
        _ => Err(wrong("input", INPUT)),
    }
}

fn place(index: usize) -> String {
    format!("input[{index}]")
}

fn refused(error: &EmbedError, index: usize) -> ApiError {
    let invalid = ApiError::invalid(place(index), error.to_string());
    match error {
        EmbedError::TooLong { .. } => ApiError::context(place(index), &error.to_string()),
        EmbedError::Text(_) | EmbedError::Empty | EmbedError::NoToken(_) => invalid,
        _ => ApiError::server(error.to_string()),
    }
}
