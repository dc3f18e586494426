//! From a body to its answer: submits one request per choice to the batch and gathers what comes back.
//!
//! Invariant: what is sent to a client waits in a bounded buffer, and whoever does not read in time is cut off instead of
//! holding up a step.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use dlx_runtime::batch::{Batch, Update};
use dlx_runtime::decode::policy::Attention;
use dlx_runtime::session::{Event, Report, Request};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::choices::{Asked, Choices, Head, Kind, Note, Teller, Used, cut_off, finish_reason};
use crate::error::{ApiError, json_response};
use crate::params::{Params, Sampling, Usage, wrong};
use crate::{Answering, App, Served, chat, completions, responses, stream};

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
    let (reports, used) = gather(&head, choices).await?;
    app.metrics.used(&head.model, &used, head.n);
    let body = match kind {
        Kind::Response => responses::whole(&head, &reports, &used),
        _ => whole(&head, &reports, &used),
    };
    Ok(json_response(StatusCode::OK, &body))
}

/// The server ends.
pub(crate) fn draining() -> ApiError {
    let message = "the server is shutting down: try again";
    ApiError::later(StatusCode::SERVICE_UNAVAILABLE, message, "shutting_down", 5)
}

/// Finds a model.
pub(crate) fn served<'a>(app: &'a App, name: &str) -> Result<&'a Served, ApiError> {
    let models = app.models.get().ok_or_else(loading)?;
    let known = || models.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let short = |name: &str| name.chars().take(128).collect::<String>();
    models.get(name).ok_or_else(|| ApiError::model(&short(name), &known()))
}

/// The models are not there yet.
pub(crate) fn loading() -> ApiError {
    ApiError::later(StatusCode::SERVICE_UNAVAILABLE, "the model is being loaded: try again", "loading", 5)
}

/// Reads a body and submits its choices.
fn submit(app: &Arc<App>, kind: Kind, body: &[u8], answering: Answering) -> Result<(Head, Choices, bool), ApiError> {
    let mut params = Params::read(body)?;
    let model = params.string("model")?.ok_or_else(|| wrong("model", "the name of a model"))?;
    let served = served(app, &model)?;
    let batch = &served.batch;
    let policy = batch.text().policy();
    // What sees the whole answer at once answers by its length.
    let default = if policy.attention == Attention::Full { 64 } else { usize::MAX };
    let response = (kind == Kind::Response).then(|| responses::take(&mut params, default)).transpose()?;
    let sampling = Sampling::take(&mut params, &policy.stop_ids)?;
    let n = sampling.n;
    let asked = match (kind, response) {
        (_, Some(response)) => response,
        (Kind::Text, _) => completions::take(&mut params, n, batch.text())?,
        _ => {
            let max_new = chat::max_tokens(&mut params)?.unwrap_or(default);
            Asked { prompts: vec![chat::prompt(&mut params)?], max_new, ..Asked::default() }
        }
    };
    params.finish("")?;
    let count = asked.prompts.len() * n;
    let capacity = batch.capacity();
    let most = capacity.sequences.saturating_add(capacity.waiting);
    if count > most {
        return Err(ApiError::invalid("n", format!("{count} choices are more than the {most} that this server takes")));
    }
    let (id, seed) = (Uuid::new_v4(), sampling.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0));
    let (choices, teller, cancel) = Choices::new(count, answering);
    for (index, prompt) in asked.prompts.into_iter().flat_map(|p| std::iter::repeat_n(p, n)).enumerate() {
        let mut request = Request::new(prompt, asked.max_new);
        request.overrides = sampling.overrides.clone();
        // Each choice of a prompt is drawn on its own.
        request.overrides.seed = Some(seed.wrapping_add((index % n) as u64));
        request.deadline = Instant::now().checked_add(app.timeout);
        request.cancel = Some(Arc::clone(&cancel));
        let taken = batch.submit(&request, Box::new(listener(index, teller.clone())));
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
        repeats: asked.repeats,
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

fn listener(index: usize, send: Teller) -> impl FnMut(Update<'_>) -> ControlFlow<()> + Send {
    move |update| {
        let note = match update {
            Update::Waiting => Note::Waiting,
            Update::Event { event: Event::Begin { prompt, .. }, .. } => Note::Begin { prompt_tokens: prompt.len() },
            Update::Event { event: Event::Text(piece), tokens } => Note::Text { piece: piece.to_owned(), tokens },
            Update::End(result) => Note::End(result),
            Update::Event { .. } if send.is_closed() => return ControlFlow::Break(()),
            Update::Event { .. } => return ControlFlow::Continue(()),
        };
        // A client that is gone, or has not read for a whole buffer, is let go.
        if send.try_send((index, note)).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Waits for all choices.
async fn gather(head: &Head, mut choices: Choices) -> Result<(Vec<Report>, Used), ApiError> {
    let mut reports: Vec<Option<Report>> = (0..head.count).map(|_| None).collect();
    while reports.iter().any(Option::is_none) {
        match choices.next().await {
            Some((index, Note::End(result))) => {
                reports[index] = Some((*result).map_err(|e| ApiError::session(&e, head.kind.prompt()))?);
            }
            Some(_) => {}
            None => return Err(cut_off()),
        }
    }
    let reports: Vec<Report> = reports.into_iter().flatten().collect();
    let used = Used {
        prompt: reports.iter().map(|r| r.prompt_tokens).collect(),
        completion: reports.iter().map(|r| r.ids.len()).collect(),
    };
    Ok((reports, used))
}

/// The answer of a call without a stream.
fn whole(head: &Head, reports: &[Report], used: &Used) -> Value {
    let choices = reports.iter().enumerate().map(|(index, report)| {
        let text = format!("{}{}", head.echoed(index), report.text);
        let mut choice = match head.kind {
            Kind::Chat => json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null}}),
            _ => json!({"index": index, "text": text}),
        };
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = finish_reason(report.finish).into();
        choice["finish_detail"] = json!(report.finish);
        choice
    });
    let name = if head.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
    let mut body = head.object(name, choices.collect());
    body["usage"] = used.json(head.n);
    body
}
