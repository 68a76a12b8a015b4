//! `moewe pull` and `moewe list`: known models.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use indicatif::DecimalBytes;
use moewe_models::{Bar, Library, default_model, find, known};
use moewe_packed::Stamp;

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
    let library = Library::from_env()?;
    let installed = library.installed()?;
    let mut out = io::stdout().lock();
    for recipe in known() {
        let is_here = installed.iter().any(|m| m.recipe.is_some_and(|r| r.name == recipe.name));
        writeln!(
            out,
            "{:<24} {:>10}  {:<4}  {} ({})",
            recipe.name,
            DecimalBytes(recipe.size_bytes).to_string(),
            if is_here { "here" } else { "" },
            recipe.description,
            recipe.licence
        )?;
    }
    for model in installed.iter().filter(|m| m.recipe.is_none()) {
        let name = model.path.file_name().unwrap_or_default().to_string_lossy();
        let size = DecimalBytes(model.size_bytes).to_string();
        let is_packed = Stamp::read(&model.path).is_ok_and(|stamp| stamp.is_some());
        let what = if is_packed { "packed copy of a model" } else { "" };
        writeln!(out, "{}", format!("{name:<24} {size:>10}  here  {what}").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}
