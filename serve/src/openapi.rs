//! What `/openapi.json` says.
//!
//! It is kept by hand, since parameters are read one by one and refused by name. Invariant: its paths are those of the
//! server, and its parameters are exactly those that are read, which the tests of this file compare.

/// The document.
pub(crate) const TEXT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dlx_runtime::decode::DecodePolicy;
    use dlx_runtime::session::TextSide;
    use dlx_runtime::text::Tokenizer;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::ApiError;
    use crate::params::{Params, Sampling};
    use crate::routes::PATHS;
    use crate::{admin, answer, completions, embeddings, format, infill, responses};

    /// Read only to be refused by name.
    const REFUSED: [&str; 13] = [
        "audio",
        "best_of@infill",
        "conversation",
        "function_call",
        "logprobs@infill",
        "prediction",
        "previous_response_id",
        "prompt@responses",
        "tool_choice@infill",
        "tools@infill",
        "top_logprobs@infill",
        "verbosity",
        "web_search_options",
    ];

    fn document() -> Value {
        serde_json::from_str(TEXT).unwrap()
    }

    /// Parameters of the request of a path, as the document has them.
    fn documented(path: &str) -> BTreeSet<String> {
        let document = document();
        let body = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let name = body.as_str().unwrap().rsplit('/').next().unwrap();
        let properties = document["components"]["schemas"][name]["properties"].as_object().unwrap();
        properties.keys().cloned().collect()
    }

    fn side() -> TextSide {
        let vocab = json!({"a": 0, "m": 1});
        let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "a"});
        let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        TextSide::new(tokenizer, None, DecodePolicy::llada(1), 2)
    }

    /// Parameters that are read of a request.
    fn read(body: Value, read: impl FnOnce(&mut Params) -> Result<(), ApiError>) -> BTreeSet<String> {
        let mut params = Params::read(body.to_string().as_bytes()).unwrap();
        read(&mut params).unwrap();
        params.asked()
    }

    #[test]
    fn parameters_are_those_that_are_read() {
        let (side, policy) = (side(), DecodePolicy::llada(1));
        let with_sampling = |params: &mut Params| {
            params.string("model")?;
            Sampling::take(params, &[])
        };
        for (path, parameters) in [
            (
                "/v1/chat/completions",
                read(json!({"messages": [{"role": "user", "content": "a"}]}), |params| {
                    with_sampling(params)?;
                    answer::chat(params, &side, 1).map(drop)
                }),
            ),
            (
                "/v1/completions",
                read(json!({"prompt": "a"}), |params| {
                    let sampling = with_sampling(params)?;
                    format::take(params)?;
                    completions::take(params, &sampling, &side, &policy, 8).map(drop)
                }),
            ),
            (
                "/v1/responses",
                read(json!({"input": "a"}), |params| {
                    responses::take(params, 1)?;
                    with_sampling(params).map(drop)
                }),
            ),
            (
                "/v1/infill",
                read(json!({"segments": [{"mask": 1}]}), |params| {
                    with_sampling(params)?;
                    infill::take(params, &side, &policy, 8).map(drop)
                }),
            ),
            (
                "/v1/embeddings",
                read(json!({"input": "a"}), |params| {
                    params.string("model")?;
                    embeddings::take(params, 8).map(drop)
                }),
            ),
            ("/admin/models/load", read(json!({"model": "a"}), |params| admin::name(params).map(drop))),
            ("/admin/models/unload", read(json!({"model": "a"}), |params| admin::name(params).map(drop))),
        ] {
            let endpoint = path.rsplit('/').next().unwrap();
            let refused = |name: &String| {
                REFUSED.contains(&name.as_str()) || REFUSED.contains(&format!("{name}@{endpoint}").as_str())
            };
            let parameters: BTreeSet<String> = parameters.into_iter().filter(|name| !refused(name)).collect();
            let documented = documented(path);
            let (missing, unread): (Vec<_>, Vec<_>) =
                (parameters.difference(&documented).collect(), documented.difference(&parameters).collect());
            assert!(
                missing.is_empty() && unread.is_empty(),
                "{path}: not in the document {missing:?}, not read {unread:?}"
            );
        }
    }

    #[test]
    fn paths_are_those_of_the_server() {
        let document = document();
        let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(paths, PATHS.into_iter().collect());
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        for reference in TEXT.split("\"$ref\": \"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
}
