//! A whole app around the runtime: load an artifact, ask it something, stream the answer.
//!
//! ```text
//! dlxc compile examples/models/sdar-tiny -o tiny.dlxa
//! cargo run --release -p dlx-examples --bin chat -- tiny.dlxa "What is the capital of France?"
//! ```
#![allow(clippy::print_stdout, reason = "it is what an example does")]

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;

use dlx_runtime::artifact::Artifact;
use dlx_runtime::session::{Event, Prompt, Request, Session};
use dlx_runtime::text::Message;
use dlx_runtime::{LoadOptions, Model};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(question)) = (args.next(), args.next()) else {
        return Err("usage: chat ARTIFACT QUESTION".into());
    };
    let model = Model::load(&Artifact::open(path)?, &LoadOptions::default())?;
    let mut session = Session::new(model)?;

    let messages = vec![Message::new("user", &question)];
    let request = Request::new(Prompt::Chat { messages, variables: Default::default() }, 256);
    let report = session.generate(&request, &mut |event| {
        if let Event::Text(piece) = event {
            print!("{piece}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!("\n{} tokens, {:.2} per forward pass", report.ids.len(), report.tokens_per_forward());
    Ok(())
}
