//! The table of the models that are known, and of those that are here.

use std::fmt::Write;

use indicatif::DecimalBytes;
use moewe_packed::Stamp;

use crate::pull::part_in;
use crate::recipe::Size;
use crate::{Library, Recipe, Result, known};

/// A line of the table.
struct Row<'a> {
    name: &'a str,
    size: &'a str,
    parameters: &'a str,
    quantization: &'a str,
    /// Whether it is here: `here`, `part`, or nothing.
    here: &'a str,
    what: &'a str,
}

const HEAD: Row<'_> = Row {
    name: "name",
    size: "size",
    parameters: "parameters",
    quantization: "format",
    here: "",
    what: "what it is (licence)",
};

impl Library {
    /// A table of the models that have a recipe, and of the other files in the folder,
    /// for people to read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the folder is there but cannot be read.
    pub fn table(&self) -> Result<String> {
        let mut table = String::new();
        HEAD.append_to(&mut table);
        for recipe in known() {
            let parameters = match &recipe.active_parameters {
                Some(active) => format!("{}, {active} active", recipe.parameters),
                None => recipe.parameters.clone(),
            };
            let row = Row {
                name: &recipe.name,
                size: &size_of(recipe.size()),
                parameters: &parameters,
                quantization: &recipe.quantization,
                here: self.here(recipe),
                what: &format!("{} ({})", recipe.description, recipe.licence),
            };
            row.append_to(&mut table);
        }
        for model in self.installed()?.iter().filter(|model| model.recipe.is_none()) {
            let is_packed = Stamp::read(&model.path).is_ok_and(|stamp| stamp.is_some());
            let row = Row {
                name: &model.path.file_name().unwrap_or_default().to_string_lossy(),
                size: &DecimalBytes(model.size_bytes).to_string(),
                parameters: "",
                quantization: "",
                here: "here",
                what: if is_packed { "packed copy of a model" } else { "" },
            };
            row.append_to(&mut table);
        }
        Ok(table)
    }

    fn here(&self, recipe: &Recipe) -> &'static str {
        let has_some = |name: &str| {
            self.folder().join(name).exists() || part_in(&self.partial(), name).exists()
        };
        if self.has(recipe) {
            "here"
        } else if recipe.files.iter().any(|file| has_some(&file.name)) {
            "part"
        } else {
            ""
        }
    }
}

impl Row<'_> {
    fn append_to(&self, table: &mut String) {
        let Self { name, size, parameters, quantization, here, what } = self;
        let line =
            format!("{name:<24} {size:>9}  {parameters:<19}  {quantization:<8}  {here:<4}  {what}");
        writeln!(table, "{}", line.trim_end()).expect("memory is written to");
    }
}

/// No more digits than are known.
fn size_of(size: Size) -> String {
    match size {
        Size::Exactly(bytes) => DecimalBytes(bytes).to_string(),
        Size::About(bytes) => {
            let gigabytes = bytes as f64 / 1e9;
            let digits = if gigabytes < 10.0 { 1 } else { 0 };
            format!("~{gigabytes:.digits$} GB")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::find;

    #[test]
    fn the_table_says_what_is_here() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::new(folder.path());
        let line = |name: &str| {
            let table = library.table().unwrap();
            let line = table.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("no {name} in\n{table}")).to_owned()
        };
        assert!(line("smollm2-135m-instruct").contains(" 98.36 MB  135M  "));
        let row = line("qwen3-30b-a3b");
        assert!(row.contains(" 18.56 GB  30.5B, 3.3B active   Q4_K_M          Qwen3"), "{row}");
        let row = line("kimi-k2");
        assert!(row.contains("  ~245 GB  1T, 32B active       UD-TQ1_0        Kimi"), "{row}");

        // A split model is here when all of its files are.
        let recipe = find("gpt-oss-120b").unwrap();
        for file in &recipe.files {
            assert!(!line("gpt-oss-120b").contains("  here  "));
            let path = folder.path().join(&file.name);
            File::create(path).unwrap().set_len(file.size_bytes.unwrap()).unwrap();
            assert!(!line("gpt-oss-120b").contains("MXFP4           "));
        }
        assert!(line("gpt-oss-120b").contains("  MXFP4     here  OpenAI"));
        fs::remove_file(folder.path().join(&recipe.files[2].name)).unwrap();
        assert!(line("gpt-oss-120b").contains("  MXFP4     part  OpenAI"));

        fs::write(folder.path().join("mine.gguf"), "GGUF").unwrap();
        assert!(line("mine.gguf").ends_with("  here"), "{}", line("mine.gguf"));
    }

    #[test]
    fn what_is_known_about_has_few_digits() {
        assert_eq!(size_of(Size::About(9_870_000_000)), "~9.9 GB");
        assert_eq!(size_of(Size::About(140_400_000_000)), "~140 GB");
    }
}
