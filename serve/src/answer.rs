//! From a parsed request to its choices: submits one request per choice to the batch and gathers what comes back.
//!
//! Invariant: when the client goes, everything that was submitted for it is cancelled; what is sent to a client waits in a
//! bounded buffer, and whoever does not read in time is cut off instead of holding up a step.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use dlx_runtime::batch::{Batch, Update};
use dlx_runtime::decode::FinishReason;
use dlx_runtime::decode::policy::Attention;
use dlx_runtime::session::{Event, Report, Request, SessionError, Told};
use dlx_runtime::text::Tokenizer;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::error::{ApiError, json_response};
use crate::params::{Params, Sampling, Usage, wrong};
use crate::tools::{self, Tools};
use crate::{Answering, App, Served, chat, completions, format, logprobs, stream};

/// Updates of a request's choices that wait for the client.
const BUFFER: usize = 256;

/// Which endpoint asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Text,
}

impl Kind {
    /// The parameter that holds the prompt.
    fn prompt(self) -> &'static str {
        match self {
            Kind::Chat => "messages",
            Kind::Text => "prompt",
        }
    }
}

/// What is told of one choice.
pub(crate) enum Note {
    Waiting,
    Begin {
        prompt_tokens: usize,
    },
    /// A piece of text, tokens of the answer so far, and how likely those in the piece were.
    Text {
        piece: String,
        tokens: usize,
        told: Vec<Told>,
    },
    /// What became of it, and what no piece had told.
    End(Box<Result<Report, SessionError>>, Vec<Told>),
}

/// Cancels what was submitted when the client is gone.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The choices of a request while they are made.
pub(crate) struct Choices {
    notes: mpsc::Receiver<(usize, Note)>,
    /// Notes that came while others were waited for.
    early: VecDeque<(usize, Note)>,
    _cancel: Cancel,
    _answering: Answering,
}

impl Choices {
    /// The next note; `None` when the choices were cut off.
    pub(crate) async fn next(&mut self) -> Option<(usize, Note)> {
        match self.early.pop_front() {
            Some(note) => Some(note),
            None => self.notes.recv().await,
        }
    }

    /// Waits until all of `count` choices are known to be possible.
    async fn accepted(&mut self, count: usize, prompt: &str) -> Result<(), ApiError> {
        let mut waiting = 0;
        while waiting < count {
            match self.notes.recv().await {
                Some((_, Note::Waiting)) => waiting += 1,
                Some((_, Note::End(result, _))) if result.is_err() => {
                    return Err(result.err().map_or_else(cut_off, |e| ApiError::session(&e, prompt)));
                }
                Some(note) => self.early.push_back(note),
                None => return Err(cut_off()),
            }
        }
        Ok(())
    }
}

/// The model's thread is gone, or has given up on a client that does not read.
pub(crate) fn cut_off() -> ApiError {
    ApiError::server("the answer was cut off")
}

/// What every part of an answer repeats.
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// Choices that are made.
    pub(crate) count: usize,
    /// What the answers begin with, prompt by prompt; nothing unless asked for.
    pub(crate) echo: Vec<String>,
    /// Choices per prompt that are made, and how many of them are answered.
    pub(crate) made: usize,
    pub(crate) n: usize,
    /// What turns tokens into their names, if probabilities are told.
    pub(crate) telling: Option<Arc<Tokenizer>>,
    pub(crate) usage: Usage,
    /// What the answers may call.
    pub(crate) tools: Option<Tools>,
}

impl Head {
    /// What choice `index` begins with.
    pub(crate) fn echoed(&self, index: usize) -> &str {
        self.echo.get(index / self.n).map_or("", String::as_str)
    }

    /// The probabilities of a choice's tokens; null unless asked for.
    pub(crate) fn logprobs(&self, told: &[Told]) -> Result<Value, ApiError> {
        let Some(tokenizer) = &self.telling else { return Ok(Value::Null) };
        let told = match self.kind {
            Kind::Chat => logprobs::of_chat(told, tokenizer),
            Kind::Text => logprobs::of_text(told, tokenizer),
        };
        told.map_err(|e| ApiError::server(e.to_string()))
    }

    /// An object of this answer.
    pub(crate) fn object(&self, name: &str, choices: Value) -> Value {
        let Self { id, created, model, .. } = self;
        let fingerprint = concat!("dlxc-", env!("CARGO_PKG_VERSION"));
        json!({"id": id, "object": name, "created": created, "model": model, "system_fingerprint": fingerprint, "choices": choices})
    }
}

/// Tokens that went in and came out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    /// Of each choice; choices of one prompt count it once.
    pub(crate) prompt: Vec<usize>,
    /// Those of them whose rows were there already, known at the end.
    pub(crate) cached: Vec<usize>,
    pub(crate) completion: Vec<usize>,
}

impl Used {
    pub(crate) fn new(count: usize) -> Self {
        Self { prompt: vec![0; count], cached: vec![0; count], completion: vec![0; count] }
    }

    /// As the API tells it; `n` choices share a prompt. Choices that are not answered count too.
    pub(crate) fn json(&self, n: usize) -> Value {
        let prompt: usize = self.prompt.chunks(n.max(1)).filter_map(|c| c.iter().max()).sum();
        // One of a prompt's choices has computed what the others share.
        let cached: usize = self.cached.chunks(n.max(1)).filter_map(|c| c.iter().min()).sum();
        let completion: usize = self.completion.iter().sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }
}

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
        return Ok(stream::response(app, head, choices));
    }
    let (reports, used) = gather(&head, choices).await?;
    app.metrics.used(&head.model, &used, head.made);
    Ok(json_response(StatusCode::OK, &whole(&head, &best(&head, reports), &used)?))
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
    let sampling = Sampling::take(&mut params, &policy.stop_ids)?;
    let n = sampling.n;
    let template = batch.text().template().map_or("", |template| template.source());
    let format = format::take(&mut params)?;
    let mut tools = None;
    let (prompts, max_new, echo, logprobs, made) = match kind {
        Kind::Chat => {
            // What sees the whole answer at once answers by its length.
            let default = if policy.attention == Attention::Full { 64 } else { usize::MAX };
            let max_new = chat::max_tokens(&mut params)?.unwrap_or(default);
            let logprobs = chat::logprobs(&mut params)?;
            tools = tools::take(&mut params, template)?;
            if logprobs.is_some() && tools.is_some() {
                return Err(ApiError::unsupported("logprobs", " beside `tools` that may be called"));
            }
            let own = tools.as_ref().map(Tools::variables).unwrap_or_default();
            let prompt = chat::prompt(&mut params, batch.text(), own, tools::knows_tools(template))?;
            (vec![prompt], max_new, Vec::new(), logprobs, n)
        }
        Kind::Text => {
            let max_new = params.count("max_tokens", 1..=i64::from(i32::MAX))?.unwrap_or(16);
            let text = completions::take(&mut params, &sampling)?;
            let texts = text.prompts.iter().map(|prompt| completions::text_of(prompt, batch.text()));
            let texts = texts.collect::<Result<Vec<_>, _>>()?;
            (text.prompts, max_new, if text.echo { texts } else { Vec::new() }, text.logprobs, text.best_of)
        }
    };
    params.finish("")?;
    let constraint = match (&format, &tools) {
        (Some(_), Some(_)) => {
            return Err(ApiError::unsupported("response_format", " beside `tools` that may be called"));
        }
        (Some(format), None) => Some(format.constraint(batch.text())?),
        (None, Some(tools)) => {
            let alone = |e| tools.culprit(|format| format.constraint(batch.text()).err()).unwrap_or(e);
            Some(tools.format().constraint(batch.text()).map_err(alone)?)
        }
        (None, None) => None,
    };
    let count = prompts.len() * made;
    let capacity = batch.capacity();
    let most = capacity.sequences.saturating_add(capacity.waiting);
    if count > most {
        let name = if made > n { "best_of" } else { "n" };
        return Err(ApiError::invalid(
            name,
            format!("{count} choices are more than the {most} that this server takes"),
        ));
    }
    let (id, seed) = (Uuid::new_v4(), sampling.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0));
    let cancel = Cancel(Arc::new(AtomicBool::new(false)));
    let (send, notes) = mpsc::channel(BUFFER.saturating_mul(count));
    for (index, prompt) in prompts.into_iter().flat_map(|p| std::iter::repeat_n(p, made)).enumerate() {
        let mut request = Request::new(prompt, max_new);
        request.overrides = sampling.overrides.clone();
        request.priority = sampling.priority;
        // Each choice of a prompt is drawn on its own.
        request.overrides.seed = Some(seed.wrapping_add((index % made) as u64));
        // The best choices are those with the likeliest tokens.
        request.logprobs = logprobs.or((made > n).then_some(0));
        request.constraint = constraint.clone();
        request.deadline = Instant::now().checked_add(app.timeout);
        request.cancel = Some(Arc::clone(&cancel.0));
        let taken = batch.submit(&request, Box::new(listener(index, send.clone())));
        taken.map_err(|refused| ApiError::refused(&refused, kind.prompt(), seconds_to_wait(batch)))?;
    }
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let head = Head {
        kind,
        id: format!("{prefix}-{}", id.simple()),
        created: now(),
        model,
        count,
        echo,
        made,
        n,
        telling: logprobs.map(|_| batch.text().tokenizer()),
        usage: sampling.stream.unwrap_or(Usage::Never),
        tools,
    };
    let choices = Choices { notes, early: VecDeque::new(), _cancel: cancel, _answering: answering };
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

fn listener(index: usize, send: mpsc::Sender<(usize, Note)>) -> impl FnMut(Update<'_>) -> ControlFlow<()> + Send {
    let mut waiting = Vec::new();
    move |update| {
        let note = match update {
            Update::Waiting => Note::Waiting,
            Update::Event { event: Event::Begin { prompt, .. }, .. } => Note::Begin { prompt_tokens: prompt.len() },
            Update::Event { event: Event::Logprobs(told), .. } => {
                waiting.extend_from_slice(told);
                return ControlFlow::Continue(());
            }
            Update::Event { event: Event::Text(piece), tokens } => {
                Note::Text { piece: piece.to_owned(), tokens, told: std::mem::take(&mut waiting) }
            }
            Update::End(result) => Note::End(result, std::mem::take(&mut waiting)),
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
            Some((index, Note::End(result, _))) => {
                reports[index] = Some((*result).map_err(|e| ApiError::session(&e, head.kind.prompt()))?);
            }
            Some(_) => {}
            None => return Err(cut_off()),
        }
    }
    let reports: Vec<Report> = reports.into_iter().flatten().collect();
    let used = Used {
        prompt: reports.iter().map(|r| r.prompt_tokens).collect(),
        cached: reports.iter().map(|r| r.held_tokens).collect(),
        completion: reports.iter().map(|r| r.ids.len()).collect(),
    };
    Ok((reports, used))
}

/// Of all choices of a prompt those whose tokens are likeliest, the best first.
fn best(head: &Head, mut reports: Vec<Report>) -> Vec<Report> {
    if head.made == head.n {
        return reports;
    }
    let likely = |report: &Report| logprobs::mean(report.logprobs.as_deref().unwrap_or_default());
    for choices in reports.chunks_mut(head.made) {
        choices.sort_by(|a, b| likely(b).total_cmp(&likely(a)));
    }
    let kept = reports.into_iter().enumerate().filter(|(index, _)| index % head.made < head.n);
    kept.map(|(_, report)| report).collect()
}

/// Why a choice ended, in the API's words.
pub(crate) fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::StopId | FinishReason::StopString | FinishReason::Complete => "stop",
        FinishReason::MaxTokens | FinishReason::ContextFull | FinishReason::Cancelled | FinishReason::Deadline => {
            "length"
        }
    }
}

/// The answer of a call without a stream.
fn whole(head: &Head, reports: &[Report], used: &Used) -> Result<Value, ApiError> {
    let choices = reports.iter().enumerate().map(|(index, report)| {
        let text = format!("{}{}", head.echoed(index), report.text);
        let mut choice = match head.kind {
            Kind::Chat => json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null}}),
            Kind::Text => json!({"index": index, "text": text}),
        };
        choice["logprobs"] = head.logprobs(report.logprobs.as_deref().unwrap_or_default())?;
        choice["finish_reason"] = finish_reason(report.finish).into();
        if let Some(tools) = &head.tools {
            let (content, calls) = tools.message(&report.text);
            choice["message"]["content"] = content;
            if !calls.is_empty() {
                choice["finish_reason"] = tools::finish_reason(finish_reason(report.finish)).into();
                choice["message"]["tool_calls"] = calls.into();
            }
        }
        choice["finish_detail"] = json!(report.finish);
        Ok(choice)
    });
    let name = if head.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
    let mut body = head.object(name, choices.collect::<Result<_, ApiError>>()?);
    body["usage"] = used.json(head.made);
    Ok(body)
}
