//! The recipes, embedded from `recipes/*.toml`.

use std::str::FromStr;
use std::sync::LazyLock;

use moewe_gguf::SplitNames;
use serde::Deserialize;

use crate::{Error, Result};

/// By size. The first one is the default.
const RECIPES: [&str; 20] = [
    include_str!("../recipes/smollm2-135m-instruct.toml"),
    include_str!("../recipes/gemma-3-270m.toml"),
    include_str!("../recipes/granite-3.1-3b-a800m.toml"),
    include_str!("../recipes/olmoe-1b-7b.toml"),
    include_str!("../recipes/ling-mini-2.0.toml"),
    include_str!("../recipes/deepseek-coder-v2-lite.toml"),
    include_str!("../recipes/moonlight-16b-a3b.toml"),
    include_str!("../recipes/gpt-oss-20b.toml"),
    include_str!("../recipes/ernie-4.5-21b-a3b.toml"),
    include_str!("../recipes/gemma-4-26b-a4b.toml"),
    include_str!("../recipes/glm-4.7-flash.toml"),
    include_str!("../recipes/qwen3-30b-a3b.toml"),
    include_str!("../recipes/qwen3-coder-30b-a3b.toml"),
    include_str!("../recipes/phi-3.5-moe.toml"),
    include_str!("../recipes/gpt-oss-120b.toml"),
    include_str!("../recipes/llama-4-scout.toml"),
    include_str!("../recipes/glm-4.5-air.toml"),
    include_str!("../recipes/deepseek-r1.toml"),
    include_str!("../recipes/qwen3-235b-a22b.toml"),
    include_str!("../recipes/kimi-k2.toml"),
];

/// Larger files are not fetched. It keeps sums of sizes from overflowing.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 44;

static KNOWN: LazyLock<Vec<Recipe>> = LazyLock::new(|| {
    RECIPES.iter().map(|text| text.parse().expect("embedded recipes are tested")).collect()
});

/// A model's files, and where they come from.
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
    /// How many parameters it has, such as `30.5B`.
    pub parameters: String,
    /// How many of them a token needs, if it is a mixture of experts.
    pub active_parameters: Option<String>,
    /// In which format most of them are, such as `Q4_K_M`.
    pub quantization: String,
    /// The model's licence: an SPDX identifier, or a title with its address.
    pub licence: String,
    /// About how large it is, where the size of one of its files is not known.
    pub bytes_about: Option<u64>,
    /// Its files: one, or all that it is split into, in order.
    pub files: Vec<ModelFile>,
    /// Where they come from.
    pub source: Source,
}

/// One of a model's files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Its name in the models folder: `FILE.gguf`.
    pub name: String,
    /// Its size in bytes; where none is given, what the server says.
    pub size_bytes: Option<u64>,
    /// Its SHA-256 in lowercase hex; where none is given, what the server says.
    pub sha256: Option<String>,
}

/// The size of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Exactly(u64),
    /// About so many bytes.
    About(u64),
}

/// Where a model's files come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// Members of Python wheels, which make up the file one after the other.
    Pypi(Vec<Wheel>),
    /// The file itself, at an http(s) address.
    Https(String),
    /// A repository of Hugging Face that has the files.
    HuggingFace(Repository),
}

/// A repository of Hugging Face.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Its name: `OWNER/NAME`.
    pub repository: String,
    /// A commit, a tag or a branch.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The folder in it that has the files, such as `Q4_K_M`; else they are at the top.
    pub folder: Option<String>,
}

fn main_branch() -> String {
    "main".into()
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

    /// Its file, of a split model the first.
    pub fn file(&self) -> &str {
        &self.files[0].name
    }

    /// How large all of its files are.
    pub fn size(&self) -> Size {
        let sizes: Option<Vec<u64>> = self.files.iter().map(|file| file.size_bytes).collect();
        match sizes {
            Some(sizes) => Size::Exactly(sizes.iter().sum()),
            None => Size::About(self.bytes_about.unwrap_or_default()),
        }
    }

    fn check(&self) -> Result<(), String> {
        let Some(first) = self.files.first() else { return Err("it has no files".into()) };
        for file in &self.files {
            if !file.name.ends_with(".gguf") {
                return Err(format!("`{}` does not end in .gguf", file.name));
            }
            check_file(&file.name, file.size_bytes, file.sha256.as_deref())?;
        }
        let expected = match SplitNames::of(&first.name) {
            Some((names, _)) if names.n_files as usize == self.files.len() => {
                names.iter().collect()
            }
            Some((names, _)) => return Err(format!("it is split into {} files", names.n_files)),
            None => vec![first.name.clone()],
        };
        if !self.files.iter().map(|file| &file.name).eq(&expected) {
            return Err(format!("its files should be {}", expected.join(", ")));
        }
        let is_known = |file: &ModelFile| file.size_bytes.is_some();
        if self.files.iter().all(is_known) == self.bytes_about.is_some() {
            return Err("either the sizes of all files, or `bytes_about`".into());
        }
        check_file(&first.name, self.bytes_about, None)?;
        self.source.check(&self.files)
    }
}

impl Source {
    fn check(&self, files: &[ModelFile]) -> Result<(), String> {
        let is_one = match files {
            [file] => file.size_bytes.is_some() && file.sha256.is_some(),
            _ => false,
        };
        match self {
            Self::Pypi(_) | Self::Https(_) if !is_one => {
                return Err("from there comes one file, of known size and SHA-256".into());
            }
            Self::Pypi(wheels) if wheels.is_empty() => return Err("it has no wheels".into()),
            Self::Pypi(wheels) => {
                for wheel in wheels {
                    if !is_plain(&wheel.project) {
                        return Err(format!("`{}` is not a project's name", wheel.project));
                    }
                    check_file(&wheel.wheel, Some(wheel.size_bytes), Some(&wheel.sha256))?;
                }
            }
            Self::HuggingFace(Repository { repository, revision, folder }) => {
                match repository.split_once('/') {
                    Some((owner, name)) if is_plain(owner) && is_plain(name) => {}
                    _ => return Err(format!("`{repository}` is not a repository's name")),
                }
                for name in [Some(revision), folder.as_ref()].into_iter().flatten() {
                    if !is_plain(name) {
                        return Err(format!("`{name}` is not a plain name"));
                    }
                }
            }
            Self::Https(_) => {}
        }
        Ok(())
    }
}

fn check_file(name: &str, size_bytes: Option<u64>, sha256: Option<&str>) -> Result<(), String> {
    if !is_plain(name) {
        return Err(format!("`{name}` is not a plain file name"));
    }
    if size_bytes.is_some_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(format!("{name} has more than {FILE_BYTES_MAX} bytes"));
    }
    match sha256 {
        Some(sha256) if !is_sha256(sha256) => {
            Err(format!("`{sha256}` is not a SHA-256 in lowercase hex"))
        }
        _ => Ok(()),
    }
}

/// Whether this is a SHA-256 in lowercase hex.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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
    /// larger than 16 TiB, a hash is not one, one of the files of a split model
    /// is missing, or a size that must be known is not.
    fn from_str(text: &str) -> Result<Self> {
        let recipe: Self =
            toml::from_str(text).map_err(|e| Error::BadRecipe(e.message().into()))?;
        match recipe.check() {
            Ok(()) => Ok(recipe),
            Err(reason) => Err(Error::BadRecipe(format!("{}: {reason}", recipe.name))),
        }
    }
}

/// All models with a recipe, by size, the default first.
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
/// [`Error::UnknownModel`], with the nearest name if there is one.
pub fn find(name: &str) -> Result<&'static Recipe> {
    known().find(|recipe| recipe.is_called(name)).ok_or_else(|| {
        let nearest = known()
            .flat_map(Recipe::names)
            .map(|known| (strsim::jaro_winkler(known, &name.to_ascii_lowercase()), known))
            .filter(|(similarity, _)| *similarity > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match nearest {
            Some((_, known)) => format!("did you mean `{known}`?"),
            None => "`moewe list` shows which are known; or give the path of a .gguf file".into(),
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
            let has_it = |other: &&Recipe| other.files.iter().any(|f| f.name == recipe.file());
            assert_eq!(recipes.iter().filter(has_it).count(), 1);
        }
        assert_eq!(default_model().name, "smollm2-135m-instruct");
        assert!(recipes.is_sorted_by_key(|recipe| match recipe.size() {
            Size::Exactly(bytes) | Size::About(bytes) => bytes,
        }));
    }

    #[test]
    fn names_aliases_and_near_misses() {
        assert_eq!(find("SmolLM2").unwrap().name, "smollm2-135m-instruct");
        assert_eq!(find("gemma-3-270m").unwrap().file(), "gemma-3-270m-q4_k_m.gguf");
        let near = find("smolm2").unwrap_err().to_string();
        assert!(near.ends_with("did you mean `smollm2`?"), "{near}");
        let far = find("xyzzy").unwrap_err().to_string();
        assert!(far.contains("`moewe list`"), "{far}");
    }

    #[test]
    fn bad_recipes_are_refused() {
        let [wheels, split] = ["smollm2-135m-instruct", "gpt-oss-120b"].map(|name| {
            *RECIPES.iter().find(|text| text.contains(&format!("name = \"{name}\""))).unwrap()
        });
        for (recipe, from, to, complaint) in [
            (wheels, "name = \"SmolLM2", "name = \"../SmolLM2", "not a plain file name"),
            (wheels, ".Q4_1.gguf\"\nsize", ".bin\"\nsize", "does not end in .gguf"),
            (wheels, "sha256 = \"b1", "sha256 = \"zz", "not a SHA-256"),
            (wheels, "wheel = \"", "wheel = \"a/", "not a plain file name"),
            (wheels, "project = \"", "project = \"../", "not a project's name"),
            (wheels, "size_bytes = ", "size_bytes = 99999999", "more than"),
            (wheels, "aliases =", "alias =", "unknown field `alias`"),
            (wheels, "size_bytes = 98362432", "", "`bytes_about`"),
            (wheels, "\n[[files]]", "bytes_about = 1\n[[files]]", "`bytes_about`"),
            (wheels, "sha256 = \"b179", "#", "of known size and SHA-256"),
            (split, "-00001-of-", "-00002-of-", "its files should be gpt-oss"),
            (split, "-00001-of-00003", "-00001-of-00002", "is split into 2 files"),
            (split, "mxfp4-00001-of-00003", "mxfp4", "its files should be gpt-oss-120b-mxfp4.gguf"),
            (split, "repository = \"", "repository = \"a/b/", "not a repository's name"),
            (split, "repository = \"ggml-org/", "repository = \"", "not a repository's name"),
            (split, "revision = \"", "revision = \"../", "not a plain name"),
            (split, "revision =", "folder = \"a/b\"\nrevision =", "not a plain name"),
        ] {
            assert!(recipe.contains(from), "{from}");
            let text = recipe.replacen(from, to, 1);
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(complaint), "{complaint}: {error}");
        }
    }
}
