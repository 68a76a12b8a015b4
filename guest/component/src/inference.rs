//! The exported interface `inference`.

use std::cell::RefCell;

use moewe_engine::chat;
use moewe_engine::language_model::{self, LanguageModel};
use moewe_engine::sampler;
use moewe_engine::{Error as EngineError, ErrorKind};

use crate::Component;
use crate::bindings::exports::moewe::inference::inference::{
    Conversation, Error, ErrorCode, Guest, GuestModel, GuestSession, Message, Model, ModelInfo,
    Session, SessionOptions, Step, StopReason, Usage, Utf8,
};
use crate::bindings::moewe::inference::team;
use crate::team::Imported;
use crate::weights::Imports;

/// The most bytes of weights that are addressable at a time: of the 4 GiB
/// that a 32-bit guest has, the rest is for the KV cache and the heap.
const WINDOW_BYTES_MAX: u64 = 3 << 30;

pub(crate) struct LoadedModel(LanguageModel);
pub(crate) struct OpenSession(RefCell<language_model::Session>);

impl Guest for Component {
    type Model = LoadedModel;
    type Session = OpenSession;

    fn render(conversation: Conversation) -> Result<Vec<u8>, Error> {
        let message = |(role, content)| {
            Ok::<_, Error>(chat::Message { role: utf8(role)?, content: utf8(content)? })
        };
        let conversation = chat::Conversation {
            template: utf8(conversation.template)?,
            messages: conversation.messages.into_iter().map(message).collect::<Result<_, _>>()?,
            add_generation_prompt: conversation.add_generation_prompt,
            bos: utf8(conversation.bos)?,
            eos: utf8(conversation.eos)?,
            bytes_max: conversation.bytes_max as usize,
            mark: conversation.mark,
        };
        Ok(conversation.render()?.into_bytes())
    }
}

fn from_caller(messages: Vec<Message>) -> Vec<chat::Message> {
    let message = |m: Message| chat::Message { role: m.role, content: m.content };
    messages.into_iter().map(message).collect()
}

fn utf8(text: Vec<u8>) -> Result<String, Error> {
    let message = "a text of the conversation is not UTF-8".to_owned();
    String::from_utf8(text)
        .map_err(|_| Error { code: ErrorCode::InvalidInput, message: message.into() })
}

impl GuestModel for LoadedModel {
    fn load(name: String) -> Result<Model, Error> {
        let imports = Imports::new()?;
        let team = Box::new(Imported::new(imports.pages().clone()));
        let loaded = LanguageModel::load_in_team(&imports, &name, WINDOW_BYTES_MAX, team)?;
        Ok(Model::new(Self(loaded)))
    }

    fn info(&self) -> ModelInfo {
        let info = self.0.info().clone();
        ModelInfo {
            architecture: info.architecture.into(),
            name: info.name.map(String::into_bytes),
            quantization: info.quantization.into(),
            n_params: info.n_params,
            weight_bytes: info.weight_bytes,
            kv_bytes_per_token: info.kv_bytes_per_token,
            n_layer: info.n_layer,
            n_embd: info.n_embd,
            n_vocab: info.n_vocab,
            n_ctx_train: info.n_ctx_train,
            token_bytes_max: self.0.tokenizer().map_or(0, |t| t.token_bytes_max() as u32),
            n_expert: info.n_expert,
            n_expert_used: info.n_expert_used,
            has_chat_template: self.0.has_chat_template(),
        }
    }

    fn tokenize(
        &self,
        text: String,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, Error> {
        Ok(self.0.tokenizer()?.encode(&text, add_special, parse_special)?)
    }

    fn detokenize(&self, tokens: Vec<u32>, special: bool) -> Result<Utf8, Error> {
        Ok(self.0.tokenizer()?.decode(&tokens, special)?.into())
    }

    fn apply_chat_template(
        &self,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        Ok(self.0.apply_chat_template(&from_caller(messages), add_generation_prompt)?)
    }

    fn prepare_chat(
        &self,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Conversation, Error> {
        let prepared = self.0.prepare_chat(&from_caller(messages), add_generation_prompt)?;
        let bytes = |m: chat::Message| (m.role.into_bytes(), m.content.into_bytes());
        Ok(Conversation {
            template: prepared.template.into_bytes(),
            messages: prepared.messages.into_iter().map(bytes).collect(),
            add_generation_prompt: prepared.add_generation_prompt,
            bos: prepared.bos.into_bytes(),
            eos: prepared.eos.into_bytes(),
            bytes_max: prepared.bytes_max as u32,
            mark: prepared.mark,
        })
    }

    fn tokenize_chat(&self, text: Vec<u8>, mark: char) -> Result<Vec<u32>, Error> {
        Ok(self.0.tokenizer()?.encode_marked(&utf8(text)?, mark)?)
    }

    fn start(&self, options: SessionOptions) -> Result<Session, Error> {
        let s = options.sampling;
        let sampling = sampler::Sampling {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repeat_penalty: s.repeat_penalty,
            repeat_last_n: s.repeat_last_n,
            seed: s.seed,
        };
        let session = self.0.start(options.n_ctx, sampling)?;
        Ok(Session::new(OpenSession(RefCell::new(session))))
    }
}

impl GuestSession for OpenSession {
    fn feed(&self, tokens: Vec<u32>) -> Result<(), Error> {
        Ok(self.0.borrow_mut().feed(&tokens)?)
    }

    fn next(&self) -> Result<Step, Error> {
        let step = self.0.borrow_mut().next()?;
        Ok(Step {
            token: step.token,
            text: step.text.into(),
            stop: step.stop.map(|reason| match reason {
                language_model::StopReason::EndOfGeneration => StopReason::EndOfGeneration,
                language_model::StopReason::ContextFull => StopReason::ContextFull,
            }),
        })
    }

    fn logits(&self) -> Result<Vec<f32>, Error> {
        let mut session = self.0.borrow_mut();
        let logits = session.logits()?;
        Ok(if team::rank() == 0 { logits.to_vec() } else { Vec::new() })
    }

    fn rewind(&self, n_tokens: u32) -> Result<(), Error> {
        Ok(self.0.borrow_mut().rewind(n_tokens as usize)?)
    }

    fn usage(&self) -> Usage {
        let session = self.0.borrow();
        Usage {
            prompt_tokens: session.prompt_tokens(),
            generated_tokens: session.generated_tokens(),
            drafted_tokens: session.context().drafted_tokens(),
            accepted_tokens: session.context().accepted_tokens(),
            context_tokens: session.context().tokens().len() as u32,
            n_ctx: session.context().n_ctx() as u32,
            kv_bytes: session.context().kv_bytes(),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let code = match error.kind() {
            ErrorKind::Weights => ErrorCode::Weights,
            ErrorKind::InvalidModel => ErrorCode::InvalidModel,
            ErrorKind::Unsupported => ErrorCode::Unsupported,
            ErrorKind::ContextFull => ErrorCode::ContextFull,
            ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
            ErrorKind::Team => ErrorCode::Team,
            ErrorKind::Stopped => ErrorCode::Stopped,
            _ => ErrorCode::InvalidInput,
        };
        Self { code, message: error.to_string().into() }
    }
}
