//! A session on the tiny golden checkpoint: conversation in, streamed text out.

use std::ops::ControlFlow;

use dlx_ir::Mask;
use dlx_runtime::decode::{DecodePolicy, FinishReason, Noise, Reveal, decode};
use dlx_runtime::session::{Event, Prompt, Request, Session};
use dlx_runtime::text::{Message, Tokenizer};
use dlx_tests::golden::{chat_template, dir};
use dlx_tests::naive::Naive;

#[test]
fn a_conversation_is_rendered_encoded_decoded_and_streamed() {
    let model = dir().join("models/sdar-tiny");
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(model.join("tokenizer.json")).unwrap()).unwrap();
    let executor = || Naive::load(&model, Mask::BlockCausal(4), 128, &[4, 16]).unwrap();
    let policy = DecodePolicy {
        reveal: Reveal::new("threshold").with("threshold", 0.6),
        ..DecodePolicy::greedy(tokenizer.token_id("<|MASK|>").unwrap(), 4)
    };
    let template = Some(chat_template(&model).unwrap());
    let mut session = Session::with_executor(Box::new(executor()), tokenizer, template, policy.clone()).unwrap();

    let messages = vec![Message::new("user", "What is 2+2?")];
    let request = Request::new(Prompt::Chat { messages, variables: serde_json::Map::new() }, 21);
    let (mut streamed, mut canvases) = (String::new(), 0);
    let report = session.generate(&request, &mut |event| {
        match event {
            Event::Text(piece) => streamed += piece,
            Event::Canvas { masked, block, .. } => canvases += usize::from(masked.iter().all(|at| block.contains(at))),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    let report = report.unwrap();

    let prompt = session.encode(&request).unwrap();
    let text = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(session.tokenizer().decode(&prompt, false).unwrap(), text);
    let ignore = &mut |_: dlx_runtime::decode::Moment<'_>| ControlFlow::Continue(());
    let resolved = policy.resolve(&executor()).unwrap();
    let alone = decode(&mut executor(), resolved, &prompt, 21, 0, Noise::Seeded(0), ignore).unwrap();
    assert_eq!(report.ids, alone.ids[prompt.len()..][..21]);
    assert_eq!(report.text, session.tokenizer().decode(&report.ids, true).unwrap());
    assert_eq!(streamed, report.text);
    assert_eq!(report.finish, FinishReason::MaxTokens);
    assert_eq!((report.passes, canvases), (alone.passes, alone.passes.denoise));
}
