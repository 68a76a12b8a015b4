//! What is measured with.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use moewe_models::generate::{Shape, generate};
use moewe_models::{Bar, Library};
use moewe_packed::PackedCopy;

use crate::llama_cpp::LlamaCpp;
use crate::process;

/// A model that is fetched or made.
pub struct Known {
    pub name: &'static str,
    origin: Origin,
    /// Whether it is measured if nobody says which.
    pub is_usual: bool,
}

enum Origin {
    /// A recipe's file.
    Recipe,
    /// The same, in another quantisation.
    Quantized(&'static str),
    /// Random weights.
    Random(Shape),
}

const RECIPE: &str = "smollm2-135m-instruct";

impl Known {
    pub const ALL: [Self; 7] = [
        Self::usual("smollm2-q4_0", Origin::Quantized("Q4_0")),
        Self::usual("smollm2-q4_1", Origin::Recipe),
        Self::usual("smollm2-q8_0", Origin::Quantized("Q8_0")),
        Self::usual("moe-7.7b", Origin::Random(Shape::MOE_7_7B)),
        Self::on_demand("many", Shape::MANY),
        Self::on_demand("moe-30b", Shape::MOE_30B),
        Self::on_demand("llama-8b", Shape::LLAMA_8B),
    ];

    const fn usual(name: &'static str, origin: Origin) -> Self {
        Self { name, origin, is_usual: true }
    }

    /// One that takes its time and its place on the disk only when it is asked for.
    const fn on_demand(name: &'static str, shape: Shape) -> Self {
        Self { name, origin: Origin::Random(shape), is_usual: false }
    }

    /// Whether it can be run in less memory than it has bytes.
    pub fn has_experts(&self) -> bool {
        matches!(&self.origin, Origin::Random(shape) if shape.has_experts())
    }

    /// Its file in `folder`, fetched or made if it is missing.
    fn file(&self, folder: &Path, llama_cpp: Result<&LlamaCpp, &String>) -> Result<PathBuf> {
        // Not named after the recipe, whose file others look for.
        let place = folder.join(self.name).with_added_extension("gguf");
        if place.exists() {
            return Ok(place);
        }
        match &self.origin {
            Origin::Recipe => return recipe(folder),
            Origin::Quantized(quantization) => {
                let llama_cpp = llama_cpp.map_err(|reason| anyhow!("{reason}"));
                let llama_cpp = llama_cpp.context("it is quantised with llama.cpp")?;
                eprintln!("writing {}", place.display());
                llama_cpp.quantize(&recipe(folder)?, &place, quantization)?;
            }
            Origin::Random(shape) => generate(&place, shape, 1, &mut Bar::new())?,
        }
        Ok(place)
    }
}

/// The recipe's file in `folder`, fetched if it is missing.
fn recipe(folder: &Path) -> Result<PathBuf> {
    let mut library = Library::new(folder);
    if let Some(mirror) = env::var("MOEWE_MIRROR").ok().filter(|mirror| !mirror.is_empty()) {
        library = library.with_mirror(mirror);
    }
    match library.resolve(RECIPE) {
        Err(moewe_models::Error::NotPulled { .. }) => {
            Ok(library.pull(moewe_models::find(RECIPE)?, &mut Bar::new())?)
        }
        found => Ok(found?),
    }
}

/// A model, and its file; if it cannot be had, why.
pub struct Model {
    pub name: String,
    pub path: Result<PathBuf, String>,
}

impl Model {
    pub fn path(&self) -> Result<&PathBuf> {
        self.path.as_ref().map_err(|reason| anyhow!("{reason}"))
    }

    /// The file as it is. If a packed copy lies beside it, which would be taken
    /// instead, a link to it from elsewhere.
    pub fn raw(&self, target: &Path) -> Result<PathBuf> {
        let path = self.path()?;
        if moewe_packed::file_to_open(path) == *path {
            return Ok(path.clone());
        }
        let folder = target.join("bench/raw");
        let link = folder.join(&self.name).with_added_extension("gguf");
        std::fs::create_dir_all(&folder)?;
        // The model may be another one by now.
        if link.exists() {
            std::fs::remove_file(&link)?;
        }
        let linked = std::fs::hard_link(path.canonicalize()?, &link);
        linked.with_context(|| format!("{} cannot be linked to", path.display()))?;
        Ok(link)
    }

    /// A packed copy, written if it is missing: not beside the model, where it
    /// would be taken instead.
    pub fn packed(&self, moewe: &Path, target: &Path) -> Result<PathBuf> {
        let path = self.path()?;
        if let PackedCopy::Current(packed) = PackedCopy::of(path) {
            return Ok(packed);
        }
        let folder = target.join("bench/packed");
        let packed = folder.join(&self.name).with_added_extension("packed.gguf");
        if !packed.exists() {
            std::fs::create_dir_all(&folder)?;
            eprintln!("writing {}", packed.display());
            process::output(Command::new(moewe).arg("pack").arg(path).arg("-o").arg(&packed))?;
        }
        Ok(packed)
    }

    /// The model of that name, or in that file.
    ///
    /// # Errors
    /// There is neither.
    pub fn find(
        model: &Path,
        target: &Path,
        llama_cpp: Result<&LlamaCpp, &String>,
    ) -> Result<Self> {
        if let Some(known) = Known::ALL.iter().find(|known| Path::new(known.name) == model) {
            let path = known.file(&target.join("models"), llama_cpp);
            return Ok(Self {
                name: known.name.to_owned(),
                path: path.map_err(|error| format!("{error:#}")),
            });
        }
        let name = model.file_stem().filter(|_| model.is_file()).with_context(|| {
            let known = Known::ALL.map(|known| known.name).join(", ");
            format!("{}: no such file, and no known model: {known}", model.display())
        })?;
        Ok(Self { name: name.to_string_lossy().into_owned(), path: Ok(model.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_known_one_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let none = String::from("no compiler");
        let find = |model: &Path| Model::find(model, folder.path(), Err(&none));
        let file = folder.path().join("some.gguf");
        std::fs::write(&file, "x").unwrap();
        let model = find(&file).unwrap();
        assert_eq!((&*model.name, model.path), ("some", Ok(file)));
        let error = find(Path::new("smolm")).err().unwrap().to_string();
        let names = Known::ALL.map(|known| known.name).join(", ");
        assert!(error.contains(&format!("no known model: {names}")), "{error}");
        // Without llama.cpp, it can be listed as missing.
        let model = find(Path::new("smollm2-q8_0")).unwrap();
        assert_eq!(model.path.unwrap_err(), "it is quantised with llama.cpp: no compiler");
    }
}
