//! The engine, as its guests offer it.

use std::cell::{OnceCell, Ref, RefCell, RefMut};
use std::rc::Rc;

use moewe_engine::language_model::{self, LanguageModel};
use moewe_engine::{Error as EngineError, ErrorKind, chat, options, sampler};
use moewe_protocol::{
    ByteBuf, Conversation, Error, ErrorCode, Inference, KvFormat, LoadOptions, Message, ModelInfo,
    RopeScaling, SessionOptions, Step, StopReason, Usage,
};
use slab::Slab;

use crate::pages::PagePool;
use crate::team::Imported;
use crate::weights::Imports;
use crate::{Addresses, Platform};

type Result<T> = std::result::Result<T, Error>;

/// The engine, with the models and sessions of its caller.
pub struct Service {
    platform: Platform,
    /// For what is attached, of all models.
    pages: OnceCell<PagePool>,
    models: RefCell<Slab<Rc<LanguageModel>>>,
    sessions: RefCell<Slab<language_model::Session>>,
}

impl Service {
    /// An engine without any model.
    pub const fn new(platform: Platform) -> Self {
        Self {
            platform,
            pages: OnceCell::new(),
            models: RefCell::new(Slab::new()),
            sessions: RefCell::new(Slab::new()),
        }
    }

    fn pages(&self, page_size: u32) -> Result<PagePool> {
        if let Some(pages) = self.pages.get() {
            return Ok(pages.clone());
        }
        let pages = PagePool::new(page_size as usize).ok_or_else(|| Error {
            code: ErrorCode::Weights,
            message: format!("the host reports pages of {page_size} bytes"),
        })?;
        Ok(self.pages.get_or_init(|| pages).clone())
    }

    fn model(&self, model: u32) -> Rc<LanguageModel> {
        self.models.borrow()[model as usize].clone()
    }

    fn session(&self, session: u32) -> Ref<'_, language_model::Session> {
        Ref::map(self.sessions.borrow(), |sessions| &sessions[session as usize])
    }

    fn session_mut(&self, session: u32) -> RefMut<'_, language_model::Session> {
        RefMut::map(self.sessions.borrow_mut(), |sessions| &mut sessions[session as usize])
    }
}

impl Inference for Service {
    fn load(&self, name: String, options: LoadOptions) -> Result<u32> {
        let capabilities = self.platform.host.capabilities();
        let pages = self.pages(capabilities.page_size)?;
        let imports = Imports::new(self.platform, capabilities, pages.clone());
        let team = Box::new(Imported::new(self.platform.team, pages));
        let bytes_max = match self.platform.addresses {
            Addresses::Windows { bytes_max } => bytes_max,
            Addresses::Files => u64::MAX,
        };
        let loaded =
            LanguageModel::load_in_team(&imports, &name, bytes_max, &engine_options(options), team);
        Ok(self.models.borrow_mut().insert(Rc::new(loaded.map_err(told)?)) as u32)
    }

    fn info(&self, model: u32) -> ModelInfo {
        let model = self.model(model);
        let info = model.info().clone();
        ModelInfo {
            architecture: info.architecture,
            name: info.name,
            quantization: info.quantization.to_owned(),
            n_params: info.n_params,
            weight_bytes: info.weight_bytes,
            kv_bytes_per_token: info.kv_bytes_per_token,
            n_layer: info.n_layer,
            n_embd: info.n_embd,
            n_vocab: info.n_vocab,
            n_ctx_train: info.n_ctx_train,
            n_ctx_max: info.n_ctx_max,
            token_bytes_max: model.tokenizer().map_or(0, |t| t.token_bytes_max() as u32),
            n_expert: info.n_expert,
            n_expert_used: info.n_expert_used,
            has_chat_template: model.has_chat_template(),
        }
    }

    fn tokenize(
        &self,
        model: u32,
        text: String,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let model = self.model(model);
        let tokenizer = model.tokenizer().map_err(told)?;
        tokenizer.encode(&text, add_special, parse_special).map_err(told)
    }

    fn detokenize(&self, model: u32, tokens: Vec<u32>, special: bool) -> Result<String> {
        self.model(model).tokenizer().and_then(|t| t.decode(&tokens, special)).map_err(told)
    }

    fn apply_chat_template(
        &self,
        model: u32,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let messages = from_caller(messages);
        self.model(model).apply_chat_template(&messages, add_generation_prompt).map_err(told)
    }

    fn prepare_chat(
        &self,
        model: u32,
        messages: Vec<Message>,
        add_generation_prompt: bool,
    ) -> Result<Conversation> {
        let messages = from_caller(messages);
        let prepared = self.model(model).prepare_chat(&messages, add_generation_prompt);
        let prepared = prepared.map_err(told)?;
        let bytes = |m: chat::Message| (ByteBuf::from(m.role), ByteBuf::from(m.content));
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

    fn tokenize_chat(&self, model: u32, text: ByteBuf, mark: char) -> Result<Vec<u32>> {
        let (model, text) = (self.model(model), utf8(text.into_vec())?);
        model.tokenizer().and_then(|t| t.encode_marked(&text, mark)).map_err(told)
    }

    fn start(&self, model: u32, options: SessionOptions) -> Result<u32> {
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
        let session = self.model(model).start(options.n_ctx, sampling).map_err(told)?;
        Ok(self.sessions.borrow_mut().insert(session) as u32)
    }

    fn close_model(&self, model: u32) {
        self.models.borrow_mut().remove(model as usize);
    }

    fn feed(&self, session: u32, tokens: Vec<u32>) -> Result<()> {
        self.session_mut(session).feed(&tokens).map_err(told)
    }

    fn next(&self, session: u32) -> Result<Step> {
        let step = self.session_mut(session).next().map_err(told)?;
        let stop = step.stop.map(|reason| match reason {
            language_model::StopReason::EndOfGeneration => StopReason::EndOfGeneration,
            language_model::StopReason::ContextFull => StopReason::ContextFull,
        });
        Ok(Step { token: step.token, text: step.text, stop })
    }

    fn logits(&self, session: u32) -> Result<Vec<f32>> {
        let mut session = self.session_mut(session);
        let logits = session.logits().map_err(told)?;
        Ok(if self.platform.team.rank() == 0 { logits.to_vec() } else { Vec::new() })
    }

    fn rewind(&self, session: u32, n_tokens: u32) -> Result<()> {
        self.session_mut(session).rewind(n_tokens as usize).map_err(told)
    }

    fn usage(&self, session: u32) -> Usage {
        let session = self.session(session);
        let context = session.context();
        Usage {
            prompt_tokens: session.prompt_tokens(),
            generated_tokens: session.generated_tokens(),
            drafted_tokens: context.drafted_tokens(),
            accepted_tokens: context.accepted_tokens(),
            context_tokens: context.tokens().len() as u32,
            n_ctx: context.n_ctx() as u32,
            kv_bytes: context.kv_bytes(),
        }
    }

    fn close_session(&self, session: u32) {
        self.sessions.borrow_mut().remove(session as usize);
    }

    fn render(&self, conversation: Conversation) -> Result<ByteBuf> {
        let message = |(role, content): (ByteBuf, ByteBuf)| {
            let (role, content) = (utf8(role.into_vec())?, utf8(content.into_vec())?);
            Ok::<_, Error>(chat::Message { role, content })
        };
        let conversation = chat::Conversation {
            template: utf8(conversation.template)?,
            messages: conversation.messages.into_iter().map(message).collect::<Result<_>>()?,
            add_generation_prompt: conversation.add_generation_prompt,
            bos: utf8(conversation.bos)?,
            eos: utf8(conversation.eos)?,
            bytes_max: conversation.bytes_max as usize,
            mark: conversation.mark,
        };
        Ok(ByteBuf::from(conversation.render().map_err(told)?))
    }
}

fn engine_options(LoadOptions { kv_format, rope_scaling }: LoadOptions) -> options::LoadOptions {
    options::LoadOptions {
        kv_format: match kv_format {
            KvFormat::F32 => options::KvFormat::F32,
            KvFormat::F16 => options::KvFormat::F16,
            KvFormat::Q8 => options::KvFormat::Q8_0,
        },
        rope_scaling: rope_scaling.map(|scaling| match scaling {
            RopeScaling::None => options::RopeScaling::None,
            RopeScaling::Linear(factor) => options::RopeScaling::Linear { factor },
            RopeScaling::Yarn(factor) => options::RopeScaling::Yarn { factor },
        }),
    }
}

fn from_caller(messages: Vec<Message>) -> Vec<chat::Message> {
    let message = |m: Message| chat::Message { role: m.role, content: m.content };
    messages.into_iter().map(message).collect()
}

fn utf8(text: Vec<u8>) -> Result<String> {
    String::from_utf8(text).map_err(|_| Error {
        code: ErrorCode::InvalidInput,
        message: "a text of the conversation is not UTF-8".to_owned(),
    })
}

/// What the caller is told of an error.
fn told(error: EngineError) -> Error {
    let code = match error.kind() {
        ErrorKind::Weights => ErrorCode::Weights,
        ErrorKind::InvalidModel => ErrorCode::InvalidModel,
        ErrorKind::Unsupported => ErrorCode::Unsupported,
        ErrorKind::ContextFull => ErrorCode::ContextFull,
        ErrorKind::OutOfMemory | ErrorKind::TooManyWindows => ErrorCode::OutOfMemory,
        ErrorKind::Team => ErrorCode::Team,
        ErrorKind::Stopped => ErrorCode::Stopped,
        _ => ErrorCode::InvalidInput,
    };
    Error { code, message: error.to_string() }
}
