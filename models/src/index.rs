//! Finding a file in a Python package index, by the
//! [Simple Repository API](https://packaging.python.org/en/latest/specifications/simple-repository-api/).

use std::path::PathBuf;

use configparser::ini::Ini;
use directories::BaseDirs;
use html5gum::{Token, Tokenizer};
use ureq::Agent;

use crate::{Error, Result, http};

const PYPI: &str = "https://pypi.org/simple";

/// Every index serves HTML; not every one serves JSON too.
const ACCEPT: &str = "application/vnd.pypi.simple.v1+html, text/html;q=0.1";

/// The index that pip would use, without trailing slashes.
pub fn configured() -> Result<String> {
    index_url(|name| std::env::var(name).ok(), pip_config_files())
}

/// pip's configuration files, the least important first.
fn pip_config_files() -> Vec<PathBuf> {
    if let Some(file) = std::env::var_os("PIP_CONFIG_FILE") {
        return vec![file.into()];
    }
    let mut files: Vec<PathBuf> = vec!["/etc/xdg/pip/pip.conf".into(), "/etc/pip.conf".into()];
    if let Some(dirs) = BaseDirs::new() {
        let (folder, name) = if cfg!(windows) { ("pip", "pip.ini") } else { (".pip", "pip.conf") };
        files.push(dirs.home_dir().join(folder).join(name));
        files.push(dirs.home_dir().join(".config/pip").join(name));
        files.push(dirs.config_dir().join("pip").join(name));
    }
    files
}

fn index_url(env: impl Fn(&str) -> Option<String>, files: Vec<PathBuf>) -> Result<String> {
    let mut url = env("PIP_INDEX_URL").filter(|url| !url.trim().is_empty());
    for path in files.into_iter().rev() {
        if url.is_some() {
            break;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let mut ini = Ini::new();
        ini.set_multiline(true);
        ini.set_inline_comment_symbols(Some(&[]));
        ini.read(text).map_err(|reason| Error::PipConfig { path, reason })?;
        url = ["install", "global"].iter().find_map(|section| {
            ini.get(section, "index-url").or_else(|| ini.get(section, "index_url"))
        });
    }
    let url = url.unwrap_or_else(|| PYPI.into());
    Ok(url.trim().trim_end_matches('/').into())
}

/// A file's address, by the project's page in the index.
pub fn file_url(agent: &Agent, index: &str, project: &str, file: &str) -> Result<String> {
    let url = format!("{index}/{project}/");
    let missing = || Error::NotInIndex { index: http::shown(&url), file: file.to_owned() };
    let (page, at) = http::page(agent, &url, ACCEPT).map_err(|error| match error {
        Error::NotFound { .. } => missing(),
        error => error,
    })?;
    let href = href(&page, file).ok_or_else(missing)?;
    http::absolute(&at, &href)
        .ok_or_else(|| Error::Server { url: http::shown(&url), what: format!("the link `{href}`") })
}

/// Where the link with the text `name` leads to.
fn href(page: &str, name: &str) -> Option<String> {
    let mut href = None;
    let mut text = Vec::new();
    for Ok(token) in Tokenizer::new(page) {
        match token {
            Token::StartTag(tag) if *tag.name == b"a" => {
                href = tag.attributes.get(b"href".as_slice()).map(|href| href.value.to_vec());
                text.clear();
            }
            Token::String(piece) => text.extend_from_slice(&piece),
            Token::EndTag(tag) if *tag.name == b"a" => {
                if text.trim_ascii() == name.as_bytes()
                    && let Some(href) = href.take()
                {
                    return String::from_utf8(href).ok();
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_beats_files_and_later_files_beat_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let system = file("system", "[global]\nindex-url = https://system/simple/\n");
        let user = file(
            "user",
            "[global]\nIndex_Url: https://global/simple\ntrusted-host =\n  a\n  b\n\
             [install]\nindex-url = https://user:pw;1@install/simple\n",
        );
        let unrelated = file("unrelated", "[global]\ntimeout = 60\n");
        let absent = dir.path().join("absent");

        let none = |_: &str| None;
        let files = vec![system.clone(), user, unrelated, absent.clone()];
        assert_eq!(index_url(none, files.clone()).unwrap(), "https://user:pw;1@install/simple");
        assert_eq!(index_url(none, vec![system]).unwrap(), "https://system/simple");
        assert_eq!(index_url(none, vec![absent]).unwrap(), PYPI);
        let env = |name: &str| (name == "PIP_INDEX_URL").then(|| "https://env/simple/".into());
        assert_eq!(index_url(env, files).unwrap(), "https://env/simple");
    }

    #[test]
    fn a_broken_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pip.conf");
        std::fs::write(&path, "[global\nindex-url = x\n").unwrap();
        let error = index_url(|_| None, vec![path.clone()]).unwrap_err().to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn links_are_found_by_their_text_and_made_absolute() {
        let page = "<a href='../../packages/ab/x-1-py3-none-any.whl#sha256=00'>
            x-1-py3-none-any.whl</a><br>
            <A data-requires-python=\"&gt;=3.9\" HREF='https://h/x-2.whl?a=1&amp;b=2'>x-2.whl</A>";
        let found = |name| {
            href(page, name).and_then(|href| http::absolute("http://me:pw@i/simple/x/", &href))
        };
        assert_eq!(
            found("x-1-py3-none-any.whl").unwrap(),
            "http://me:pw@i/packages/ab/x-1-py3-none-any.whl"
        );
        assert_eq!(found("x-2.whl").unwrap(), "https://h/x-2.whl?a=1&b=2");
        assert_eq!(found("x-3.whl"), None);
    }
}
