//! wllama, llama.cpp for browsers, in Chromium without a window: a page that
//! loads the model, measures, and sends the result back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::process;
use crate::results::NotMeant;

pub const PACKAGE: &str = "@wllama/wllama@3.8.1";
const ARCHIVE: &str = "wllama-wllama-3.8.1.tgz";
const SHA256: &str = "bbe65fcc6d128d7853aed6d1699db7541e51a0363dc0135b8b68153acbf74670";
pub const CHROMIUM: &str = "chromium";
const PAGE: &str = include_str!("wllama.html");

/// Files that a browser cannot hold in one piece are not meant for it.
const MODEL_BYTES_MAX: u64 = 2 << 30;
/// No measurement takes longer.
const TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// How often Chromium is looked after.
const TICK: Duration = Duration::from_millis(200);

/// wllama's files.
pub struct Wllama {
    folder: PathBuf,
}

/// What the page sends.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// Tokens per second.
    Speed(f64),
    Error(String),
}

impl Wllama {
    /// Fetches wllama into `folder`, and looks for Chromium.
    pub fn find(folder: &Path) -> Result<Self> {
        process::output(Command::new(CHROMIUM).arg("--version")).context(
            "no Chromium: `apt-get install --no-install-recommends chromium` brings it on Debian",
        )?;
        let package = folder.join("package/esm");
        if !package.exists() {
            fs::create_dir_all(folder)?;
            process::output(Command::new("npm").args(["pack", PACKAGE]).current_dir(folder))
                .context("wllama comes with `npm`")?;
            let archive = folder.join(ARCHIVE);
            let sha256 = moewe_models::sha256(&archive)?;
            ensure!(sha256 == SHA256, "{ARCHIVE} has the SHA-256 {sha256}, not {SHA256}");
            process::output(Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(folder))?;
        }
        Ok(Self { folder: package })
    }

    /// Tokens per second of prefill (`n_gen` 0) or decode (`n_prompt` 0).
    pub fn measure(&self, model: &Path, threads: u32, n_prompt: u32, n_gen: u32) -> Result<f64> {
        if model.metadata()?.len() > MODEL_BYTES_MAX {
            bail!(NotMeant);
        }
        let server = Server::http("127.0.0.1:0").map_err(|e| anyhow!("no server: {e}"))?;
        let address = server.server_addr();
        let url = format!("http://{address}/?threads={threads}&n_prompt={n_prompt}&n_gen={n_gen}");
        let profile = tempfile::tempdir()?;
        let mut chromium = Chromium::start(&url, profile.path())?;
        let start = Instant::now();
        loop {
            if let Some(status) = chromium.0.try_wait()? {
                bail!("Chromium ended ({status}) before the measurement did");
            }
            ensure!(start.elapsed() < TIME_MAX, "no result after {TIME_MAX:?}");
            let Some(mut request) = server.recv_timeout(TICK)? else { continue };
            if *request.method() != Method::Post {
                self.answer(request, model)?;
                continue;
            }
            let mut text = String::new();
            request.as_reader().read_to_string(&mut text)?;
            request.respond(Response::empty(204))?;
            return speed(&text);
        }
    }

    fn answer(&self, request: Request, model: &Path) -> Result<()> {
        let path = request.url().split('?').next().unwrap_or_default();
        let (file, content_type) = match path {
            "/" => {
                return Ok(request.respond(isolated(Response::from_string(PAGE), "text/html"))?);
            }
            "/wllama.js" => (self.folder.join("index.js"), "text/javascript"),
            "/wllama.wasm" => (self.folder.join("wasm/wllama.wasm"), "application/wasm"),
            "/model.gguf" => (model.to_owned(), "application/octet-stream"),
            _ => return Ok(request.respond(Response::empty(404))?),
        };
        let file = File::open(&file).with_context(|| format!("{}", file.display()))?;
        // The browser may have hung up: then it will say why, or end.
        let _ = request.respond(isolated(Response::from_file(file), content_type));
        Ok(())
    }
}

/// Adds the headers that a page needs for threads.
fn isolated<R: std::io::Read>(response: Response<R>, content_type: &str) -> Response<R> {
    let headers = [
        ("Content-Type", content_type),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Embedder-Policy", "require-corp"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    ];
    headers.into_iter().fold(response, |response, (name, value)| {
        response.with_header(Header::from_bytes(name, value).expect("a sound header"))
    })
}

fn speed(text: &str) -> Result<f64> {
    match serde_json::from_str(text).context("the page sent something else than expected")? {
        Outcome::Speed(speed) => Ok(speed),
        Outcome::Error(error) => bail!("wllama: {}", process::last_line(&error)),
    }
}

/// A browser that ends with this value.
struct Chromium(Child);

impl Chromium {
    fn start(url: &str, profile: &Path) -> Result<Self> {
        let mut command = Command::new(CHROMIUM);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
        command.args(["--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-sync"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg(url);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("Chromium does not start")?))
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Its helpers end with it. It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_sends_is_understood() {
        assert_eq!(speed(r#"{"speed": 28.5}"#).unwrap(), 28.5);
        let error = speed(r#"{"error": "Error: first\n  no memory\n"}"#).unwrap_err().to_string();
        assert_eq!(error, "wllama: no memory");
        assert!(speed("{}").is_err());
    }
}
