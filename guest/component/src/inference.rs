//! The exported interface `inference`.

use moewe_protocol::{self as engine, ByteBuf};

use crate::Component;
use crate::bindings::exports::moewe::inference::inference::{
    Conversation, Error, ErrorCode, Guest, GuestModel, GuestSession, KvFormat, LoadOptions,
    Message, Model, ModelInfo, RopeScaling, Session, SessionOptions, Step, StopReason, Usage, Utf8,
};
use crate::engine::with;

/// The engine's number of a model.
pub(crate) struct LoadedModel(u32);
/// The engine's number of a session.
pub(crate) struct OpenSession(u32);

impl Drop for LoadedModel {
    fn drop(&mut self) {
        with(|engine| engine.close_model(self.0));
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        with(|engine| engine.close_session(self.0));
    }
}

impl Guest for Component {
    type Model = LoadedModel;
    type Session = OpenSession;

    fn render(conversation: Conversation) -> Result<Vec<u8>, Error> {
        let bytes =
            |(role, content): (Vec<u8>, Vec<u8>)| (ByteBuf::from(role), ByteBuf::from(content));
        let conversation = engine::Conversation {
            template: conversation.template,
            messages: conversation.messages.into_iter().map(bytes).collect(),
            add_generation_prompt: conversation.add_generation_prompt,
            bos: conversation.bos,
            eos: conversation.eos,
            bytes_max: conversation.bytes_max,
            mark: conversation.mark,
        };
        Ok(with(|engine| engine.render(conversation))?.into_vec())
    }
}

fn from_caller(messages: Vec<Message>) -> Vec<engine::Message> {
    let message = |m: Message| engine::Message { role: m.role, content: m.content };
    messages.into_iter().map(message).collect()
}

impl GuestModel for LoadedModel {
    fn load(name: String, options: LoadOptions) -> Result<Model, Error> {
        let options = engine::LoadOptions {
            kv_format: match options.kv_format {
                KvFormat::F32 => engine::KvFormat::F32,
                KvFormat::F16 => engine::KvFormat::F16,
                KvFormat::Q8 => engine::KvFormat::Q8,
            },
            rope_scaling: options.rope_scaling.map(|scaling| match scaling {
                RopeScaling::None => engine::RopeScaling::None,
                RopeScaling::Linear(factor) => engine::RopeScaling::Linear(factor),
                RopeScaling::Yarn(factor) => engine::RopeScaling::Yarn(factor),
            }),
        };
        let number = with(|engine| engine.load(name, options))?;
        Ok(Model::new(Self(number)))
    }

    fn info(&self) -> ModelInfo {
        let info = with(|engine| engine.info(self.0));
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
            n_ctx_max: info.n_ctx_max,
            token_bytes_max: info.token_bytes_max,
            n_expert: info.n_expert,
            n_expert_used: info.n_expert_used,
            has_chat_template: info.has_chat_template,
        }
    }

    fn tokenize(
        &self,
        text: String,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, Error> {
        Ok(with(|engine| engine.tokenize(self.0, text, add_special, parse_special))?)
    }

    fn detokenize(&self, tokens: Vec<u32>, special: bool) -> Result<Utf8, Error> {
        Ok(with(|engine| engine.detokenize(self.0, tokens, special))?.into())
    }

    fn apply_chat_template(
        &self,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        let messages = from_caller(messages);
        Ok(with(|engine| engine.apply_chat_template(self.0, messages, add_generation_prompt))?)
    }

    fn prepare_chat(
        &self,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Conversation, Error> {
        let messages = from_caller(messages);
        let prepared = with(|engine| engine.prepare_chat(self.0, messages, add_generation_prompt))?;
        let bytes = |(role, content): (ByteBuf, ByteBuf)| (role.into_vec(), content.into_vec());
        Ok(Conversation {
            template: prepared.template,
            messages: prepared.messages.into_iter().map(bytes).collect(),
            add_generation_prompt: prepared.add_generation_prompt,
            bos: prepared.bos,
            eos: prepared.eos,
            bytes_max: prepared.bytes_max,
            mark: prepared.mark,
        })
    }

    fn tokenize_chat(&self, text: Vec<u8>, mark: char) -> Result<Vec<u32>, Error> {
        Ok(with(|engine| engine.tokenize_chat(self.0, ByteBuf::from(text), mark))?)
    }

    fn start(&self, options: SessionOptions) -> Result<Session, Error> {
        let s = options.sampling;
        let sampling = engine::Sampling {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repeat_penalty: s.repeat_penalty,
            repeat_last_n: s.repeat_last_n,
            seed: s.seed,
        };
        let options = engine::SessionOptions { n_ctx: options.n_ctx, sampling };
        let number = with(|engine| engine.start(self.0, options))?;
        Ok(Session::new(OpenSession(number)))
    }
}

impl GuestSession for OpenSession {
    fn feed(&self, tokens: Vec<u32>) -> Result<(), Error> {
        Ok(with(|engine| engine.feed(self.0, tokens))?)
    }

    fn next(&self) -> Result<Step, Error> {
        let step = with(|engine| engine.next(self.0))?;
        Ok(Step {
            token: step.token,
            text: step.text.into(),
            stop: step.stop.map(|reason| match reason {
                engine::StopReason::EndOfGeneration => StopReason::EndOfGeneration,
                engine::StopReason::ContextFull => StopReason::ContextFull,
            }),
        })
    }

    fn logits(&self) -> Result<Vec<f32>, Error> {
        Ok(with(|engine| engine.logits(self.0))?)
    }

    fn rewind(&self, n_tokens: u32) -> Result<(), Error> {
        Ok(with(|engine| engine.rewind(self.0, n_tokens))?)
    }

    fn usage(&self) -> Usage {
        let usage = with(|engine| engine.usage(self.0));
        Usage {
            prompt_tokens: usage.prompt_tokens,
            generated_tokens: usage.generated_tokens,
            drafted_tokens: usage.drafted_tokens,
            accepted_tokens: usage.accepted_tokens,
            context_tokens: usage.context_tokens,
            n_ctx: usage.n_ctx,
            kv_bytes: usage.kv_bytes,
        }
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        let code = match error.code {
            engine::ErrorCode::Weights => ErrorCode::Weights,
            engine::ErrorCode::InvalidModel => ErrorCode::InvalidModel,
            engine::ErrorCode::Unsupported => ErrorCode::Unsupported,
            engine::ErrorCode::InvalidInput => ErrorCode::InvalidInput,
            engine::ErrorCode::ContextFull => ErrorCode::ContextFull,
            engine::ErrorCode::OutOfMemory => ErrorCode::OutOfMemory,
            engine::ErrorCode::Team => ErrorCode::Team,
            engine::ErrorCode::Stopped => ErrorCode::Stopped,
        };
        Self { code, message: error.message.into() }
    }
}
