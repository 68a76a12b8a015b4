//! How long contexts may be, and how they are kept.

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use moewe::{KvFormat, Model, ModelOptions, RopeScaling};

/// How the KV cache is kept, and how far positions reach.
#[derive(clap::Args)]
#[command(next_help_heading = "Long contexts")]
pub struct ContextArgs {
    /// Keep keys and values as numbers of 32 or 16 bits, or as whole numbers of 8 bits:
    /// half or a quarter of the memory
    #[arg(long, value_name = "FORMAT", value_parser = kv_format(), default_value = "f16")]
    pub kv: KvFormat,
    /// Scale positions, for contexts longer than the model was trained for [default: what
    /// the file says]
    #[arg(long, value_name = "HOW", value_parser = ["none", "linear", "yarn"])]
    rope_scaling: Option<String>,
    /// How many times as long contexts may be, 1 or more
    #[arg(long, value_name = "X", requires = "rope_scaling")]
    rope_factor: Option<f32>,
}

impl ContextArgs {
    /// Puts what was asked for into the options.
    pub fn apply(&self, options: &mut ModelOptions) -> Result<()> {
        options.kv_format = self.kv;
        options.rope_scaling = self.rope_scaling()?;
        Ok(())
    }

    /// The scaling that was asked for.
    pub fn rope_scaling(&self) -> Result<Option<RopeScaling>> {
        let Some(name) = self.rope_scaling.as_deref() else { return Ok(None) };
        Ok(Some(match (name, self.rope_factor) {
            ("none", None) => RopeScaling::None,
            ("linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", Some(factor)) => RopeScaling::Yarn { factor },
            ("none", Some(_)) => bail!("--rope-scaling none takes no --rope-factor"),
            _ => bail!(
                "--rope-scaling {name} needs --rope-factor: how many times as long contexts may be"
            ),
        }))
    }
}

/// Reads `--kv`.
fn kv_format() -> impl TypedValueParser<Value = KvFormat> {
    let names = PossibleValuesParser::new(KvFormat::ALL.map(KvFormat::name));
    names.map(|name| {
        let format = KvFormat::ALL.into_iter().find(|format| format.name() == name);
        format.expect("the parser takes these names only")
    })
}

/// Warns on stderr if a context of so many tokens, by default the longest, is longer than
/// those that the model was trained for.
pub fn warn_if_long(model: &Model, n_ctx: Option<u32>) {
    let info = model.info();
    let n_ctx = n_ctx.unwrap_or(info.n_ctx_max);
    // What is longer than it can be is an error.
    if n_ctx > info.n_ctx_train && n_ctx <= info.n_ctx_max {
        eprintln!(
            "warning: a context of {n_ctx} tokens is longer than the {} that the model was trained \
             for; its answers may be worse, also to short prompts",
            info.n_ctx_train
        );
    }
}
