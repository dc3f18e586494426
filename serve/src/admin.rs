//! Loading and unloading while the server runs: `/admin/models/load` and `/admin/models/unload`.
//!
//! Invariant: only who shows an admin key gets here, and without such keys there is nothing here. A model is replaced once
//! the new one is there and has passed its self-test; requests that came before are answered by the old one, which is let go
//! with the last of them.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::App;
use crate::error::{ApiError, json_response};
use crate::models::{Loaded, described};
use crate::params::{Params, wrong};

/// Loads the model of a name.
pub type Loader = Arc<dyn Fn(&str) -> Result<Loaded, NotLoaded> + Send + Sync>;

/// Why a model was not loaded.
#[derive(Debug)]
pub enum NotLoaded {
    /// There is none of that name.
    Unknown,
    /// It cannot be loaded; for people.
    Failed(String),
}

/// Takes the name of a model.
pub(crate) fn name(params: &mut Params) -> Result<String, ApiError> {
    params.string("model")?.ok_or_else(|| wrong("model", "the name of a model"))
}

fn read(body: &[u8]) -> Result<String, ApiError> {
    let mut params = Params::read(body)?;
    let name = name(&mut params)?;
    params.finish("")?;
    Ok(name)
}

/// Loads a model, or loads it again.
pub(crate) async fn load(app: Arc<App>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let name = read(&body)?;
    // What the server begins with comes first.
    app.models.all()?;
    let Some(loader) = app.loader.clone() else {
        return Err(ApiError::invalid("model", "this server was not told where to load models from"));
    };
    // Two at a time would need the memory of both.
    let _one = app.loading.lock().await;
    let begin = Instant::now();
    let wanted = name.clone();
    let loaded = tokio::task::spawn_blocking(move || loader(&wanted)).await;
    let loaded = loaded.map_err(|_| ApiError::server("something went wrong while the model was loaded"))?;
    let model = loaded.map_err(|why| match why {
        NotLoaded::Unknown => ApiError::model(&name, "that of a file in the directory of models"),
        NotLoaded::Failed(why) => ApiError::invalid("model", format!("the model cannot be loaded: {why}")),
    })?;
    let (served, replaced) = app.models.put(&name, model);
    let seconds = begin.elapsed().as_secs_f64();
    tracing::info!(model = %name, replaced, seconds, "loaded");
    let body: Value = json!({"model": described(&name, &served), "replaced": replaced, "seconds": seconds});
    Ok(json_response(StatusCode::OK, &body))
}

/// Lets a model go.
pub(crate) fn unload(app: &App, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let name = read(body)?;
    let served = app.models.get(&name)?;
    app.models.remove(&name);
    tracing::info!(model = %name, "unloaded");
    Ok(json_response(StatusCode::OK, &json!({"model": described(&name, &served), "unloaded": true})))
}
