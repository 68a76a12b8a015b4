//! Templates in the environment that Hugging Face gives them.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, ErrorKind as JinjaKind};

use super::clock::DateTime;
use super::json::to_json;
use super::tags::{LOOP_FILTER, adapted};
use super::text::text;
use crate::error::{Error, ErrorKind, Result};
use crate::tokenizer::TEXT_BYTES_MAX;

/// Instructions that a template may take: many thousand messages' worth.
const FUEL: u64 = 20_000_000;
/// How deep macros and loops may nest, on a small stack.
const N_NESTED_MAX: usize = 100;
/// The most characters of an error that a template made.
const N_ERROR_CHARS_MAX: usize = 500;

/// What to do instead of using the template.
const WAY_OUT: &str = "write the prompt in the model's format yourself, and tokenize it with \
                       parse-special";

/// Renders a template. Without a clock those that can do without the date do; others
/// get one that stands still. The result has at most `bytes_max` bytes, marks not counted.
pub(super) fn render(
    source: &str,
    variables: Value,
    now: Option<DateTime>,
    bytes_max: usize,
    mark: Option<char>,
) -> Result<String> {
    let source = adapted(source);
    let environment = environment(&source, now);
    let explain = |error| explain(error, bytes_max);
    let template =
        environment.template_from_named_str("chat_template", &source).map_err(explain)?;
    let mut out = Limited { bytes: Vec::new(), left: bytes_max.min(TEXT_BYTES_MAX), mark };
    template.render_captured_to(variables, &mut out).map_err(explain)?;
    String::from_utf8(out.bytes)
        .map_err(|_| Error::input("the chat template wrote text that is not UTF-8"))
}

/// What Hugging Face's environment has.
fn environment(source: &str, now: Option<DateTime>) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the usual delimiters"));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => Ok(out.write_str(&text(value)?)?),
        _ => Ok(write!(out, "{value}")?),
    });
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(N_NESTED_MAX);
    env.add_filter("tojson", to_json);
    env.add_filter("string", |value: Value| text(&value));
    env.add_filter(LOOP_FILTER, |value: Value| match value.is_none() {
        true => Err(failure("none is not iterable")),
        false => Ok(value),
    });
    // In Python, None is not iterable, texts and mappings are sequences, and truth is a
    // number.
    env.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(value.kind(), Undefined | String | Seq | Map)
    });
    env.add_test("number", |value: Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(failure("").with_source(Refusal(message)))
    });
    // A template that asks whether there is a clock has a way to do without.
    let asks = ["strftime_now is defined", "strftime_now is not defined"];
    if now.is_some() || !asks.iter().any(|test| source.contains(test)) {
        let now = now.unwrap_or(DateTime::UNKNOWN);
        env.add_function("strftime_now", move |format: String| now.format(&format));
    }
    env
}

fn failure(message: &str) -> minijinja::Error {
    minijinja::Error::new(JinjaKind::InvalidOperation, message.to_owned())
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

fn explain(error: minijinja::Error, bytes_max: usize) -> Error {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return Error::input(format!(
                "the model's chat template refuses these messages: {}",
                shortened(message)
            ));
        }
        source = cause.source();
    }
    let what = || shortened(&error.to_string());
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
            "the model's chat template needs more than is here: {}; {WAY_OUT}",
            what()
        )),
        JinjaKind::WriteFailure => Error::new(
            ErrorKind::ContextFull,
            format!(
                "the model's chat template writes more than {bytes_max} bytes, more than the \
                 context holds; shorten the messages"
            ),
        ),
        _ => Error::input(format!(
            "the model's chat template fails on these messages: {}; {WAY_OUT}",
            what()
        )),
    }
}

/// A template decides how long its errors are.
fn shortened(message: &str) -> String {
    match message.char_indices().nth(N_ERROR_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &message[..end]),
        None => message.to_owned(),
    }
}

/// Takes no more bytes than it may, of which marks are none. But they are memory, so
/// there is an end of them too.
struct Limited {
    bytes: Vec<u8>,
    left: usize,
    mark: Option<char>,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let marks = |mark: char| {
            let n = str::from_utf8(bytes).map_or(0, |text| text.matches(mark).count());
            n * mark.len_utf8()
        };
        let n_text = bytes.len() - self.mark.map_or(0, marks);
        let left = self.left.checked_sub(n_text);
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        if bytes.len() > TEXT_BYTES_MAX - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
