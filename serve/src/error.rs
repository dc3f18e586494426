//! Errors in the shape of OpenAI's API.
//!
//! Invariant: all four keys are always there, and a status that clients retry (408, 409, 429, 5xx) is used only where
//! trying again can help, with a `Retry-After` of 1 to 60 seconds.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use dlx_runtime::batch::Refused;
use dlx_runtime::constrain::ConstraintError;
use dlx_runtime::decode::{DecodeError, PolicyError};
use dlx_runtime::session::SessionError;
use serde_json::{Value, json};

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// The request is wrong as a whole.
    pub(crate) fn request(status: StatusCode, message: impl Into<String>, code: &'static str) -> Self {
        Self { code: Some(code), ..Self::new(status, "invalid_request_error", message) }
    }

    /// A parameter has a value that it cannot have.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::request(StatusCode::BAD_REQUEST, message, "invalid_value") }
    }

    /// A parameter asks for what this server does not do.
    pub(crate) fn unsupported(param: impl Into<String>, what: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported{what}: leave it out");
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// The same of a parameter that stands inside another one.
    pub(crate) fn inside(self, place: &str) -> Self {
        Self { param: self.param.map(|param| format!("{place}.{param}")), ..self }
    }

    /// A key is missing or wrong.
    pub(crate) fn key() -> Self {
        let message = "no valid API key: send one as `Authorization: Bearer KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message) }
    }

    /// What `param` holds is longer than the model. The code says so, but litellm and LangChain go by these words.
    pub(crate) fn context(param: impl Into<String>, why: &str) -> Self {
        let message = format!("the prompt is too long: {why}");
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// No model of that name.
    pub(crate) fn model(name: &str, known: &str) -> Self {
        let message = format!("the model `{name}` does not exist: use {known}");
        let param = Some("model".into());
        Self { param, ..Self::request(StatusCode::NOT_FOUND, message, "model_not_found") }
    }

    /// Not now.
    pub(crate) fn later(status: StatusCode, message: impl Into<String>, code: &'static str, seconds: u64) -> Self {
        let kind = if status == StatusCode::TOO_MANY_REQUESTS { "rate_limit_error" } else { "server_error" };
        Self { code: Some(code), retry_after: Some(seconds.clamp(1, 60)), ..Self::new(status, kind, message) }
    }

    /// Something is broken here.
    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What a session says of a request whose prompt is the parameter `prompt`.
    pub(crate) fn session(error: &SessionError, prompt: &str) -> Self {
        let message = error.to_string();
        match error {
            SessionError::Decode(DecodeError::PromptTooLong { .. } | DecodeError::PassTooLarge { .. }) => {
                Self::context(prompt, &message)
            }
            SessionError::Decode(DecodeError::NoRoom { room, asked, .. }) if room < asked => {
                Self::context(prompt, &message)
            }
            SessionError::Decode(DecodeError::ZeroMaxNew | DecodeError::NoRoom { .. }) => {
                Self::invalid("max_tokens", message)
            }
            SessionError::Decode(DecodeError::Policy(
                PolicyError::Range { field, .. } | PolicyError::Conflict { field, .. },
            )) => {
                let field = match *field {
                    "stop_strings" => "stop",
                    "stop_ids" => "stop_token_ids",
                    "constraint" => "response_format",
                    field => field,
                };
                Self::invalid(field, message)
            }
            SessionError::Decode(DecodeError::Policy(PolicyError::LogitsRows { .. })) => {
                Self::invalid("temperature", message)
            }
            SessionError::EmptyStopString
            | SessionError::StopAroundToken { .. }
            | SessionError::StopNeverComes { .. } => Self::invalid("stop", message),
            SessionError::NoTemplate => Self::invalid(prompt, message),
            error if error.is_about_prompt() => Self::invalid(prompt, message),
            _ => Self::server(message),
        }
    }

    /// What a session says of a grammar that the parameter `param` gives.
    pub(crate) fn constraint(param: &str, error: &SessionError) -> Self {
        let message = error.to_string();
        match error {
            SessionError::Constraint(ConstraintError::Unsupported { .. } | ConstraintError::Tokenizer(_)) => {
                Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
            }
            SessionError::Constraint(_) => Self::invalid(param, message),
            _ => Self::session(error, param),
        }
    }

    /// Why a batch did not take a request.
    pub(crate) fn refused(refused: &Refused, prompt: &str, seconds: u64) -> Self {
        match refused {
            Refused::Request(error) => Self::session(error, prompt),
            Refused::Full(_) => Self::later(StatusCode::TOO_MANY_REQUESTS, refused.to_string(), "queue_full", seconds),
            _ => Self::later(StatusCode::SERVICE_UNAVAILABLE, refused.to_string(), "model_stopped", 60),
        }
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.body());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// An answer of JSON.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    json_text(status, body.to_string())
}

/// An answer of what is JSON already.
pub(crate) fn json_text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
