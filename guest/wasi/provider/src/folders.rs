//! The folders that the runtime opened for us, and finding a file in them.

use std::sync::LazyLock;

use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorType, ErrorCode as WasiCode, OpenFlags, PathFlags,
};

use crate::bindings::exports::moewe::inference::weights::{Error, ErrorCode};

/// Asked for once and kept: some runtimes close a preopened folder with the
/// last handle to it.
static FOLDERS: LazyLock<Vec<(Descriptor, String)>> = LazyLock::new(get_directories);

/// Opens the file `name` for reading.
pub fn open(name: &str) -> Result<Descriptor, Error> {
    let mut refused = None;
    for (folder, folder_path) in FOLDERS.iter() {
        let Some(path) = path_inside(folder_path, name) else { continue };
        match open_file(folder, &path) {
            Ok(file) => return Ok(file),
            Err(WasiCode::NoEntry | WasiCode::NotDirectory) => {}
            Err(code) => _ = refused.get_or_insert((code, folder_path)),
        }
    }
    Err(match refused {
        Some((code, folder)) => {
            let message = format!("{name} (in the folder {folder}): {}", reason(code));
            Error { code: error_code(code), message }
        }
        None => Error { code: ErrorCode::NotFound, message: not_found(name) },
    })
}

/// The kind of error that `code` is to the engine.
pub fn error_code(code: WasiCode) -> ErrorCode {
    match code {
        WasiCode::NoEntry | WasiCode::NotDirectory | WasiCode::IsDirectory => ErrorCode::NotFound,
        WasiCode::Access | WasiCode::NotPermitted => ErrorCode::NotPermitted,
        _ => ErrorCode::Io,
    }
}

/// What `code` means for a file.
pub fn reason(code: WasiCode) -> String {
    match code {
        WasiCode::IsDirectory => "it is no regular file".to_owned(),
        WasiCode::Access | WasiCode::NotPermitted => {
            "the runtime does not permit reading it".to_owned()
        }
        _ => format!("the runtime reports the error `{}`", code.name()),
    }
}

fn open_file(folder: &Descriptor, path: &str) -> Result<Descriptor, WasiCode> {
    let file = folder.open_at(
        PathFlags::SYMLINK_FOLLOW,
        path,
        OpenFlags::empty(),
        DescriptorFlags::READ,
    )?;
    match file.get_type()? {
        DescriptorType::RegularFile => Ok(file),
        _ => Err(WasiCode::IsDirectory),
    }
}

fn not_found(name: &str) -> String {
    let searched: Vec<&str> = FOLDERS.iter().map(|(_, path)| path.as_str()).collect();
    if searched.is_empty() {
        format!(
            "{name}: not found, because the runtime opened no folder; \
             give it the model's folder (wasmtime: `--dir FOLDER`)"
        )
    } else {
        format!(
            "{name}: not found in the folders that the runtime opened ({}); \
             check the name, or give the runtime the model's folder (wasmtime: `--dir FOLDER`)",
            searched.join(", ")
        )
    }
}

/// Where to look for `name` in a folder whose guest path is `folder`; nothing
/// if the name leads elsewhere.
fn path_inside(folder: &str, name: &str) -> Option<String> {
    if !name.contains('/') {
        return (!name.is_empty()).then(|| name.to_owned());
    }
    let mut rest = parts(name);
    if !parts(folder).all(|part| rest.next() == Some(part)) {
        return None;
    }
    let rest: Vec<&str> = rest.collect();
    (!rest.is_empty()).then(|| rest.join("/"))
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

#[cfg(test)]
mod tests {
    use super::path_inside;

    #[test]
    fn plain_names_are_looked_for_in_every_folder() {
        for folder in ["/models", "models", ".", "/", ""] {
            assert_eq!(path_inside(folder, "a.gguf").as_deref(), Some("a.gguf"), "{folder}");
        }
        assert_eq!(path_inside("/models", ""), None);
    }

    #[test]
    fn paths_are_looked_for_below_their_folder() {
        let inside = |folder, name| path_inside(folder, name);
        for folder in ["/models", "models", "./models/"] {
            for name in ["/models/a.gguf", "models/a.gguf", "./models//a.gguf"] {
                assert_eq!(inside(folder, name).as_deref(), Some("a.gguf"), "{folder} {name}");
            }
        }
        assert_eq!(inside("/models", "/models/moe/a.gguf").as_deref(), Some("moe/a.gguf"));
        assert_eq!(inside("/", "/models/a.gguf").as_deref(), Some("models/a.gguf"));
        assert_eq!(inside(".", "models/a.gguf").as_deref(), Some("models/a.gguf"));
    }

    #[test]
    fn paths_elsewhere_are_not_looked_for() {
        assert_eq!(path_inside("/models", "/other/a.gguf"), None);
        assert_eq!(path_inside("/models", "/models2/a.gguf"), None);
        assert_eq!(path_inside("/models/moe", "/models/a.gguf"), None);
        assert_eq!(path_inside("/models", "/models/"), None);
    }
}
