//! Generating text with the engine.

use std::io::Write;

use wasip2::random::random::get_random_u64;

use crate::arguments::{Arguments, Scaling};
use crate::bindings::moewe::inference::inference::{
    Error, LoadOptions, Message, Model, RopeScaling, Sampling, SessionOptions,
};
use crate::output;

/// Continues the prompt, and writes every piece of text as soon as it is
/// complete. A newline ends the output.
pub fn generate(arguments: &Arguments, output: &mut impl Write) -> Result<(), String> {
    let rope_scaling = arguments.scaling.map(|scaling| match scaling {
        Scaling::None => RopeScaling::None,
        Scaling::Linear(factor) => RopeScaling::Linear(factor),
        Scaling::Yarn(factor) => RopeScaling::Yarn(factor),
    });
    let options = LoadOptions { kv_format: arguments.kv_format, rope_scaling };
    let model = Model::load(&arguments.model, options).map_err(engine_error)?;
    let prompt = prompt_tokens(&model, arguments).map_err(engine_error)?;
    let session = model.start(session_options(arguments)).map_err(engine_error)?;
    session.feed(&prompt).map_err(engine_error)?;
    for _ in 0..arguments.n_predict {
        let step = session.next().map_err(engine_error)?;
        output::write(output, &step.text)?;
        if step.stop.is_some() {
            break;
        }
    }
    output::write(output, b"\n")
}

fn prompt_tokens(model: &Model, arguments: &Arguments) -> Result<Vec<u32>, Error> {
    if !arguments.chat {
        return model.tokenize(&arguments.prompt, true, false);
    }
    let message = Message { role: "user".to_owned(), content: arguments.prompt.clone() };
    model.apply_chat_template(&[message], true)
}

/// The sampling that llama.cpp does unless told otherwise.
fn session_options(arguments: &Arguments) -> SessionOptions {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        seed: arguments.seed.unwrap_or_else(get_random_u64),
    };
    SessionOptions { n_ctx: None, sampling }
}

fn engine_error(error: Error) -> String {
    String::from_utf8_lossy(&error.message).into_owned()
}
