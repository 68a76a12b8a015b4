//! The command line.

use std::ffi::OsString;

use lexopt::prelude::*;

use crate::bindings::moewe::inference::inference::KvFormat;

/// How to call the command.
pub const USAGE: &str = "\
usage: moewe-wasi.wasm MODEL PROMPT [-n N] [--temp T] [--seed S] [--chat] [--kv FORMAT]
                       [--rope-scaling HOW --rope-factor X]

  MODEL            a GGUF file in a folder that the runtime opened: its name or its path
  PROMPT           the text to continue
  -n, --predict N  the most tokens to generate (default: 128)
      --temp T     the temperature; 0 always takes the most probable token (default: 0.8)
      --seed S     equal seeds give equal texts (default: another one every time)
      --chat       put the prompt into the model's chat template, as a user's message
      --kv FORMAT  keep keys and values as f32, f16 or q8_0 (default: f16)
      --rope-scaling HOW
                   scale positions, for contexts longer than the model was trained
                   for: none, linear or yarn (default: what the file says)
      --rope-factor X
                   how many times as long contexts may be, 1 or more
  -h, --help       show this help";

/// What the user asks for.
pub enum Request {
    /// Text from a model.
    Generate(Arguments),
    /// How to call the command.
    Help,
}

/// What to generate.
#[derive(Debug, PartialEq)]
pub struct Arguments {
    pub model: String,
    pub prompt: String,
    pub n_predict: u64,
    pub temperature: f32,
    pub seed: Option<u64>,
    pub chat: bool,
    pub kv_format: KvFormat,
    pub scaling: Option<Scaling>,
}

/// How positions are scaled, with the factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    None,
    Linear(f32),
    Yarn(f32),
}

impl Arguments {
    /// Parses the command line without the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Request, String> {
        let with_hint = |error| format!("{error}; `--help` shows the usage");
        parse(arguments).map_err(with_hint)
    }
}

fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments.into_iter().map(OsString::from));
    let (mut model, mut prompt) = (None, None);
    let (mut n_predict, mut temperature, mut seed, mut chat) = (128, 0.8, None, false);
    let mut kv_format = KvFormat::F16;
    let (mut how, mut factor) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('n') | Long("predict") => {
                n_predict = number(&mut parser, "-n", "a number of tokens")?
            }
            Long("temp") => {
                temperature = number(&mut parser, "--temp", "a temperature, 0 or more")?;
                if !(0.0..=f32::MAX).contains(&temperature) {
                    return Err(format!("--temp: {temperature} is not 0 or more").into());
                }
            }
            Long("seed") => seed = Some(number(&mut parser, "--seed", "a whole number")?),
            Long("chat") => chat = true,
            Long("kv") => kv_format = parse_kv_format(&parser.value()?.string()?)?,
            Long("rope-scaling") => how = Some(parser.value()?.string()?),
            Long("rope-factor") => {
                factor = Some(number(&mut parser, "--rope-factor", "a factor, 1 or more")?)
            }
            Short('h') | Long("help") => return Ok(Request::Help),
            Value(value) if model.is_none() => model = Some(value.string()?),
            Value(value) if prompt.is_none() => prompt = Some(value.string()?),
            Value(value) => {
                let value = value.string()?;
                return Err(format!("`{value}` is one too many; quote the prompt").into());
            }
            other => return Err(other.unexpected()),
        }
    }
    let model = model.ok_or("the MODEL is missing")?;
    let prompt = prompt.ok_or("the PROMPT is missing")?;
    Ok(Request::Generate(Arguments {
        model,
        prompt,
        n_predict,
        temperature,
        seed,
        chat,
        kv_format,
        scaling: scaling(how.as_deref(), factor)?,
    }))
}

fn scaling(how: Option<&str>, factor: Option<f32>) -> Result<Option<Scaling>, String> {
    Ok(Some(match (how, factor) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err("--rope-factor needs --rope-scaling".to_owned()),
        (Some("none"), None) => Scaling::None,
        (Some("none"), Some(_)) => {
            return Err("--rope-scaling none takes no --rope-factor".to_owned());
        }
        (Some("linear"), Some(factor)) => Scaling::Linear(factor),
        (Some("yarn"), Some(factor)) => Scaling::Yarn(factor),
        (Some(how @ ("linear" | "yarn")), None) => {
            return Err(format!(
                "--rope-scaling {how} needs --rope-factor: how many times as long contexts may be"
            ));
        }
        (Some(how), _) => {
            return Err(format!("--rope-scaling: `{how}` is not none, linear or yarn"));
        }
    }))
}

fn parse_kv_format(name: &str) -> Result<KvFormat, String> {
    match name {
        "f32" => Ok(KvFormat::F32),
        "f16" => Ok(KvFormat::F16),
        "q8_0" => Ok(KvFormat::Q8),
        _ => Err(format!("--kv: `{name}` is not f32, f16 or q8_0")),
    }
}

/// The value of an option, which is to be a number.
fn number<T: std::str::FromStr>(
    parser: &mut lexopt::Parser,
    option: &str,
    expected: &str,
) -> Result<T, lexopt::Error> {
    let value = parser.value()?.string()?;
    value.parse().map_err(|_| format!("{option}: `{value}` is not {expected}").into())
}

#[cfg(test)]
mod tests {
    use crate::bindings::moewe::inference::inference::KvFormat;

    use super::{Arguments, Request, Scaling};

    fn parse(line: &[&str]) -> Result<Arguments, String> {
        match Arguments::parse(line.iter().map(|argument| argument.to_string()))? {
            Request::Generate(arguments) => Ok(arguments),
            Request::Help => Err("help".to_owned()),
        }
    }

    #[test]
    fn options_have_defaults() {
        let arguments = parse(&["a.gguf", "Once upon a time"]).unwrap();
        assert_eq!(
            arguments,
            Arguments {
                model: "a.gguf".to_owned(),
                prompt: "Once upon a time".to_owned(),
                n_predict: 128,
                temperature: 0.8,
                seed: None,
                chat: false,
                kv_format: KvFormat::F16,
                scaling: None,
            }
        );
    }

    #[test]
    fn options_may_stand_anywhere() {
        let arguments = parse(&["-n24", "a.gguf", "--temp=0", "--", "-n", "--seed"]).unwrap_err();
        assert!(arguments.contains("`--seed` is one too many"), "{arguments}");
        let arguments = parse(&[
            "-n24", "a.gguf", "--temp", "0", "--seed=7", "--chat", "--kv", "q8_0", "--", "-n",
        ]);
        assert_eq!(
            arguments.unwrap(),
            Arguments {
                model: "a.gguf".to_owned(),
                prompt: "-n".to_owned(),
                n_predict: 24,
                temperature: 0.0,
                seed: Some(7),
                chat: true,
                kv_format: KvFormat::Q8,
                scaling: None,
            }
        );
    }

    #[test]
    fn scaling_has_a_factor() {
        let scaling = |options: &[&str]| parse(&[&["a.gguf", "Hi"][..], options].concat());
        for (options, expected) in [
            (&["--rope-scaling", "none"][..], Scaling::None),
            (&["--rope-scaling=linear", "--rope-factor=2"], Scaling::Linear(2.0)),
            (&["--rope-factor", "1.5", "--rope-scaling", "yarn"], Scaling::Yarn(1.5)),
        ] {
            assert_eq!(scaling(options).unwrap().scaling, Some(expected));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, expected) in [
            (&[][..], "the MODEL is missing"),
            (&["a.gguf"], "the PROMPT is missing"),
            (&["a.gguf", "Hi", "-n", "many"], "`many` is not a number of tokens"),
            (&["a.gguf", "Hi", "-n", "-1"], "`-1` is not a number of tokens"),
            (&["a.gguf", "Hi", "--temp", "-1"], "-1 is not 0 or more"),
            (&["a.gguf", "Hi", "--temp", "NaN"], "NaN is not 0 or more"),
            (&["a.gguf", "Hi", "--kv", "q4"], "`q4` is not f32, f16 or q8_0"),
            (&["a.gguf", "Hi", "--rope-scaling", "yarn"], "needs --rope-factor"),
            (&["a.gguf", "Hi", "--rope-factor", "2"], "needs --rope-scaling"),
            (&["a.gguf", "Hi", "--rope-scaling", "ntk"], "`ntk` is not none, linear or yarn"),
            (&["a.gguf", "Hi", "--rope-scaling=none", "--rope-factor=2"], "takes no"),
            (&["a.gguf", "Hi", "--rope-factor", "two"], "`two` is not a factor"),
            (&["a.gguf", "Hi", "--seed"], "--seed"),
            (&["a.gguf", "Hi", "--top", "1"], "--top"),
            (&["--help"], "help"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
