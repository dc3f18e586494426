//! From a body to its answer: submits one request per choice to the batch and gathers what comes back.
//!
//! Invariant: nothing is submitted before every parameter has been read. Reading and encoding happen on a thread that may
//! wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use dlx_runtime::batch::Batch;
use dlx_runtime::decode::DecodeError;
use dlx_runtime::decode::policy::Attention;
use dlx_runtime::session::{Infill, Request};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::canvas::Canvas;
use crate::choices::{Asked, Choices, Head, Kind, Made, Note, Used, cut_off};
use crate::error::{ApiError, json_response};
use crate::listener::Listener;
use crate::models::Loaded;
use crate::params::{Params, Sampling, Usage, wrong};
use crate::{Answering, App, chat, completions, infill, responses, stream};

/// Answers a body.
pub(crate) async fn answer(app: Arc<App>, kind: Kind, body: Bytes) -> Result<Response<Body>, ApiError> {
    if app.draining.load(Ordering::Acquire) {
        return Err(draining());
    }
    let answering = Answering::new(&app);
    // Reading, rendering and encoding take long for long prompts.
    let (sender, state) = (tokio::runtime::Handle::current(), Arc::clone(&app));
    let submitted = sender.spawn_blocking(move || submit(&state, kind, &body, answering)).await;
    let (head, mut choices, stream) = submitted.map_err(|_| ApiError::server("the request could not be read"))??;
    choices.accepted(head.count, kind.prompt()).await?;
    if stream {
        return Ok(match kind {
            Kind::Response => responses::stream(app, head, choices),
            _ => stream::response(app, head, choices),
        });
    }
    let made = gather(&head, choices).await?;
    let used = Used::of(&made);
    app.metrics.used(&head.model, &used, head.n);
    let body = match kind {
        Kind::Response => responses::whole(&head, &made, &used),
        _ => whole(&head, &made, &used),
    };
    Ok(json_response(StatusCode::OK, &body))
}

/// The server ends.
pub(crate) fn draining() -> ApiError {
    let message = "the server is shutting down: try again";
    ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, "shutting_down", 5)
}

/// Reads a body and submits its choices.
fn submit(app: &Arc<App>, kind: Kind, body: &[u8], answering: Answering) -> Result<(Head, Choices, bool), ApiError> {
    let mut params = Params::read(body)?;
    let model = params.string("model")?.ok_or_else(|| wrong("model", "the name of a model"))?;
    let served = app.models.get(&model)?;
    let Loaded::Generator(batch) = &served.model else {
        let message = format!("the model `{model}` makes embeddings and generates no text: use /v1/embeddings");
        return Err(ApiError::invalid("model", message));
    };
    let own = batch.text().policy();
    // What sees the whole answer at once answers by its length.
    let default = if own.attention == Attention::Full { 64 } else { usize::MAX };
    let response = (kind == Kind::Response).then(|| responses::take(&mut params, default)).transpose()?;
    let sampling = Sampling::take(&mut params, &own.stop_ids)?;
    let n = sampling.n;
    let policy = own.with(&sampling.overrides).map_err(|e| ApiError::session(&DecodeError::from(e).into(), "model"))?;
    let asked = match (kind, response) {
        (_, Some(response)) => response,
        (Kind::Text, _) => completions::take(&mut params, n, batch.text(), &policy, batch.max_seq())?,
        (Kind::Infill, _) => infill::take(&mut params, batch.text(), &policy, batch.max_seq())?,
        _ => {
            let max_new = chat::max_tokens(&mut params)?.unwrap_or(default);
            Asked { prompts: vec![chat::prompt(&mut params)?], max_new, ..Asked::default() }
        }
    };
    params.finish("")?;
    if !asked.infills.is_empty() && sampling.overrides.stop_strings.is_some() {
        return Err(ApiError::unsupported("stop", " where gaps are filled in"));
    }
    let requests: Vec<Request> = match &asked.infills[..] {
        [] => asked.prompts.into_iter().map(|prompt| Request::new(prompt, asked.max_new)).collect(),
        infills => infills.iter().map(Infill::request).collect(),
    };
    let count = requests.len() * n;
    let capacity = batch.capacity();
    let most = capacity.sequences.saturating_add(capacity.waiting);
    if count > most {
        return Err(ApiError::invalid("n", format!("{count} choices are more than the {most} that this server takes")));
    }
    let (id, seed) = (Uuid::new_v4(), sampling.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0));
    let (choices, teller, cancel) = Choices::new(count, answering);
    for index in 0..count {
        let mut request = requests[index / n].clone();
        let stop_ids = request.overrides.stop_ids.take();
        request.overrides = sampling.overrides.clone();
        request.overrides.stop_ids = stop_ids.or(request.overrides.stop_ids);
        // Each choice of a prompt is drawn on its own.
        request.overrides.seed = Some(seed.wrapping_add((index % n) as u64));
        request.deadline = Instant::now().checked_add(app.timeout);
        request.cancel = Some(Arc::clone(&cancel));
        let filling = asked.infills.get(index / n).map(|infill| infill.filling(batch.text().tokenizer()));
        let canvas = sampling.canvas.then(Canvas::default);
        let mut listener = Listener { index, teller: teller.clone(), canvas, filling, failed: None };
        let taken = batch.submit(&request, Box::new(move |update| listener.hear(update)));
        taken.map_err(|refused| ApiError::refused(&refused, kind.prompt(), seconds_to_wait(batch)))?;
    }
    let head = Head {
        kind,
        id: format!("{}-{}", kind.prefix(), id.simple()),
        created: now(),
        model,
        count,
        echo: asked.echo,
        n,
        usage: sampling.stream.unwrap_or(Usage::Never),
        keep_alive: app.limits.keep_alive,
        repeats: asked.repeats,
        segments: asked.segments,
        infill: asked.infills.into_iter().next(),
        tokenizer: batch.text().tokenizer(),
    };
    Ok((head, choices, sampling.stream.is_some()))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// How long a refused client should wait: a second for each time that the queue fills the model.
fn seconds_to_wait(batch: &Batch) -> u64 {
    1 + (batch.load().waiting / batch.capacity().sequences.max(1)) as u64
}

/// Waits for all choices.
async fn gather(head: &Head, mut choices: Choices) -> Result<Vec<Made>, ApiError> {
    let mut made: Vec<Option<Made>> = (0..head.count).map(|_| None).collect();
    while made.iter().any(Option::is_none) {
        match choices.next().await {
            Some((index, Note::End(result))) => {
                made[index] = Some((*result).map_err(|e| ApiError::session(&e, head.kind.prompt()))?);
            }
            Some(_) => {}
            None => return Err(cut_off()),
        }
    }
    Ok(made.into_iter().flatten().collect())
}

/// The answer of a call without a stream.
fn whole(head: &Head, made: &[Made], used: &Used) -> Value {
    let choices = made.iter().enumerate().map(|(index, made)| {
        let text = format!("{}{}", head.echoed(index), made.text());
        let mut choice = match head.kind {
            Kind::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": null})
            }
            Kind::Infill => infill::choice(head, index, made),
            _ => json!({"index": index, "text": text, "logprobs": null}),
        };
        made.sign(&mut choice);
        choice
    });
    let name = match head.kind {
        Kind::Chat => "chat.completion",
        Kind::Infill => "infill",
        _ => "text_completion",
    };
    let mut body = head.object(name, choices.collect());
    body["usage"] = used.json(head.n);
    body
}
