//! `moewe pull` and `moewe list`: known models.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use moewe_models::{Bar, Library, default_model, find};

/// Fetch a known model
#[derive(clap::Args)]
pub struct PullArgs {
    /// Its name, as `moewe list` shows it [default: a small one]
    model: Option<String>,
}

/// List the known models, and those that are here
#[derive(clap::Args)]
pub struct ListArgs {}

pub fn pull(args: &PullArgs) -> Result<ExitCode> {
    let recipe = match &args.model {
        Some(name) => find(name)?,
        None => default_model(),
    };
    let path = Library::from_env()?.pull(recipe, &mut Bar::new())?;
    writeln!(io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

pub fn list(_: &ListArgs) -> Result<ExitCode> {
    write!(io::stdout(), "{}", Library::from_env()?.table()?)?;
    Ok(ExitCode::SUCCESS)
}
