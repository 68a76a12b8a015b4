//! Conversations as the model expects them: the file's
//! `tokenizer.chat_template`, a [Jinja](https://jinja.palletsprojects.com)
//! template in the environment that
//! [Hugging Face's `apply_chat_template`](https://huggingface.co/docs/transformers/chat_templating)
//! gives it.
//!
//! Whoever wrote the template may have written anything. So what it takes to render one,
//! its compilation included, is apart from the model ([`Conversation::render`]), and can
//! happen in a sandbox that is thrown away; and what the messages say stays text, whatever
//! the template does with it.

mod marks;

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind as JinjaKind, context};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::gguf::Metadata;
use crate::tokenizer::{TEXT_BYTES_MAX, Tokenizer};
use marks::Names;

/// Instructions that a template may take: many thousand messages' worth.
const FUEL: u64 = 20_000_000;
/// How deep macros and loops may nest, on a small stack.
const N_NESTED_MAX: usize = 100;
/// The most characters of an error that a template made.
const N_ERROR_CHARS_MAX: usize = 500;

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
    /// that does not compile is reported by [`Conversation::render`]: its model
    /// can be used without.
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let source = metadata.str("tokenizer.chat_template")?.filter(|s| !s.trim().is_empty());
        Ok(source.map(Self::new))
    }

    /// A template from its source.
    pub fn new(source: &str) -> Self {
        Self { source: source.to_owned() }
    }

    /// What has to be known to write a conversation. With `add_generation_prompt`
    /// it ends where the assistant's answer begins. The result may take
    /// `bytes_max` bytes.
    ///
    /// # Errors
    /// [`ContextFull`](ErrorKind::ContextFull) if the messages are longer than that;
    /// [`InvalidInput`](ErrorKind::InvalidInput) if they have all code points that a
    /// mark could be.
    pub fn prepare(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        bytes_max: usize,
    ) -> Result<Conversation> {
        let texts = messages.iter().flat_map(|m| [m.role.as_str(), &m.content]);
        let bytes = texts.clone().map(str::len).fold(0, usize::saturating_add);
        let bytes_max = bytes_max.min(TEXT_BYTES_MAX);
        if bytes > bytes_max {
            return Err(Error::new(
                ErrorKind::ContextFull,
                format!(
                    "the messages are {bytes} bytes long, more than the {bytes_max} that a context \
                     can hold; shorten them"
                ),
            ));
        }
        let mark = marks::choose(texts.chain([self.source.as_str()]))?;
        let names = Names::new(tokenizer.control_names())?;
        let marked = |text: &str| names.marked(text, mark).into_owned();
        let messages = messages
            .iter()
            .map(|m| Message { role: marked(&m.role), content: marked(&m.content) })
            .collect();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        Ok(Conversation {
            template: self.source.clone(),
            messages,
            add_generation_prompt,
            bos: text(tokenizer.bos()).to_owned(),
            eos: text(tokenizer.eos()).to_owned(),
            bytes_max,
            mark,
        })
    }
}

/// A conversation, and all that has to be known to write it as a model expects it.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// The source of the template.
    pub template: String,
    /// The messages, in which marks keep apart what could become a control token.
    pub messages: Vec<Message>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Name of the token that begins a text; empty if there is none.
    pub bos: String,
    /// Name of the token that ends a text; empty if there is none.
    pub eos: String,
    /// The most bytes of the text without the marks.
    pub bytes_max: usize,
    /// The mark: a code point that no text had.
    pub mark: char,
}

impl Conversation {
    /// Writes the conversation. The result is for
    /// [`Tokenizer::encode_marked`], and has all control tokens that the model
    /// wants.
    ///
    /// There is no clock: a template that can do without the date
    /// (`strftime_now is defined`) does; others get 1 January 2026, 00:00.
    ///
    /// A template can have this take any time and all memory, and overflow the
    /// stack.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the template refuses the
    /// messages or fails on them; [`Unsupported`](ErrorKind::Unsupported) if
    /// it does not compile, or uses what the engine's Jinja lacks;
    /// [`ContextFull`](ErrorKind::ContextFull) if it writes too much.
    pub fn render(&self) -> Result<String> {
        let messages: Vec<Value> = self
            .messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let source = without_generation_tags(&self.template);
        let environment = environment(&source);
        let explain = |error| explain(error, self.bytes_max);
        let template =
            environment.template_from_named_str("chat_template", &source).map_err(explain)?;
        let mut out = Limited { bytes: Vec::new(), left: self.bytes_max, mark: self.mark };
        let result = template.render_captured_to(
            context! {
                messages,
                add_generation_prompt => self.add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                tools => (),
                documents => (),
            },
            &mut out,
        );
        result.map_err(explain)?;
        String::from_utf8(out.bytes)
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
    mark: char,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n_marks = str::from_utf8(bytes).map_or(0, |text| text.matches(self.mark).count());
        let n_text = bytes.len() - n_marks * self.mark.len_utf8();
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
