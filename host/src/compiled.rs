//! The compiled guest, kept in a file.
//!
//! Compiling takes seconds, and memory that nothing has a use for afterwards. So its
//! result is written to a file, one for each guest, version and kind of processor, and
//! mapped from there: by the process that has compiled it too, which gives its memory
//! back, and so has no more than any later one.
//!
//! A file's name says what was compiled, for what, and the sum of its bytes. One that
//! is damaged, or of another version, is not what is looked for, and is replaced. A
//! file has its name when it is complete, so nobody waits for anybody else.

use std::env;
use std::fs::{self, DirBuilder, File, Metadata};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use twox_hash::XxHash3_64;
use wasmtime::component::Component;
use wasmtime::{Config, Engine};

/// What the names of all our files begin with, and how those of complete ones end.
const PREFIX: &str = "guest-";
const SUFFIX: &str = ".cwasm";
/// How those of files end that are being written, and the longest time for that.
const PART_SUFFIX: &str = ".part";
const PART_AGE_MAX: Duration = Duration::from_secs(3600);
/// So many files stay when one is written, that one included: programs that share the
/// folder need not compile in turns.
const N_FILES_MAX: usize = 24;

/// A guest, compiled for an engine of this configuration: from the user's folder for
/// caches, where it is kept if there is such a folder.
pub(crate) fn load(engine: &Engine, config: Config, guest: &[u8]) -> wasmtime::Result<Component> {
    load_in(folder().as_deref(), engine, config, guest)
}

fn load_in(
    folder: Option<&Path>,
    engine: &Engine,
    config: Config,
    guest: &[u8],
) -> wasmtime::Result<Component> {
    let folder = folder.filter(|folder| make(folder).is_ok());
    let key = key(engine, guest);
    if let Some(component) = folder.and_then(|folder| find(folder, &key, engine)) {
        return Ok(component);
    }
    let compiled = compile(config, guest)?;
    // Where it cannot be kept, all works the same, but every start compiles.
    let kept = folder.filter(|folder| keep(folder, &key, &compiled).is_ok());
    let component = match kept.and_then(|folder| find(folder, &key, engine)) {
        Some(component) => Ok(component),
        // SAFETY: it was compiled just now, and nobody has written to it.
        None => unsafe { Component::deserialize(engine, &compiled) },
    };
    drop(compiled);
    moewe_memory::give_back(compile as fn(Config, &[u8]) -> _ as *const ());
    component
}

/// What the name of a compiled guest begins with.
fn key(engine: &Engine, guest: &[u8]) -> String {
    let mut hasher = XxHash3_64::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{PREFIX}{:016x}-{:016x}-", hasher.finish(), XxHash3_64::oneshot(guest))
}

/// The name of a file whose bytes have this sum.
fn name(key: &str, checksum: u64) -> String {
    format!("{key}{checksum:016x}{SUFFIX}")
}

/// The sum of a file's bytes. The file is read in small pieces, because what a large
/// block leaves behind in the allocator counts when a model is opened.
fn checksum(file: &mut impl Read) -> io::Result<u64> {
    let mut hasher = XxHash3_64::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.write(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Compiles a guest with an engine of its own, which keeps much for what it may have
/// to compile next. One function after another: each takes memory, and a budget of
/// memory counts at this moment, too.
fn compile(mut config: Config, guest: &[u8]) -> wasmtime::Result<Vec<u8>> {
    moewe_memory::map_large_blocks();
    config.parallel_compilation(false);
    Engine::new(&config)?.precompile_component(guest)
}

/// The compiled guest of this key, if the folder has it whole.
fn find(folder: &Path, key: &str, engine: &Engine) -> Option<Component> {
    let entries =
        fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    entries.filter(|entry| entry.starts_with(key)).find_map(|entry| {
        let path = folder.join(&entry);
        let mut file = File::open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_private(&metadata) {
            return None;
        }
        if name(key, checksum(&mut file).ok()?) != entry {
            return None;
        }
        // SAFETY: this user alone can write to the file and to its folder, and whoever
        // can do that can run any code as this user. It has its name since it was
        // written, and holds what that says: the result of compiling this guest for an
        // engine like this one. It is only ever replaced as a whole, which leaves what
        // is mapped as it is.
        let component = unsafe { Component::deserialize_file(engine, &path) }
            // Code may not be mapped from every file system.
            // SAFETY: as above.
            .or_else(|_| unsafe { Component::deserialize(engine, fs::read(&path)?) })
            .ok()?;
        // What the process has when a model is opened counts in its budget, and this comes
        // anyway.
        moewe_memory::make_present(component.image_range());
        Some(component)
    })
}

/// Writes a compiled guest, and removes files that have become too many.
fn keep(folder: &Path, key: &str, compiled: &[u8]) -> io::Result<()> {
    let mut file =
        tempfile::Builder::new().prefix(PREFIX).suffix(PART_SUFFIX).tempfile_in(folder)?;
    file.write_all(compiled)?;
    file.as_file().sync_all()?;
    let name = name(key, XxHash3_64::oneshot(compiled));
    file.persist(folder.join(&name))?;
    let others = fs::read_dir(folder)?.filter_map(|entry| {
        let entry = entry.ok()?;
        let other = entry.file_name().into_string().ok()?;
        if !other.starts_with(PREFIX) || other == name {
            return None;
        }
        let written = entry.metadata().ok()?.modified().ok();
        if other.ends_with(PART_SUFFIX) {
            // Another process is writing it, or was ended while it did.
            let age = written?.elapsed().ok().filter(|age| *age > PART_AGE_MAX);
            return age.map(|_| (None, entry.path()));
        }
        // What else has this key is damaged, and goes first.
        Some((if other.starts_with(key) { None } else { written }, entry.path()))
    });
    let mut others: Vec<_> = others.collect();
    others.sort();
    let n_damaged = others.partition_point(|(written, _)| written.is_none());
    let n_many = (others.len() + 1).saturating_sub(N_FILES_MAX);
    for (_, path) in &others[..n_damaged.max(n_many)] {
        // Another process may have done so.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Makes the folder, for this user alone; fails if others can write to it.
fn make(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)?;
    match is_private(&folder.metadata()?) {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether a file or folder is this user's, and nobody else can write to it.
#[cfg(unix)]
fn is_private(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

/// As the user's own folder is, which it lies in.
#[cfg(not(unix))]
fn is_private(_: &Metadata) -> bool {
    true
}

/// Where compiled guests are kept; `None` if there is no place for them.
fn folder() -> Option<PathBuf> {
    let caches = match env::var_os("MOEWE_CACHE").filter(|path| !path.is_empty()) {
        Some(path) => std::path::absolute(path).ok()?,
        None => user_cache_folder()?.join("moewe"),
    };
    Some(caches.join("guests"))
}

/// The folder for caches: of the [XDG base directory
/// specification](https://specifications.freedesktop.org/basedir/latest/), or
/// the platform's own.
fn user_cache_folder() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join("Library/Caches")))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "(component (core module (func (export \"f\") (param i32))))";

    fn engine(config: &Config) -> Engine {
        Engine::new(config).unwrap()
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn load_guest(folder: Option<&Path>, config: &Config, guest: &str) {
        load_in(folder, &engine(config), config.clone(), &wat::parse_str(guest).unwrap()).unwrap();
    }

    fn found(folder: &Path, config: &Config, guest: &str) -> bool {
        let engine = engine(config);
        let key = key(&engine, &wat::parse_str(guest).unwrap());
        find(folder, &key, &engine).is_some()
    }

    #[test]
    fn what_was_compiled_is_found_until_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/guests");
        let config = Config::new();
        load_guest(Some(&folder), &config, GUEST);
        let [name] = &files(&folder)[..] else { panic!("{:?}", files(&folder)) };
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        let inode = || std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
        let first = inode();
        load_guest(Some(&folder), &config, GUEST);
        assert_eq!(inode(), first, "it was written once more");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&[][..], &whole[..whole.len() - 1], &flipped, b"something else"] {
            fs::write(&path, damaged).unwrap();
            assert!(!found(&folder, &config, GUEST), "{} bytes", damaged.len());
            load_guest(Some(&folder), &config, GUEST);
            assert!(fs::read(&path).unwrap() == whole && found(&folder, &config, GUEST));
        }
        // A damaged file of another name goes.
        let (before, _) = name.rsplit_once('-').unwrap();
        fs::rename(&path, folder.join(format!("{before}-0123456789abcdef{SUFFIX}"))).unwrap();
        load_guest(Some(&folder), &config, GUEST);
        assert_eq!(files(&folder), std::slice::from_ref(name));
    }

    #[test]
    fn other_guests_and_engines_have_files_of_their_own_but_not_many() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("guests");
        let (config, mut other) = (Config::new(), Config::new());
        other.epoch_interruption(true);
        load_guest(Some(&folder), &config, GUEST);
        load_guest(Some(&folder), &other, GUEST);
        load_guest(Some(&folder), &config, "(component)");
        assert_eq!(files(&folder).len(), 3);
        fs::write(folder.join("notes"), "not ours").unwrap();
        for i in 0..2 * N_FILES_MAX {
            let guest = format!("(component (core module (memory {i})))");
            load_guest(Some(&folder), &config, &guest);
            assert!(found(&folder, &config, &guest));
        }
        assert_eq!(files(&folder).len(), N_FILES_MAX + 1);
        assert!(files(&folder).contains(&"notes".to_owned()));
    }

    /// Whoever else can write there could have this process run anything.
    #[cfg(unix)]
    #[test]
    fn what_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("guests");
        let config = Config::new();
        load_guest(Some(&folder), &config, GUEST);
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let path = folder.join(&files(&folder)[0]);
        for bad in [0o666, 0o620, 0o602] {
            mode(&path, bad).unwrap();
            assert!(!found(&folder, &config, GUEST), "{bad:o}");
        }
        mode(&folder, 0o770).unwrap();
        fs::remove_file(&path).unwrap();
        load_guest(Some(&folder), &config, GUEST);
        assert!(files(&folder).is_empty());
    }

    #[test]
    fn without_a_folder_every_start_compiles() {
        let config = Config::new();
        load_guest(None, &config, GUEST);
        // A folder cannot be made in a file.
        let file = tempfile::NamedTempFile::new().unwrap();
        load_guest(Some(&file.path().join("guests")), &config, GUEST);
    }
}
