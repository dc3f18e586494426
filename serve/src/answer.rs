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
use dlx_runtime::constrain::Constraint;
use dlx_runtime::decode::DecodeError;
use dlx_runtime::decode::policy::Attention;
use dlx_runtime::session::{Infill, Request, TextSide};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::canvas::Canvas;
use crate::choices::{Asked, Choices, Head, Kind, Made, Note, Used, cut_off, finish_reason};
use crate::error::{ApiError, json_response};
use crate::listener::Listener;
use crate::models::Loaded;
use crate::params::{Params, Sampling, Usage, wrong};
use crate::tools::{self, Tools};
use crate::{Answering, App, chat, completions, format, infill, logprobs, responses, stream};

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
    app.metrics.used(&head.model, &used, head.made);
    let body = match kind {
        Kind::Response => responses::whole(&head, &made, &used),
        _ => whole(&head, &best(&head, made), &used)?,
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
        (Kind::Text, _) => {
            let format = format::take(&mut params)?;
            let asked = completions::take(&mut params, &sampling, batch.text(), &policy, batch.max_seq())?;
            Asked { format, ..asked }
        }
        (Kind::Infill, _) => {
            let format = format::take(&mut params)?;
            let asked = infill::take(&mut params, batch.text(), &policy, batch.max_seq())?;
            Asked { format, ..asked }
        }
        _ => chat(&mut params, batch.text(), default)?,
    };
    params.finish("")?;
    if !asked.infills.is_empty() && sampling.overrides.stop_strings.is_some() {
        return Err(ApiError::unsupported("stop", " where gaps are filled in"));
    }
    if !asked.infills.is_empty() && sampling.overrides.min_tokens.is_some_and(|n| n > 0) {
        return Err(ApiError::unsupported("min_tokens", " where gaps are filled in"));
    }
    if let (false, Some(format)) = (asked.infills.is_empty(), &asked.format) {
        return Err(ApiError::unsupported(&format.param, " where gaps are filled in"));
    }
    let constraint = constraint(&asked, batch.text())?;
    let made = asked.best_of.unwrap_or(n);
    let requests: Vec<Request> = match &asked.infills[..] {
        [] => asked.prompts.into_iter().map(|prompt| Request::new(prompt, asked.max_new)).collect(),
        infills => infills.iter().map(Infill::request).collect(),
    };
    let count = requests.len() * made;
    let capacity = batch.capacity();
    let most = capacity.sequences.saturating_add(capacity.waiting);
    if count > most {
        let name = if made > n { "best_of" } else { "n" };
        let message = format!("{count} choices are more than the {most} that this server takes");
        return Err(ApiError::invalid(name, message));
    }
    let (id, seed) = (Uuid::new_v4(), sampling.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0));
    let (choices, teller, cancel) = Choices::new(count, answering);
    for index in 0..count {
        let mut request = requests[index / made].clone();
        let stop_ids = request.overrides.stop_ids.take();
        request.overrides = sampling.overrides.clone();
        request.overrides.stop_ids = stop_ids.or(request.overrides.stop_ids);
        // Each choice of a prompt is drawn on its own.
        request.overrides.seed = Some(seed.wrapping_add((index % made) as u64));
        request.priority = sampling.priority;
        // The best choices are those with the likeliest tokens.
        request.logprobs = asked.logprobs.or((made > n).then_some(0));
        request.constraint = constraint.clone();
        request.deadline = Instant::now().checked_add(app.timeout);
        request.cancel = Some(Arc::clone(&cancel));
        let filling = asked.infills.get(index / made).map(|infill| infill.filling(batch.text().tokenizer()));
        let canvas = sampling.canvas.then(Canvas::default);
        let mut listener =
            Listener { index, teller: teller.clone(), canvas, filling, waiting: Vec::new(), failed: None };
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
        made,
        n,
        telling: asked.logprobs.is_some(),
        tools: asked.tools,
        usage: sampling.stream.unwrap_or(Usage::Never),
        keep_alive: app.limits.keep_alive,
        repeats: asked.repeats,
        segments: asked.segments,
        infill: asked.infills.into_iter().next(),
        tokenizer: batch.text().tokenizer(),
    };
    Ok((head, choices, sampling.stream.is_some()))
}

/// What a chat asks for; `most` tokens are answered unless the client says so.
pub(crate) fn chat(params: &mut Params, side: &TextSide, most: usize) -> Result<Asked, ApiError> {
    let template = side.template().map_or("", |template| template.source());
    let format = format::take(params)?;
    let max_new = chat::max_tokens(params)?.unwrap_or(most);
    let logprobs = chat::logprobs(params)?;
    let tools = tools::take(params, template)?;
    if logprobs.is_some() && tools.is_some() {
        return Err(ApiError::unsupported("logprobs", " beside `tools` that may be called"));
    }
    let own = tools.as_ref().map(Tools::variables).unwrap_or_default();
    let prompt = chat::prompt(params, side, own, tools::knows_tools(template))?;
    Ok(Asked { prompts: vec![prompt], max_new, format, logprobs, tools, ..Asked::default() })
}

/// What holds an answer to its format, or to calls of its tools.
fn constraint(asked: &Asked, side: &TextSide) -> Result<Option<Arc<Constraint>>, ApiError> {
    match (&asked.format, &asked.tools) {
        (Some(_), Some(_)) => Err(ApiError::unsupported("response_format", " beside `tools` that may be called")),
        (Some(format), None) => format.constraint(side).map(Some),
        (None, Some(tools)) => {
            let alone = |e| tools.culprit(|format| format.constraint(side).err()).unwrap_or(e);
            tools.format().constraint(side).map(Some).map_err(alone)
        }
        (None, None) => Ok(None),
    }
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
            Some((index, Note::End(result, _))) => {
                made[index] = Some((*result).map_err(|e| ApiError::session(&e, head.kind.prompt()))?);
            }
            Some(_) => {}
            None => return Err(cut_off()),
        }
    }
    Ok(made.into_iter().flatten().collect())
}

/// Of all choices of a prompt those whose tokens are likeliest, the best first.
fn best(head: &Head, mut made: Vec<Made>) -> Vec<Made> {
    if head.made == head.n {
        return made;
    }
    let likely = |made: &Made| logprobs::mean(made.told());
    for choices in made.chunks_mut(head.made) {
        choices.sort_by(|a, b| likely(b).total_cmp(&likely(a)));
    }
    let kept = made.into_iter().enumerate().filter(|(index, _)| index % head.made < head.n);
    kept.map(|(_, made)| made).collect()
}

/// The answer of a call without a stream.
fn whole(head: &Head, made: &[Made], used: &Used) -> Result<Value, ApiError> {
    let choices = made.iter().enumerate().map(|(index, made)| {
        let text = format!("{}{}", head.echoed(index), made.text());
        let mut choice = match head.kind {
            Kind::Chat => json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null}}),
            Kind::Infill => infill::choice(head, index, made),
            _ => json!({"index": index, "text": text}),
        };
        if head.kind != Kind::Infill {
            choice["logprobs"] = head.logprobs(made.told())?;
        }
        made.sign(&mut choice);
        if let Some(tools) = &head.tools {
            let (content, calls) = tools.message(made.text());
            choice["message"]["content"] = content;
            if !calls.is_empty() {
                choice["finish_reason"] = tools::finish_reason(finish_reason(made.finish())).into();
                choice["message"]["tool_calls"] = calls.into();
            }
        }
        Ok(choice)
    });
    let name = match head.kind {
        Kind::Chat => "chat.completion",
        Kind::Infill => "infill",
        _ => "text_completion",
    };
    let mut body = head.object(name, choices.collect::<Result<_, ApiError>>()?);
    body["usage"] = used.json(head.made);
    Ok(body)
}
