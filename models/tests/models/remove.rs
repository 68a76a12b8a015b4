//! Removing models: all that belongs to them, and nothing else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use moewe_models::generate::{Family, Quantization, generate_small};
use moewe_models::pack::{copy_path, pack};
use moewe_models::{Error, Library, Result, Silent, Source, default_model, known};
use tempfile::{TempDir, tempdir};

/// The names of files in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put(folder: &Path, names: &[&str], content: &[u8]) {
    names.iter().for_each(|name| fs::write(folder.join(name), content).unwrap());
}

/// Removes models; what was removed, and how many bytes are free.
fn remove(library: &Library, models: &[&Path]) -> Result<(Vec<PathBuf>, u64)> {
    let (mut paths, mut bytes_free) = (Vec::new(), 0);
    library.remove(models, &mut |path, bytes| {
        assert!(path.symlink_metadata().is_err(), "{} is there", path.display());
        paths.push(path.to_owned());
        bytes_free += bytes;
    })?;
    Ok((paths, bytes_free))
}

/// A folder that is no library, and a library elsewhere.
fn folders() -> (TempDir, PathBuf, Library) {
    let dir = tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap().join("folder");
    fs::create_dir(&folder).unwrap();
    let library = Library::new(dir.path().join("models"));
    (dir, folder, library)
}

/// A model and its packed copy.
fn packed(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let model = folder.join(name);
    generate_small(&model, Family::Mixtral, Quantization::Q4KM, 1, &mut Silent).unwrap();
    let copy = copy_path(&model);
    pack(&model, &copy, false, &mut Silent).unwrap();
    (model, copy)
}

#[test]
fn a_model_goes_with_its_copy_and_leftovers_and_nothing_else() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    let others = ["a.gguf.bak", "a.txt", "aa.gguf", "b.gguf", "b.packed.gguf.part", ".tmpAbCdEf"];
    put(&folder, &others, b"GGUF");
    put(&folder, &["a.gguf.part", "a.packed.gguf.part"], b"left");
    let bytes = model.metadata().unwrap().len() + copy.metadata().unwrap().len() + 8;
    let (removed, bytes_free) = remove(&library, &[&model]).unwrap();
    assert_eq!(removed.len(), 4);
    assert_eq!(removed.last(), Some(&model));
    assert_eq!(bytes_free, bytes);
    let mut expected = others.map(str::to_owned);
    expected.sort();
    assert_eq!(names(&folder), expected);
}

#[test]
fn of_a_packed_copy_the_original_stays() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    remove(&library, &[&copy]).unwrap();
    assert_eq!(names(&folder), ["a.gguf"]);
    // What has only the name of a copy is something else.
    put(&folder, &["a.packed.gguf"], b"GGUF\x03\0\0\0, but not packed");
    remove(&library, &[&model]).unwrap();
    assert_eq!(names(&folder), ["a.packed.gguf"]);
}

/// As a shell writes it: `rm a*.gguf`.
#[test]
fn what_belongs_to_another_one_can_be_named_too() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    put(&folder, &["a.packed.gguf.part"], b"");
    let detour = folder.join("../folder/a.gguf");
    let (removed, _) = remove(&library, &[&model, &copy, &detour]).unwrap();
    assert_eq!(removed.len(), 3);
    assert!(names(&folder).is_empty());
}

#[test]
fn a_split_model_goes_as_a_whole() {
    let (_dir, folder, library) = folders();
    let others = ["a-00001-of-00002.gguf", "a.gguf", "b-00001-of-00003.gguf"];
    for named in ["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"] {
        put(&folder, &others, b"GGUF");
        // The second is missing.
        put(&folder, &["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], b"GGUF");
        put(&folder, &["a.packed.gguf.part"], b"left");
        let (removed, bytes_free) = remove(&library, &[&folder.join(named)]).unwrap();
        assert_eq!((removed.len(), bytes_free), (3, 12));
        assert_eq!(names(&folder), others);
    }
}

/// `a.gguf` and `a-00001-of-00002.gguf` have one place for their copies.
#[test]
fn the_copy_of_another_model_stays() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    let splits = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"];
    put(&folder, &splits, b"GGUF");
    let split = folder.join(splits[0]);
    remove(&library, &[&split]).unwrap();
    assert_eq!(names(&folder), ["a.gguf", "a.packed.gguf"]);

    // As many files as its model has has this one as well.
    put(&folder, &["a-00001-of-00001.gguf"], b"GGUF");
    remove(&library, &[&folder.join("a-00001-of-00001.gguf")]).unwrap();
    assert_eq!(names(&folder), ["a.gguf", "a.packed.gguf"]);

    // What is left of it is nobody else's.
    put(&folder, &splits, b"GGUF");
    fs::remove_file(&model).unwrap();
    remove(&library, &[&split]).unwrap();
    assert_eq!(names(&folder), ["a.packed.gguf"]);

    // Nobody can say whose a copy in another layout is, unless all go.
    let mut bytes = fs::read(&copy).unwrap();
    // The first one is GGUF's own.
    let version_at = bytes[8..].windows(4).position(|four| four == [3, 0, 0, 0]).unwrap() + 8;
    bytes[version_at] = 2;
    fs::write(&copy, &bytes).unwrap();
    put(&folder, &["a.gguf"], b"GGUF");
    put(&folder, &splits, b"GGUF");
    remove(&library, &[&model]).unwrap();
    assert_eq!(names(&folder), [splits[0], splits[1], "a.packed.gguf"]);
    put(&folder, &["a.gguf"], b"GGUF");
    remove(&library, &[&model, &split]).unwrap();
    assert!(names(&folder).is_empty());
}

#[test]
fn a_copy_of_what_was_replaced_goes() {
    let (_dir, folder, library) = folders();
    let (model, _) = packed(&folder, "a.gguf");
    put(&folder, &["a.gguf"], b"GGUF");
    remove(&library, &[&model]).unwrap();
    assert!(names(&folder).is_empty());
}

#[test]
fn what_somebody_else_removes_is_passed_over() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    put(&folder, &["a.gguf.part"], b"left");
    let mut removed = Vec::new();
    let mut note = |path: &Path, _| {
        removed.push(path.to_owned());
        let _ = fs::remove_file(&copy);
    };
    library.remove(&[&model], &mut note).unwrap();
    assert_eq!(removed, [folder.join("a.gguf.part"), model]);
    assert!(names(&folder).is_empty());
}

#[test]
fn what_is_no_model_stays() {
    let (_dir, folder, library) = folders();
    let refused = |name: &str, words: &str| {
        let before = names(&folder);
        let error = remove(&library, &[&folder.join(name)]).unwrap_err().to_string();
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
        assert_eq!(names(&folder), before);
    };
    put(&folder, &["notes.gguf", "notes.gguf.part"], b"Dear diary");
    put(&folder, &["short"], b"GG");
    #[cfg(unix)]
    std::os::unix::fs::symlink("short", folder.join("short.part")).unwrap();
    refused("notes.gguf", "notes.gguf is not a GGUF file");
    refused("short", "is not a GGUF file");
    refused("absent.gguf", "no such file");
    refused(".", "is a folder");
    // All or nothing: one of its files is something else.
    put(&folder, &["a-00001-of-00002.gguf"], b"GGUF");
    put(&folder, &["a-00002-of-00002.gguf"], b"Dear diary");
    refused("a-00001-of-00002.gguf", "a-00002-of-00002.gguf is not a GGUF file");
    let model = folder.join("a-00001-of-00002.gguf");
    assert!(remove(&library, &[&model, &folder.join("short")]).is_err());
    assert!(model.exists());
}

#[test]
fn what_is_being_written_stays() {
    let (_dir, folder, library) = folders();
    let (model, copy) = packed(&folder, "a.gguf");
    let part = folder.join("a.packed.gguf.part");
    let writer = File::create(&part).unwrap();
    writer.try_lock().unwrap();
    for named in [&model, &copy] {
        let error = remove(&library, &[named]).unwrap_err();
        assert!(matches!(&error, Error::Busy(place) if *place == copy), "{error}");
    }
    assert_eq!(names(&folder), ["a.gguf", "a.packed.gguf", "a.packed.gguf.part"]);
    drop(writer);
    remove(&library, &[&model]).unwrap();
    assert!(names(&folder).is_empty());
}

#[test]
#[cfg(unix)]
fn what_has_another_name_stays() {
    use std::os::unix::fs::symlink;

    let (dir, folder, library) = folders();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let (model, copy) = packed(&elsewhere, "a.gguf");
    let [link, link_to_copy] = ["a.gguf", "a.packed.gguf"].map(|name| folder.join(name));
    symlink(&model, &link).unwrap();
    symlink(&copy, &link_to_copy).unwrap();
    symlink(&copy, folder.join("a.packed.gguf.part")).unwrap();
    let before = fs::read(&copy).unwrap();
    let (removed, bytes_free) = remove(&library, &[&link]).unwrap();
    assert_eq!((removed.len(), bytes_free), (3, 0));
    assert!(names(&folder).is_empty());
    assert_eq!(names(&elsewhere), ["a.gguf", "a.packed.gguf"]);
    assert!(fs::read(&copy).unwrap() == before);

    // One that leads nowhere.
    for (model, folder) in [(&link, &folder), (&"smollm2".into(), &dir.path().join("models"))] {
        fs::create_dir_all(folder).unwrap();
        for name in ["a.gguf", default_model().file()] {
            symlink("nowhere", folder.join(name)).unwrap();
        }
        assert_eq!(remove(&library, &[model]).unwrap().0.len(), 1);
        assert_eq!(names(folder).len(), 1);
    }

    // The bytes of a hard link are not free, those of the last one are.
    let other = elsewhere.join("other.gguf");
    fs::hard_link(&model, &other).unwrap();
    assert_eq!(remove(&library, &[&other]).unwrap().1, 0);
    let bytes = model.metadata().unwrap().len() + copy.metadata().unwrap().len();
    assert_eq!(remove(&library, &[&model]).unwrap().1, bytes);
}

#[test]
fn a_known_model_goes_with_what_fetching_has_left() {
    let dir = tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let library = Library::new(&folder);
    let recipe = default_model();
    let Source::Pypi(wheels) = &recipe.source else { panic!("it comes from an index") };
    let partial = folder.join(".partial");
    let leftovers = [format!("{}.part", recipe.file()), format!("{}.part", wheels[0].wheel)];
    let lock = format!("{}.lock", recipe.file());
    let put_leftovers = || {
        fs::create_dir_all(&partial).unwrap();
        leftovers.iter().for_each(|name| fs::write(partial.join(name), "left").unwrap());
        fs::write(partial.join(&lock), "").unwrap();
    };
    let remove = |name: &str| remove(&library, &[Path::new(name)]);

    let error = remove("smollm2").unwrap_err().to_string();
    assert!(error.contains(&format!("nothing of {} to remove", recipe.name)), "{error}");
    let error = remove("smollm3").unwrap_err();
    assert!(matches!(error, Error::UnknownModel { .. }), "{error}");

    // It was never fetched to its end.
    put_leftovers();
    assert_eq!(remove("smollm2").unwrap().1, 8);
    assert!(names(&folder).is_empty());

    // Another file in its place goes only if it is named itself.
    put(&folder, &[recipe.file()], b"GGUF");
    put_leftovers();
    let error = remove("smollm2").unwrap_err();
    assert!(matches!(error, Error::OtherFile { .. }), "{error}");
    assert_eq!(names(&folder), [".partial", recipe.file()]);
    assert_eq!(names(&partial).len(), 3);

    // It is there, and another model is being fetched.
    for (name, size_bytes) in [("SmolLM2", recipe.files[0].size_bytes.unwrap()), (recipe.file(), 4)]
    {
        put(&folder, &[recipe.file()], b"GGUF");
        let model = File::options().write(true).open(folder.join(recipe.file())).unwrap();
        model.set_len(size_bytes).unwrap();
        put_leftovers();
        fs::write(partial.join("other.gguf.part"), "left").unwrap();
        let (removed, _) = remove(name).unwrap();
        assert_eq!(removed.last(), Some(&folder.join(recipe.file())));
        assert_eq!(names(&folder), [".partial"]);
        assert_eq!(names(&partial), ["other.gguf.part"]);
    }

    // Without a lock file, none is made.
    fs::remove_dir_all(&partial).unwrap();
    put_leftovers();
    fs::remove_file(partial.join(&lock)).unwrap();
    put(&folder, &[recipe.file()], b"Dear diary");
    let error = remove(recipe.file()).unwrap_err();
    assert!(matches!(error, Error::NotGguf(_)), "{error}");
    assert_eq!(names(&partial).len(), 2);
    fs::remove_file(folder.join(recipe.file())).unwrap();
    assert_eq!(remove("smollm2").unwrap().1, 8);
    assert!(names(&folder).is_empty());

    put_leftovers();
    let pull = File::open(partial.join(&lock)).unwrap();
    pull.try_lock().unwrap();
    let error = remove("smollm2").unwrap_err();
    assert!(matches!(error, Error::Busy(_)), "{error}");
    assert!(leftovers.iter().all(|name| partial.join(name).exists()));
}

/// The first file comes last, so it may be missing.
#[test]
fn what_has_come_of_a_split_model_goes() {
    let dir = tempdir().unwrap();
    let folder = dir.path().canonicalize().unwrap();
    let library = Library::new(&folder);
    let recipe = known().find(|recipe| recipe.files.len() == 3).unwrap();
    let [first, second, third] = &recipe.files[..] else { unreachable!() };
    put(&folder, &[&second.name], b"GGUF");
    let file = File::options().write(true).open(folder.join(&second.name)).unwrap();
    file.set_len(second.size_bytes.unwrap_or(4)).unwrap();
    let partial = folder.join(".partial");
    fs::create_dir_all(&partial).unwrap();
    for name in [format!("{}.part", third.name), format!("{}.lock", first.name)] {
        fs::write(partial.join(name), "left").unwrap();
    }
    remove(&library, &[Path::new(&recipe.name)]).unwrap();
    assert!(names(&folder).is_empty(), "{:?}", names(&folder));
}
