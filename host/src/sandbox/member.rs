//! One guest: its store, and the calls into it.

use wasmtime::Store;
use wasmtime::component::ResourceAny;

use super::bindings::exports::moewe::inference::inference::{self as wit, Guest};
use super::bindings::{Engine as Bindings, EnginePre};
use super::call::{call, new_store};
use super::memory;
use super::state::State;
use super::text::checked_text;
use crate::error::{Error, Result};
use crate::info::ModelInfo;

/// What a member answered, unless its sandbox broke.
pub(super) type Answer<T> = Result<Result<T>>;

/// A guest with a model loaded.
pub(super) struct Member {
    store: Store<State>,
    bindings: Bindings,
    model: ResourceAny,
    pub session: Option<ResourceAny>,
}

impl Member {
    /// Makes a guest and loads the model in it.
    pub fn load(
        guest: &EnginePre<State>,
        state: State,
        options: wit::LoadOptions,
    ) -> Answer<(Self, ModelInfo)> {
        let bytes_max = state.limiter.bytes_max;
        let name = state.weights.files.name().to_owned();
        let mut store = new_store(guest.engine(), state);
        let (bindings, region) =
            memory::capture(bytes_max, || call(&mut store, |store| guest.instantiate(store)));
        let bindings = bindings?;
        if let Some(region) = &region {
            region.limit_mappings(store.data().team.n_mappings_max());
        }
        store.data_mut().region = region;
        let model = bindings.moewe_inference_inference().model();
        let handle = match call(&mut store, |store| model.call_load(store, &name, options))? {
            Ok(handle) => handle,
            Err(error) => return Ok(Err(error.into())),
        };
        let info = call(&mut store, |store| model.call_info(store, handle)?.try_into())?;
        Ok(Ok((Self { store, bindings, model: handle, session: None }, info)))
    }

    /// Calls the guest, with its model and its session.
    pub fn call<T>(
        &mut self,
        f: impl FnOnce(
            &mut Store<State>,
            &Guest,
            ResourceAny,
            Option<ResourceAny>,
        ) -> wasmtime::Result<Result<T, wit::Error>>,
    ) -> Answer<T> {
        let guest = self.bindings.moewe_inference_inference();
        let answer = call(&mut self.store, |store| f(store, guest, self.model, self.session))?;
        let answer: Result<T, Error> = answer.map_err(Error::from);
        Ok(answer)
    }
}

impl TryFrom<wit::ModelInfo> for ModelInfo {
    type Error = wasmtime::Error;

    fn try_from(info: wit::ModelInfo) -> wasmtime::Result<Self> {
        Ok(Self {
            architecture: checked_text(info.architecture)?,
            name: info.name.map(checked_text).transpose()?,
            quantization: checked_text(info.quantization)?,
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
        })
    }
}
