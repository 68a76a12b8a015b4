//! Debian's packages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Makes sure that `packages` are installed, and installs them if it may.
///
/// # Errors
///
/// Says what to do where this is not Debian, or the user is not root.
pub fn require(packages: &[&str]) -> Result<()> {
    let line = packages.join(" ");
    if !Path::new("/etc/debian_version").exists() {
        bail!("on Debian, this would install {line}");
    }
    if installed(packages)? {
        return Ok(());
    }
    // The owner of a process owns its folder in /proc.
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !is_root {
        bail!("as root, `apt-get install --no-install-recommends {line}` brings what is needed");
    }
    eprintln!("Installing Debian's packages {line}");
    let apt_get = || {
        let mut apt_get = Command::new("apt-get");
        apt_get.env("DEBIAN_FRONTEND", "noninteractive");
        apt_get
    };
    process::run(apt_get().arg("update"))?;
    process::run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

fn installed(packages: &[&str]) -> Result<bool> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("`dpkg-query` does not start")?;
    let states = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && states.lines().all(|state| state == "installed"))
}
