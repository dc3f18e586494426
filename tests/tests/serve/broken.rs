//! A model that fails or panics in the middle: who is told, and who goes on.

use std::sync::atomic::{AtomicUsize, Ordering};

use dlx_runtime::LoadOptions;
use dlx_runtime::batch::{Batch, Capacity};
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};
use dlx_serve::Loaded;
use dlx_tests::compiled;
use dlxc::options::CompileOptions;
use serde_json::json;

use crate::client::{Server, Setup, model};

/// Steps until something happens, and what.
struct Between {
    inner: Box<dyn Executor + Send>,
    steps: AtomicUsize,
    then: fn() -> Result<(), ExecError>,
}

impl Executor for Between {
    fn max_seq(&self) -> usize {
        self.inner.max_seq()
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn step_buckets(&self) -> &[usize] {
        self.inner.step_buckets()
    }

    fn slots(&self) -> usize {
        self.inner.slots()
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        self.inner.reserve(slots)
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        if self.steps.fetch_sub(1, Ordering::Relaxed) == 1 {
            (self.then)()?;
        }
        self.inner.step(spans)
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        self.inner.head(rows, out)
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        self.inner.logits(rows, out)
    }
}

/// Steps of an answer after which some of its text is there.
const STEPS: usize = 20;

fn setup(between: fn(Box<dyn Executor + Send>) -> Box<dyn Executor + Send>) -> Setup {
    // Without a measurement of steps, which would count.
    let capacity = Capacity { sequences: 2, waiting: 4, step_rows: Some(16), ..Capacity::default() };
    Setup { capacity, between, ..Setup::default() }
}

fn fails(inner: Box<dyn Executor + Send>) -> Box<dyn Executor + Send> {
    let then = || Err(ExecError::Device("the device is out of sorts".into()));
    Box::new(Between { inner, steps: AtomicUsize::new(STEPS), then })
}

fn panics(inner: Box<dyn Executor + Send>) -> Box<dyn Executor + Send> {
    Box::new(Between { inner, steps: AtomicUsize::new(STEPS), then: || panic!("a fault of the model's") })
}

#[test]
fn what_fails_behind_the_first_byte_is_an_event() {
    let long = json!({"ignore_eos": true, "max_tokens": 200, "stream": true});
    let server = Server::start(setup(fails));
    let events = server.chat(long.clone()).events();
    let (last, before) = events.split_last().unwrap();
    let text: String = before.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(!text.is_empty(), "some of the answer had come");
    let keys: Vec<&str> = last["error"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(last["error"]["message"].as_str().unwrap().contains("out of sorts"));
    assert!(before.iter().all(|e| e["choices"][0]["finish_reason"].is_null()), "a choice that failed does not end");
    // The device works again: nobody else is harmed.
    assert_eq!(server.chat(json!({})).json()["choices"][0]["message"]["content"], "72");

    let server = Server::start(setup(fails));
    let body = json!({"model": "tiny", "input": "Hi", "ignore_eos": true, "max_output_tokens": 200, "stream": true});
    let answer = server.post("/v1/responses", &body);
    let blocks: Vec<&str> = answer.body.trim_end().split("\n\n").collect();
    let [.., error, failed] = &blocks[..] else { panic!("{}", answer.body) };
    let data = |block: &str, name: &str| -> serde_json::Value {
        let data = block.strip_prefix(&format!("event: {name}\ndata: ")).unwrap_or_else(|| panic!("{block}"));
        serde_json::from_str(data).unwrap()
    };
    let (error, failed) = (data(error, "error"), data(failed, "response.failed"));
    assert_eq!((&error["type"], &error["message"]), (&json!("error"), &error["error"]["message"]));
    assert_eq!(
        (&failed["response"]["status"], &failed["response"]["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );

    let server = Server::start(setup(fails));
    let (status, _, _) = server.chat(json!({"ignore_eos": true, "max_tokens": 200})).error();
    assert_eq!(status, 500);
}

#[test]
fn a_model_that_panics_stops_alone() {
    let options = CompileOptions { max_seq: Some(256), ..CompileOptions::default() };
    let other = compiled::load(&model("sdar-tiny"), &options, &LoadOptions::default()).unwrap();
    let other = Loaded::Generator(Batch::new(other, Capacity::default()).unwrap());
    let server = Server::start(Setup { more: vec![("other".into(), other)], ..setup(panics) });
    let events = server.chat(json!({"ignore_eos": true, "max_tokens": 200, "stream": true})).events();
    assert!(events.last().unwrap()["error"]["message"].is_string());
    let mut refused = server.chat(json!({}));
    // Whoever comes while the thread ends is cut off.
    while refused.status == 500 {
        refused = server.chat(json!({}));
    }
    assert_eq!(refused.error(), (503, String::new(), "model_stopped".into()));
    assert_eq!(server.get("/health/ready").error(), (503, String::new(), "model_stopped".into()));
    assert_eq!(server.get("/health/live").status, 200);
    assert_eq!(server.chat(json!({"model": "other"})).json()["choices"][0]["message"]["content"], "72");
}
