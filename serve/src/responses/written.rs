//! A response as an object, and as the events that build it up.
//!
//! Invariant: events come in OpenAI's order, each with its number and its name both in the data and before it. The last one
//! holds the whole response. What fails after the first event is said by an `error` that clients raise, and by
//! `response.failed`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::App;
use crate::answer::now;
use crate::choices::{Choices, Head, Made, Note, Used, cut_off, finish_reason};
use crate::error::ApiError;
use crate::stream::{Gone, next, sse};

/// The id of the one message of a response.
fn message_id(head: &Head) -> String {
    head.id.replacen("resp", "msg", 1)
}

/// The message, with its text so far.
fn message(head: &Head, status: &str, text: Option<&str>) -> Value {
    let content: Vec<Value> = text.map(part).into_iter().collect();
    json!({"id": message_id(head), "type": "message", "status": status, "role": "assistant", "content": content})
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A response without any output.
fn object(head: &Head, status: &str) -> Value {
    let mut object = json!({
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "completed_at": null,
        "background": false,
        "error": null,
        "incomplete_details": null,
        "model": head.model,
        "output": [],
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "service_tier": "default",
        "store": false,
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "truncation": "disabled",
        "usage": null,
    });
    for (name, value) in &head.repeats {
        object[name] = value.clone();
    }
    object
}

/// A response that has ended.
fn ended(head: &Head, made: &Made, used: &Used) -> Value {
    let stopped = finish_reason(made.finish()) == "stop";
    let status = if stopped { "completed" } else { "incomplete" };
    let mut object = object(head, status);
    object["completed_at"] = now().into();
    if !stopped {
        // The API knows no other reason that fits; `finish_detail` has the real one.
        object["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    object["finish_detail"] = json!(made.finish());
    object["output"] = json!([message(head, status, Some(made.text()))]);
    let (input, output) = (used.prompt_tokens(head.n), used.completion_tokens());
    object["usage"] = json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": used.cached_tokens(head.n), "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + output,
    });
    object
}

/// The answer of a call without a stream.
pub(crate) fn whole(head: &Head, made: &[Made], used: &Used) -> Value {
    made.first().map_or(Value::Null, |made| ended(head, made, used))
}

/// Streams the response.
pub(crate) fn stream(app: Arc<App>, head: Head, choices: Choices) -> Response<Body> {
    sse(|to| async move {
        let mut events = Events { to, number: 0 };
        write(&app, &head, choices, &mut events).await
    })
}

struct Events {
    to: mpsc::Sender<Bytes>,
    number: u64,
}

impl Events {
    async fn send(&mut self, name: &str, mut data: Value) -> Result<(), Gone> {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        self.to.send(Bytes::from(format!("event: {name}\ndata: {data}\n\n"))).await.map_err(|_| Gone)
    }

    async fn fail(&mut self, head: &Head, error: &ApiError) -> Result<(), Gone> {
        let mut data = error.body();
        for name in ["message", "param", "code"] {
            data[name] = data["error"][name].clone();
        }
        self.send("error", data).await?;
        let mut failed = object(head, "failed");
        failed["error"] = json!({"code": "server_error", "message": error.message});
        self.send("response.failed", json!({"response": failed})).await
    }
}

async fn write(app: &App, head: &Head, mut choices: Choices, events: &mut Events) -> Result<(), Gone> {
    let at = |mut data: Value| {
        data["item_id"] = message_id(head).into();
        (data["output_index"], data["content_index"]) = (0.into(), 0.into());
        data
    };
    for name in ["response.created", "response.in_progress"] {
        events.send(name, json!({"response": object(head, "in_progress")})).await?;
    }
    let item = message(head, "in_progress", None);
    events.send("response.output_item.added", json!({"output_index": 0, "item": item})).await?;
    events.send("response.content_part.added", at(json!({"part": part("")}))).await?;
    let made = loop {
        match next(head, &mut choices, &events.to).await? {
            Some((_, Note::Text { piece, .. })) => {
                events.send("response.output_text.delta", at(json!({"delta": piece, "logprobs": []}))).await?;
            }
            Some((_, Note::End(result, _))) => match *result {
                Ok(made) => break made,
                Err(error) => return events.fail(head, &ApiError::server(error.to_string())).await,
            },
            Some(_) => {}
            None => return events.fail(head, &cut_off()).await,
        }
    };
    let used = Used::of(std::slice::from_ref(&made));
    app.metrics.used(&head.model, &used, head.n);
    let response = ended(head, &made, &used);
    events.send("response.output_text.done", at(json!({"text": made.text(), "logprobs": []}))).await?;
    events.send("response.content_part.done", at(json!({"part": part(made.text())}))).await?;
    let item = response["output"][0].clone();
    events.send("response.output_item.done", json!({"output_index": 0, "item": item})).await?;
    let stopped = response["status"] == "completed";
    let last = if stopped { "response.completed" } else { "response.incomplete" };
    events.send(last, json!({"response": response})).await
}
