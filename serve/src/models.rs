//! The models that are served, by name.
//!
//! Invariant: a request keeps its model until it is answered, whatever is loaded or unloaded meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::StatusCode;
use dlx_runtime::batch::Batch;
use dlx_runtime::embed::Embedder;

use serde_json::{Value, json};

use crate::answer::now;
use crate::error::ApiError;

/// A loaded model.
pub enum Loaded {
    /// Generates text.
    Generator(Batch),
    /// Makes embeddings of texts.
    Embedder(Arc<Embedder>),
}

/// A model that is served.
pub(crate) struct Served {
    pub(crate) model: Loaded,
    /// When it was loaded, in seconds since 1970.
    pub(crate) created: u64,
}

impl Served {
    fn new(model: Loaded) -> Arc<Self> {
        Arc::new(Self { model, created: now() })
    }

    /// Longest text in tokens, answer included.
    pub(crate) fn max_tokens(&self) -> usize {
        match &self.model {
            Loaded::Generator(batch) => batch.max_seq(),
            Loaded::Embedder(embedder) => embedder.max_tokens(),
        }
    }
}

/// What is told of a model.
pub(crate) fn described(name: &str, served: &Served) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "dlxc",
        "max_model_len": served.max_tokens(),
    })
}

/// See the module. Nothing is there until every model has been loaded.
#[derive(Default)]
pub(crate) struct Models(RwLock<Option<BTreeMap<String, Arc<Served>>>>);

impl Models {
    /// Puts the first models in place.
    pub(crate) fn begin(&self, loaded: BTreeMap<String, Loaded>) {
        let served = loaded.into_iter().map(|(name, model)| (name, Served::new(model))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(served);
    }

    /// Puts a model in place, and says whether it has replaced another.
    pub(crate) fn put(&self, name: &str, model: Loaded) -> (Arc<Served>, bool) {
        let served = Served::new(model);
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = models.get_or_insert_default().insert(name.to_owned(), Arc::clone(&served));
        (served, old.is_some())
    }

    /// Lets a model go.
    pub(crate) fn remove(&self, name: &str) {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        models.as_mut().and_then(|models| models.remove(name));
    }

    /// All of them.
    ///
    /// # Errors
    /// They are being loaded.
    pub(crate) fn all(&self) -> Result<BTreeMap<String, Arc<Served>>, ApiError> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.clone().ok_or_else(|| {
            let message = "the model is being loaded: try again";
            ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, "loading", 5)
        })
    }

    /// The model of that name.
    ///
    /// # Errors
    /// There is none, or they are being loaded.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Served>, ApiError> {
        let models = self.all()?;
        let known = || models.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let short = |name: &str| name.chars().take(128).collect::<String>();
        models.get(name).cloned().ok_or_else(|| ApiError::model(&short(name), &known()))
    }
}
