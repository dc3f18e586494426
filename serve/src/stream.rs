//! Answers as server-sent events.
//!
//! Invariant: every event is a line `data: JSON` and an empty line, and nothing but comments stands between them. The first
//! chunk of every choice comes before all text, in order, and names the role; a choice ends exactly once; usage stands alone
//! in the last chunk; what fails after the first byte is an event with an error, after which the stream ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Response, header};
use dlx_runtime::session::Told;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::choices::{Choices, Head, Kind, Note, Used, cut_off};
use crate::error::ApiError;
use crate::params::Usage;
use crate::tools::{self, Part, Split, Tools};
use crate::{App, infill};

/// Events that wait to be written.
const FRAMES: usize = 16;

/// A body that is written as it comes.
struct Frames(mpsc::Receiver<Bytes>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The client is gone.
pub(crate) struct Gone;

/// An answer of events, which `write` sends.
pub(crate) fn sse<F>(write: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Response<Body>
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (send, receive) = mpsc::channel(FRAMES);
    let written = write(send);
    tokio::spawn(async move {
        // Nobody is there to be told when the client is gone.
        let _ = written.await;
    });
    let mut response = Response::new(Body::new(Frames(receive)));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The next note, with comments while there is none; `None` when the choices were cut off.
pub(crate) async fn next(
    head: &Head,
    choices: &mut Choices,
    to: &mpsc::Sender<Bytes>,
) -> Result<Option<(usize, Note)>, Gone> {
    loop {
        let note = tokio::select! {
            note = tokio::time::timeout(head.keep_alive, choices.next()) => note,
            () = to.closed() => return Err(Gone),
        };
        match note {
            Ok(note) => return Ok(note),
            Err(_) => to.send(Bytes::from_static(b": ping\n\n")).await.map_err(|_| Gone)?,
        }
    }
}

/// Streams the choices.
pub(crate) fn response(app: Arc<App>, head: Head, choices: Choices) -> Response<Body> {
    sse(|to| async move { write(&app, &head, choices, &to).await })
}

async fn send(to: &mpsc::Sender<Bytes>, value: &Value) -> Result<(), Gone> {
    to.send(Bytes::from(format!("data: {value}\n\n"))).await.map_err(|_| Gone)
}

async fn write(app: &App, head: &Head, mut choices: Choices, to: &mpsc::Sender<Bytes>) -> Result<(), Gone> {
    let mut used = Used::new(head.count);
    for index in 0..head.count {
        send(to, &chunk(head, first(head, index), &used)).await?;
    }
    let mut splits: Vec<Option<Calls<'_>>> = (0..head.count).map(|_| head.tools.as_ref().map(Calls::new)).collect();
    let mut open = head.count;
    while open > 0 {
        match next(head, &mut choices, to).await? {
            Some((_, Note::Waiting)) => {}
            Some((index, Note::Begin { prompt_tokens })) => used.prompt[index] = prompt_tokens,
            Some((index, Note::Text { gap, piece, tokens, told })) => {
                used.completion[index] = tokens;
                let deltas = match &mut splits[index] {
                    Some(calls) => calls.push(head, index, &piece),
                    None => vec![delta(head, index, &piece)],
                };
                for mut delta in deltas {
                    if head.kind == Kind::Infill {
                        delta["segment"] = infill::segment_of(head, gap).into();
                    }
                    match with_logprobs(head, delta, &told) {
                        Ok(choice) => send(to, &chunk(head, choice, &used)).await?,
                        Err(error) => return send(to, &error.body()).await,
                    }
                }
            }
            Some((index, Note::Canvas(snapshot))) => {
                let mut canvas = bare(head, json!([]), &used);
                canvas["canvas"] = snapshot.json(index, &head.tokenizer);
                send(to, &canvas).await?;
            }
            Some((index, Note::End(result, told))) => match *result {
                Ok(made) => {
                    (used.prompt[index], used.completion[index]) = (made.report.prompt_tokens, made.tokens());
                    used.cached[index] = made.report.held_tokens;
                    open -= 1;
                    let mut last = match head.kind {
                        Kind::Infill => infill::choice(head, index, &made),
                        _ => delta(head, index, ""),
                    };
                    if head.kind == Kind::Chat {
                        last["delta"] = json!({});
                    }
                    made.sign(&mut last);
                    if let Some(calls) = splits[index].take()
                        && let Some(delta) = calls.finish(head, index, &mut last)
                    {
                        send(to, &chunk(head, delta, &used)).await?;
                    }
                    match with_logprobs(head, last, &told) {
                        Ok(last) => send(to, &chunk(head, last, &used)).await?,
                        Err(error) => return send(to, &error.body()).await,
                    }
                }
                Err(error) => return send(to, &ApiError::server(error.to_string()).body()).await,
            },
            None => return send(to, &cut_off().body()).await,
        }
    }
    app.metrics.used(&head.model, &used, head.made);
    if head.usage != Usage::Never {
        let mut last = head.object(name(head), json!([]));
        last["usage"] = used.json(head.made);
        send(to, &last).await?;
    }
    to.send(Bytes::from_static(b"data: [DONE]\n\n")).await.map_err(|_| Gone)
}

/// Calls of a choice as they come.
struct Calls<'t> {
    split: Split<'t>,
    /// How many have begun.
    count: usize,
}

impl<'t> Calls<'t> {
    fn new(tools: &'t Tools) -> Self {
        Self { split: Split::new(tools), count: 0 }
    }

    /// What a piece of text adds.
    fn push(&mut self, head: &Head, index: usize, piece: &str) -> Vec<Value> {
        let parts = self.split.push(piece);
        parts.into_iter().map(|part| Self::delta(&mut self.count, head, index, part)).collect()
    }

    /// What was held back, if anything; a choice with calls ends for another reason.
    fn finish(mut self, head: &Head, index: usize, last: &mut Value) -> Option<Value> {
        let part = self.split.finish();
        let delta = part.map(|part| Self::delta(&mut self.count, head, index, part));
        if self.count > 0 && last["finish_reason"] == "stop" {
            last["finish_reason"] = tools::finish_reason("stop").into();
        }
        delta
    }

    fn delta(count: &mut usize, head: &Head, index: usize, part: Part) -> Value {
        let call = match part {
            Part::Content(text) => return delta(head, index, &text),
            Part::Call { name } => {
                *count += 1;
                tools::call(&name)
            }
            Part::Arguments(text) => json!({"function": {"arguments": text}}),
        };
        let mut delta = delta(head, index, "");
        let mut numbered = json!({"index": *count - 1});
        numbered
            .as_object_mut()
            .into_iter()
            .for_each(|fields| fields.extend(call.as_object().cloned().unwrap_or_default()));
        delta["delta"] = json!({"tool_calls": [numbered]});
        delta
    }
}

fn name(head: &Head) -> &'static str {
    match head.kind {
        Kind::Chat => "chat.completion.chunk",
        Kind::Infill => "infill.chunk",
        _ => "text_completion",
    }
}

/// A chunk with one choice.
fn chunk(head: &Head, choice: Value, used: &Used) -> Value {
    bare(head, json!([choice]), used)
}

fn bare(head: &Head, choices: Value, used: &Used) -> Value {
    let mut chunk = head.object(name(head), choices);
    match head.usage {
        Usage::Never => {}
        Usage::AtEnd => chunk["usage"] = Value::Null,
        Usage::Running => chunk["usage"] = used.json(head.made),
    }
    chunk
}

/// The first chunk of a choice.
fn first(head: &Head, index: usize) -> Value {
    let mut choice = delta(head, index, head.echoed(index));
    match head.kind {
        Kind::Chat => {
            // An answer that is a call has no content, not an empty one.
            let content = if head.tools.is_some() { Value::Null } else { "".into() };
            choice["delta"] = json!({"role": "assistant", "content": content});
        }
        Kind::Infill => choice["gaps"] = infill::gaps(head),
        _ => {}
    }
    choice
}

/// A choice with the probabilities of its tokens, if any are told.
fn with_logprobs(head: &Head, mut choice: Value, told: &[Told]) -> Result<Value, ApiError> {
    if !told.is_empty() {
        choice["logprobs"] = head.logprobs(told)?;
    }
    Ok(choice)
}

fn delta(head: &Head, index: usize, text: &str) -> Value {
    match head.kind {
        Kind::Chat => json!({"index": index, "delta": {"content": text}, "logprobs": null, "finish_reason": null}),
        Kind::Infill => json!({"index": index, "text": text, "finish_reason": null}),
        _ => json!({"index": index, "text": text, "logprobs": null, "finish_reason": null}),
    }
}
