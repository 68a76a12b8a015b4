//! Files and pages by HTTP.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use fluent_uri::{Uri, UriRef};
use moewe_output::open_own;
use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, ResponseExt};

use crate::recipe::is_sha256;
use crate::{Error, Result};

/// A server that says nothing for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// An index page lists all files of one project.
const PAGE_BYTES_MAX: u64 = 32 << 20;

/// So often a server may send to another address, as browsers have it.
const N_REDIRECTS_MAX: usize = 20;

/// A client that knows the proxies in the environment, and trusts the
/// certificate authorities that the operating system trusts.
pub fn agent() -> Agent {
    Agent::config_builder()
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .http_status_as_error(false)
        .timeout_connect(Some(SILENCE_MAX))
        .timeout_recv_response(Some(SILENCE_MAX))
        .timeout_per_read(Some(SILENCE_MAX))
        .user_agent(concat!("moewe/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// A page, and the address that it came from in the end.
pub fn page(agent: &Agent, url: &str, accept: &str) -> Result<(String, String)> {
    let mut response =
        agent.get(url).header(header::ACCEPT, accept).call().map_err(network(url))?;
    if response.status() != StatusCode::OK {
        return Err(refusal(url, response.status()));
    }
    let at = response.get_uri().to_string();
    let text = response.body_mut().with_config().limit(PAGE_BYTES_MAX).read_to_string();
    Ok((text.map_err(network(url))?, at))
}

/// What a server says of a file.
#[derive(Debug, Default)]
pub struct Said {
    pub size_bytes: Option<u64>,
    pub sha256: Option<String>,
}

/// Asks what is at `url`, without fetching it.
///
/// Hugging Face says both with the redirect to where the bytes are, and nobody behind it
/// knows the hash. So redirects are followed until the size is known.
pub fn ask(agent: &Agent, url: &str) -> Result<Said> {
    let mut said = Said::default();
    let mut at = url.to_owned();
    for _ in 0..N_REDIRECTS_MAX {
        let request = agent.head(&at).config().max_redirects(0).build();
        let response = request.call().map_err(network(&at))?;
        let (status, headers) = (response.status(), response.headers());
        if !status.is_success() && !status.is_redirection() {
            return Err(refusal(&at, status));
        }
        let number = |name| text_of(headers, name)?.parse().ok();
        said.size_bytes = number("x-linked-size");
        said.sha256 = said.sha256.or_else(|| {
            let etag = text_of(headers, "x-linked-etag")?;
            let tag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
            is_sha256(&tag).then_some(tag)
        });
        if status.is_success() && said.size_bytes.is_none() {
            said.size_bytes = number("content-length");
        }
        if status.is_success() || said.size_bytes.is_some() {
            return Ok(said);
        }
        let location = text_of(headers, "location").and_then(|href| absolute(&at, href));
        at = location.ok_or_else(|| Error::Server {
            url: shown(&at),
            what: format!("HTTP {status} without an address"),
        })?;
    }
    Err(Error::Server { url: shown(url), what: "with too many redirects".into() })
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The absolute address of a link on the page at `base`, without its fragment.
pub fn absolute(base: &str, href: &str) -> Option<String> {
    let base = Uri::parse(base).ok()?;
    let mut uri = UriRef::parse(href).ok()?.resolve_against(&base).ok()?;
    uri.set_fragment(None);
    Some(uri.into_string())
}

/// Fetches `url` of `size_bytes` into `part`, resuming after the bytes that are
/// there, and calls `at` with the number of bytes that are there now.
///
/// When it fails on the way, the bytes that came stay in `part`.
pub fn fetch(
    agent: &Agent,
    url: &str,
    size_bytes: u64,
    part: &Path,
    at: &mut dyn FnMut(u64),
) -> Result<()> {
    let write_error = || Error::io("write", part);
    let mut file = open_own(part).map_err(write_error())?;
    let mut bytes_done = file.seek(SeekFrom::End(0)).map_err(write_error())?;
    if bytes_done > size_bytes {
        clear(&mut file).map_err(write_error())?;
        bytes_done = 0;
    }
    at(bytes_done);
    if bytes_done == size_bytes {
        return Ok(());
    }

    let mut request = agent.get(url);
    if bytes_done > 0 {
        request = request.header(header::RANGE, format!("bytes={bytes_done}-"));
    }
    let response = request.call().map_err(network(url))?;
    let goes_on = response.headers().get(header::CONTENT_RANGE).is_some_and(|range| {
        range.as_bytes().starts_with(format!("bytes {bytes_done}-").as_bytes())
    });
    match response.status() {
        StatusCode::PARTIAL_CONTENT if goes_on => {}
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if bytes_done > 0 => {
            // The server cannot go on from there. With nothing to resume, this
            // does not come twice.
            clear(&mut file).map_err(write_error())?;
            return fetch(agent, url, size_bytes, part, at);
        }
        StatusCode::OK if bytes_done > 0 => {
            clear(&mut file).map_err(write_error())?;
            bytes_done = 0;
            at(0);
        }
        StatusCode::OK => {}
        status => return Err(refusal(url, status)),
    }

    let bytes_left = size_bytes - bytes_done;
    if let Some(length) = response.body().content_length()
        && length != bytes_left
    {
        let what = format!("with {length} bytes where {bytes_left} should come");
        return Err(Error::Server { url: shown(url), what });
    }
    let mut body = response.into_body().into_reader().take(bytes_left);
    let bytes_before = bytes_done;
    let outcome = pump(&mut body, &mut |bytes| file.write_all(bytes), &mut |bytes| {
        bytes_done = bytes_before + bytes;
        at(bytes_done);
    });
    let reason = match outcome {
        Ok(()) if bytes_done == size_bytes => return Ok(()),
        Ok(()) => "the server closed the connection".into(),
        Err(PumpError::Read(error)) => error.to_string(),
        Err(PumpError::Write(error)) => return Err(write_error()(error)),
    };
    Err(Error::Interrupted { url: shown(url), bytes_done, bytes_total: size_bytes, reason })
}

/// Begins a file anew.
pub fn clear(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()
}

/// Which side of [`pump`] failed.
#[derive(Debug)]
pub enum PumpError {
    /// Nothing more came.
    Read(io::Error),
    /// What came could not be put.
    Write(io::Error),
}

/// Reads to the end, gives each piece to `sink`, and calls `at` with the number
/// of bytes so far.
pub fn pump(
    from: &mut dyn Read,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    at: &mut dyn FnMut(u64),
) -> Result<(), PumpError> {
    let mut buffer = vec![0; 128 << 10];
    let mut bytes_done = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                sink(&buffer[..n]).map_err(PumpError::Write)?;
                bytes_done += n as u64;
                at(bytes_done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PumpError::Read(error)),
        }
    }
}

/// A URL without credentials, query and fragment, as it may be shown.
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

fn network(url: &str) -> impl FnOnce(ureq::Error) -> Error {
    move |error| Error::Network { url: shown(url), reason: error.to_string() }
}

fn refusal(url: &str, status: StatusCode) -> Error {
    let url = shown(url);
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Error::NotFound { url, status: status.as_u16() }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::Refused { url, status: status.as_u16() }
        }
        _ => Error::Server { url, what: format!("HTTP {status}") },
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(shown("https://me:secret@a.b:8/c?token=1#d"), "https://a.b:8/c");
        assert_eq!(shown("https://me:p@ss@a.b"), "https://a.b");
    }
}
