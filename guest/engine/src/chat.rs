//! Conversations as the model expects them: the file's
//! `tokenizer.chat_template`, a [Jinja](https://jinja.palletsprojects.com)
//! template in the environment that
//! [Hugging Face's `apply_chat_template`](https://huggingface.co/docs/transformers/chat_templating)
//! gives it.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind as JinjaKind, context};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::gguf::Metadata;
use crate::tokenizer::TEXT_BYTES_MAX;

/// Instructions that a template may take: many thousand messages' worth.
const FUEL: u64 = 20_000_000;
/// How deep macros and loops may nest, on a small stack.
const N_NESTED_MAX: usize = 100;

/// What to do instead of using the template.
const WAY_OUT: &str = "write the prompt in the model's format yourself, and tokenize it with \
                       parse-special";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// The words.
    pub content: String,
}

/// The chat template of a file.
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// The template that a file brings, if it does.
    ///
    /// # Errors
    /// [`InvalidModel`](ErrorKind::InvalidModel) if it is no text. A template
    /// that does not compile is reported by [`ChatTemplate::apply`]: its model
    /// can be used without.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let source = metadata.str("tokenizer.chat_template")?.filter(|s| !s.trim().is_empty());
        Ok(source.map(Self::new))
    }

    /// A template from its source.
    pub fn new(source: &str) -> Self {
        Self { source: without_generation_tags(source) }
    }

    /// Writes a conversation. With `add_generation_prompt` it ends where the
    /// assistant's answer begins. `bos` and `eos` are the names of the
    /// model's tokens, empty if it has none.
    ///
    /// The result is to be tokenized with `parse_special` and without
    /// `add_special`: it has all control tokens that the model wants.
    ///
    /// There is no clock: a template that can do without the date
    /// (`strftime_now is defined`) does; others get 1 January 2026, 00:00.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the template refuses the
    /// messages or fails on them; [`Unsupported`](ErrorKind::Unsupported) if
    /// it does not compile, or uses what the engine's Jinja lacks.
    pub fn apply(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let environment = environment(&self.source);
        let template =
            environment.template_from_named_str("chat_template", &self.source).map_err(explain)?;
        let mut out = Limited(Vec::new());
        let result = template.render_captured_to(
            context! {
                messages,
                add_generation_prompt,
                bos_token => bos,
                eos_token => eos,
                tools => (),
                documents => (),
            },
            &mut out,
        );
        result.map_err(explain)?;
        String::from_utf8(out.0)
            .map_err(|_| Error::input("the chat template wrote text that is not UTF-8"))
    }
}

/// What Hugging Face's environment has.
fn environment(source: &str) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the usual delimiters"));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| {
        // Python's names of its constants.
        let name = match (value.kind(), value.is_true()) {
            (minijinja::value::ValueKind::Bool, true) => "True",
            (minijinja::value::ValueKind::Bool, false) => "False",
            (minijinja::value::ValueKind::None, _) => "None",
            _ => return write!(out, "{value}").map_err(Into::into),
        };
        out.write_str(name).map_err(Into::into)
    });
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(N_NESTED_MAX);
    env.add_filter("tojson", to_json);
    // In Python, None is not iterable.
    env.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(JinjaKind::InvalidOperation, "").with_source(Refusal(message)))
    });
    // A template that asks whether it is there has a way to do without.
    let optional = ["strftime_now is defined", "strftime_now is not defined"];
    if !optional.iter().any(|test| source.contains(test)) {
        env.add_function("strftime_now", |format: String| strftime(&format));
    }
    env
}

/// What a template says when it does not like the messages.
#[derive(Debug)]
struct Refusal(String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn explain(error: minijinja::Error) -> Error {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return Error::input(format!(
                "the model's chat template refuses these messages: {message}"
            ));
        }
        source = cause.source();
    }
    match error.kind() {
        JinjaKind::OutOfFuel => Error::unsupported(format!(
            "the model's chat template takes too long (more than {FUEL} steps); {WAY_OUT}"
        )),
        JinjaKind::SyntaxError
        | JinjaKind::UnknownFilter
        | JinjaKind::UnknownFunction
        | JinjaKind::UnknownMethod
        | JinjaKind::UnknownTest
        | JinjaKind::TemplateNotFound => Error::unsupported(format!(
            "the model's chat template needs more than is here: {error}; {WAY_OUT}"
        )),
        JinjaKind::WriteFailure => Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the chat template writes more than {TEXT_BYTES_MAX} bytes; shorten the messages"
            ),
        ),
        _ => Error::input(format!(
            "the model's chat template fails on these messages: {error}; {WAY_OUT}"
        )),
    }
}

/// Takes as many bytes as can be tokenized.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > TEXT_BYTES_MAX - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON with the spaces that Python puts into it, and no HTML escapes.
fn to_json(
    value: &Value,
    indent: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, minijinja::Error> {
    let indent = indent.or(kwargs.get("indent")?);
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        kwargs.get::<Option<Value>>(ignored)?;
    }
    kwargs.assert_all_used()?;
    let json = match indent {
        None => json_with(value, Spaced),
        Some(n) => json_with(value, PrettyFormatter::with_indent(" ".repeat(n.min(16)).as_bytes())),
    };
    json.map_err(|e| minijinja::Error::new(JinjaKind::BadSerialization, e.to_string()))
}

fn json_with(value: &Value, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut out = Vec::new();
    serde::Serialize::serialize(value, &mut Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out).expect("JSON is UTF-8"))
}

/// `{"a": 1, "b": 2}`
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// 1 January 2026, a Thursday, at midnight, as C's `strftime` writes it.
fn strftime(format: &str) -> Result<String, minijinja::Error> {
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(match rest.next() {
            Some('Y') => "2026",
            Some('y') => "26",
            Some('m' | 'd') => "01",
            Some('e') => " 1",
            Some('B') => "January",
            Some('b' | 'h') => "Jan",
            Some('A') => "Thursday",
            Some('a') => "Thu",
            Some('j') => "001",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('F') => "2026-01-01",
            Some('T' | 'X') => "00:00:00",
            Some('D' | 'x') => "01/01/26",
            Some('Z') => "UTC",
            Some('z') => "+0000",
            Some('%') => "%",
            other => {
                return Err(minijinja::Error::new(
                    JinjaKind::InvalidOperation,
                    format!(
                        "strftime_now does not know %{}",
                        other.map(String::from).unwrap_or_default()
                    ),
                ));
            }
        });
    }
    Ok(out)
}

/// Turns `{% generation %}` blocks, which mark the assistant's words for
/// training, into blocks that do nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start + 2..].find("%}").map(|n| start + 2 + n) else { break };
        let inside = &rest[start + 2..end];
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(&inside.replacen(name, replacement, usize::from(name != replacement)));
        out.push_str("%}");
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}
