//! Chat templates: Jinja as Hugging Face tokenizers render it.
//!
//! Invariant: a template sees only the messages, the special tokens and the variables of the call; it has no files and a
//! bounded number of instructions. Its memory is not bounded: doubling a string in a loop stays possible. Following
//! transformers' `apply_chat_template`, `trim_blocks` and `lstrip_blocks` are set, strings have Python's methods, and
//! `raise_exception`, `strftime_now`, `tojson`, `break` and `continue` exist. `{% generation %}` blocks, which only mark
//! training targets, are not supported.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use super::TextError;

/// Instructions that one rendering may execute. Real templates need about a hundred per message.
const FUEL: u64 = 5_000_000;

const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Other keys that the template reads, for example `tool_calls`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A plain turn.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), extra: serde_json::Map::new() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the variables by which it may name tokens, for example
    /// `("bos_token", "<|startoftext|>")`.
    ///
    /// # Errors
    /// [`TextError::Template`] when it is no valid Jinja.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TextError::Template(message(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TextError::Template(message(&error)))?;
        Ok(Self { environment, special_tokens })
    }

    /// The prompt text of a conversation, ending where the assistant speaks next. `variables` are further variables of
    /// the template, for example `enable_thinking` or `tools`; `add_generation_prompt` set to false leaves the
    /// assistant's opening out.
    ///
    /// # Errors
    /// [`TextError::Render`] when the template refuses the messages, fails, or runs too long.
    pub fn render(
        &self,
        messages: &[Message],
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let mut context = serde_json::Map::new();
        context.insert("tools".to_owned(), serde_json::Value::Null);
        context.insert("documents".to_owned(), serde_json::Value::Null);
        context.insert("add_generation_prompt".to_owned(), true.into());
        context.extend(self.special_tokens.iter().map(|(name, token)| (name.clone(), token.as_str().into())));
        context.extend(variables.clone());
        let messages = serde_json::to_value(messages).map_err(|error| TextError::Render(error.to_string()))?;
        context.insert("messages".to_owned(), messages);
        let template = self.environment.get_template(NAME).map_err(|error| TextError::Render(message(&error)))?;
        template.render(Serde(&context)).map_err(|error| TextError::Render(message(&error)))
    }
}

/// The innermost message with the line of the template.
fn message(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

fn raise_exception(text: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, text))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(&format, now)
}

/// Python's `json.dumps(value, ensure_ascii=False)`, with its `indent` and `ensure_ascii`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let indent = vec![b' '; indent.min(64)];
            let formatter = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter)).map_err(failed)?
        }
    }
    let mut json = String::from_utf8(bytes).expect("a JSON serializer writes UTF-8");
    if ensure_ascii == Some(true) {
        let mut units = [0; 2];
        json = json
            .chars()
            .map(|c| match c {
                c if c.is_ascii() => c.to_string(),
                c => c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
            })
            .collect();
    }
    Ok(Value::from_safe_string(json))
}

/// Python separates with `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The directives of C's `strftime` that templates use, in UTC.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let weekday = DAYS[(seconds / 86_400 % 7) as usize];
    let (mut year, mut day) = (1970, seconds / 86_400);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{:02}", month + 1),
            Some('B') => text += MONTHS[month],
            Some('b') => text += &MONTHS[month][..3],
            Some('d') => text += &format!("{:02}", day + 1),
            Some('A') => text += weekday,
            Some('a') => text += &weekday[..3],
            Some('H') => text += &format!("{hour:02}"),
            Some('M') => text += &format!("{minute:02}"),
            Some('S') => text += &format!("{second:02}"),
            Some('%') => text.push('%'),
            other => {
                let directive = other.map_or_else(String::new, String::from);
                let text = format!("strftime_now does not know %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, variables: serde_json::Value) -> Result<String, TextError> {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let messages = [Message::new("system", "Be brief."), Message::new("user", " hi ")];
        ChatTemplate::new(source, special)?.render(&messages, variables.as_object().unwrap())
    }

    fn plain(source: &str) -> String {
        render(source, serde_json::json!({})).unwrap()
    }

    #[test]
    fn renders_as_transformers_does() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'] == 'user' %}\n[{{ \
                      message.content.strip() }}]\n    {% endif %}\n{% endfor %}\n{{ eos_token }}|";
        assert_eq!(plain(source), "<s>[hi]\n|");
        assert_eq!(plain("{% if tools is none and documents is none and add_generation_prompt %}y{% endif %}"), "y");
        assert_eq!(plain("{% for m in messages[::-1] %}{{ m.role }}{% break %}{% endfor %}"), "user");
        assert_eq!(plain("{{ 'a</t>b'.split('</t>')[-1] }}{{ 'abc'.startswith('ab') }}"), "bTrue");
        assert_eq!(plain("a\n"), "a", "one newline at the end is dropped");
    }

    #[test]
    fn variables_of_the_call_reach_the_template() {
        let source = "{% if enable_thinking is defined and enable_thinking is false %}quiet{% endif %}";
        assert_eq!(render(source, serde_json::json!({"enable_thinking": false})).unwrap(), "quiet");
        assert_eq!(plain(source), "");
        let source = "{{ add_generation_prompt }} {{ messages | length }}";
        let forced = serde_json::json!({"add_generation_prompt": false, "messages": []});
        assert_eq!(render(source, forced).unwrap(), "False 2");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let tools = serde_json::json!({"tools": [{"z": 1, "a": ["é<", true, null, 1.5]}]});
        assert_eq!(
            render("{{ tools | tojson }}", tools.clone()).unwrap(),
            r#"[{"z": 1, "a": ["é<", true, null, 1.5]}]"#
        );
        assert_eq!(render("{{ tools[0].z | tojson(indent=2) }}", tools.clone()).unwrap(), "1");
        assert_eq!(render("{{ [1] | tojson(indent=2) }}", tools.clone()).unwrap(), "[\n  1\n]");
        assert_eq!(
            render("{{ '\u{1F600}' | tojson(ensure_ascii=true) }}", tools.clone()).unwrap(),
            r#""\ud83d\ude00""#
        );
        assert!(render("{{ 1 | tojson(color=2) }}", tools).is_err());
    }

    #[test]
    fn a_template_can_refuse_messages() {
        let error = render("{{ raise_exception('roles must alternate') }}", serde_json::json!({})).unwrap_err();
        assert!(matches!(&error, TextError::Render(text) if text.starts_with("roles must alternate")), "{error}");
    }

    #[test]
    fn broken_and_endless_templates_are_errors() {
        assert!(matches!(render("{% if %}", serde_json::json!({})), Err(TextError::Template(_))));
        assert!(matches!(render("{{ nothing.at.all }}", serde_json::json!({})), Err(TextError::Render(_))));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let error = render(endless, serde_json::json!({})).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
        let endless = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(matches!(render(endless, serde_json::json!({})), Err(TextError::Render(_))));
        assert!(matches!(render(&"{{".repeat(100_000), serde_json::json!({})), Err(TextError::Template(_))));
        assert!(matches!(
            render(&format!("{{{{ {} }}}}", "(".repeat(100_000)), serde_json::json!({})),
            Err(TextError::Template(_))
        ));
        assert!(matches!(render("{{ 'x' * 1000000000000 }}", serde_json::json!({})), Err(TextError::Render(_))));
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y %H:%M:%S %a %%", 1_709_210_096).unwrap(), "29 Feb 2024 12:34:56 Thu %");
        assert_eq!(strftime("%A, %B %m/%y", 946_684_799).unwrap(), "Friday, December 12/99");
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
        assert_eq!(plain("{{ strftime_now('%Y') }}").len(), 4);
    }
}
