//! Control groups: the kernel's limit of what a process and its files may take
//! of memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How one version of the kernel's interface names its files.
struct Version {
    root: &'static str,
    limit: &'static str,
    peak: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        peak: "memory.max_usage_in_bytes",
    },
    Version { root: "/sys/fs/cgroup", limit: "memory.max", peak: "memory.peak" },
];

/// Joins the group whose list of processes is `$0`, then becomes another
/// program.
const JOIN: &str = r#"echo $$ > "$0" && exec timeout "$@""#;

/// A group without processes, which ends with this value.
pub struct Group {
    folder: PathBuf,
    peak: PathBuf,
}

impl Group {
    /// A group that may have so many bytes of memory.
    pub fn new(limit: u64) -> Result<Self> {
        for Version { root, limit: file, peak } in VERSIONS {
            let root = Path::new(root);
            if !root.is_dir() {
                continue;
            }
            // Version 2 asks for that; the other one has no such file.
            let _ = write(&root.join("cgroup.subtree_control"), "+memory");
            let folder = root.join(format!("moewe-bench-{}", std::process::id()));
            fs::create_dir(&folder).context("no right to make control groups")?;
            let group = Self { peak: folder.join(peak), folder };
            let limited = write(&group.folder.join(file), &limit.to_string());
            limited.context("this kernel's control groups limit no memory")?;
            return Ok(group);
        }
        bail!("this system has no control groups");
    }

    /// `command` within the group, for so long at most.
    pub fn command(&self, command: &Command, time_max: Duration) -> Command {
        let mut within = Command::new("sh");
        within.args(["-c", JOIN]).arg(self.folder.join("cgroup.procs"));
        within.arg(time_max.as_secs().to_string());
        within.arg(command.get_program()).args(command.get_args());
        within
    }

    /// The most memory that the group had at any time, in bytes: that of its
    /// processes, and the pages of files that they had read.
    pub fn peak(&self) -> Result<u64> {
        Ok(fs::read_to_string(&self.peak)?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It can be removed as soon as its processes have ended. A group that
        // stays does no harm.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Writes to a file that must be there: the kernel's files are not made.
fn write(file: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_joins_before_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group { folder: folder.path().to_owned(), peak: folder.path().join("peak") };
        let mut echo = Command::new("echo");
        echo.args(["two words", "$0"]);
        let output = group.command(&echo, Duration::from_secs(5)).output().unwrap();
        assert_eq!(output.stdout, b"two words $0\n");
        let joined = fs::read_to_string(folder.path().join("cgroup.procs")).unwrap();
        assert!(joined.trim().parse::<u32>().is_ok(), "{joined}");
        fs::write(&group.peak, "4096\n").unwrap();
        assert_eq!(group.peak().unwrap(), 4096);
    }

    #[test]
    fn a_command_ends_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group { folder: folder.path().to_owned(), peak: folder.path().join("peak") };
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let output = group.command(&sleep, Duration::from_secs(1)).output().unwrap();
        assert_eq!(output.status.code(), Some(124));
    }
}
