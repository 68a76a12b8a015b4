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

mod clock;
mod json;
mod marks;
mod tags;
mod template;
mod text;

use minijinja::context;
use minijinja::value::{Value, ValueKind, merge_maps};

use crate::error::{Error, ErrorKind, Result};
use crate::gguf::Metadata;
use crate::tokenizer::{TEXT_BYTES_MAX, Tokenizer};
pub use clock::DateTime;
use marks::Names;

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

    /// Writes a conversation of which all is trusted: nothing in it is marked, so that the
    /// names of control tokens in messages are control tokens. `variables` is a JSON
    /// object of what the template knows by name: `messages`, each with whatever it has,
    /// `add_generation_prompt`, `bos_token`, `tools`, and more. The result may take
    /// `bytes_max` bytes.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) if `variables` is no JSON object, and as
    /// [`Conversation::render`].
    pub fn render(&self, variables: &str, now: DateTime, bytes_max: usize) -> Result<String> {
        let variables: Value = serde_json::from_str(variables)
            .ok()
            .filter(|variables: &Value| variables.kind() == ValueKind::Map)
            .ok_or_else(|| Error::input("the variables of a chat template are no JSON object"))?;
        let absent = context! { tools => (), documents => () };
        let variables = merge_maps([absent, variables]);
        template::render(&self.source, variables, Some(now), bytes_max, None)
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
        let variables = context! {
            messages,
            add_generation_prompt => self.add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        template::render(&self.template, variables, None, self.bytes_max, Some(self.mark))
    }
}
