//! Finding the file that a user means.

use std::fs::{self, File};

use moewe_models::{Error, Library, default_model, known};
use tempfile::tempdir;

#[test]
fn a_path_a_folder_and_nothing() {
    let dir = tempdir().unwrap();
    let library = Library::new(dir.path().join("models"));
    let file = dir.path().join("any name");
    fs::write(&file, b"GGUF").unwrap();
    assert_eq!(library.resolve(&file).unwrap(), file);

    let error = library.resolve(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Folder(_)), "{error}");
    for absent in ["x.gguf", "a/b", "./smollm2"] {
        let error = library.resolve(absent).unwrap_err();
        assert_eq!(error.to_string(), format!("no such file: {absent}"));
    }
}

#[test]
fn a_name_before_and_after_it_was_fetched() {
    let dir = tempdir().unwrap();
    let library = Library::new(dir.path());
    let error = library.resolve("smollm2").unwrap_err().to_string();
    assert!(error.ends_with("run `moewe pull smollm2-135m-instruct`"), "{error}");
    let error = library.resolve("smollm3").unwrap_err();
    assert!(matches!(error, Error::UnknownModel { .. }), "{error}");
    assert!(library.installed().unwrap().is_empty());

    // Only the size counts here; a sparse file has it.
    let recipe = default_model();
    let path = dir.path().join(recipe.file());
    File::create(&path).unwrap().set_len(recipe.files[0].size_bytes.unwrap()).unwrap();
    assert_eq!(library.resolve("SmolLM2").unwrap(), path);
    assert_eq!(library.resolve(recipe.file()).unwrap(), path);

    fs::write(dir.path().join("mine.gguf"), b"GGUF").unwrap();
    fs::write(dir.path().join("notes.txt"), b"").unwrap();
    let installed = library.installed().unwrap();
    let names: Vec<_> = installed.iter().map(|model| model.recipe.map(|r| &*r.name)).collect();
    assert_eq!(names, [Some("smollm2-135m-instruct"), None]);
    assert_eq!(installed[1].size_bytes, 4);
    assert_eq!(library.resolve("mine.gguf").unwrap(), dir.path().join("mine.gguf"));

    fs::write(&path, b"cut short").unwrap();
    let error = library.resolve("smollm2").unwrap_err();
    assert!(matches!(error, Error::Altered { .. }), "{error}");
    assert!(library.installed().unwrap()[0].recipe.is_none());
}

#[test]
fn a_folder_that_is_not_there_has_no_models() {
    let dir = tempdir().unwrap();
    assert!(Library::new(dir.path().join("absent")).installed().unwrap().is_empty());
}

#[test]
fn a_split_model_is_there_when_all_of_its_files_are() {
    let dir = tempdir().unwrap();
    let library = Library::new(dir.path());
    let recipe = known().find(|recipe| recipe.files.len() > 1).unwrap();
    for file in &recipe.files {
        let error = library.resolve(&recipe.name).unwrap_err();
        assert!(matches!(error, Error::NotPulled { .. }), "{error}");
        assert!(!library.has(recipe));
        let path = dir.path().join(&file.name);
        File::create(path).unwrap().set_len(file.size_bytes.unwrap_or(1)).unwrap();
    }
    let path = dir.path().join(recipe.file());
    assert_eq!(library.resolve(&recipe.name).unwrap(), path);
    assert!(library.has(recipe));
    let installed = library.installed().unwrap();
    assert_eq!(installed.len(), recipe.files.len());
    assert!(installed.iter().all(|m| m.recipe.is_some_and(|r| r.name == recipe.name)));
}
