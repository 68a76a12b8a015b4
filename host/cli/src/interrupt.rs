//! Ctrl-C.

use std::io::{self, Write as _};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};
use moewe::CancelHandle;

/// The exit status of a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;
/// What is said then.
const STOPPING: &str = "stopping; Ctrl-C again ends it at once";
/// No answer is under way, so Ctrl-C ends the program.
const IDLE: u32 = u32::MAX;

/// Counts how often Ctrl-C was pressed during an answer. The first ends the
/// answer, or the reading of the prompt, within moments; the second at once, which
/// costs the session; the third ends the program.
pub struct Interrupt {
    n_pressed: Arc<AtomicU32>,
}

impl Interrupt {
    /// Takes over Ctrl-C; can be done once.
    pub fn install(session: CancelHandle) -> Result<Self> {
        let n_pressed = Arc::new(AtomicU32::new(IDLE));
        let counter = n_pressed.clone();
        ctrlc::set_handler(move || {
            let old = counter
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1)));
            match old {
                Ok(0) => {
                    session.stop();
                    // Nobody may be left to hear of it.
                    let _ = writeln!(io::stderr(), "{STOPPING}");
                }
                Ok(1) => session.cancel(),
                _ => process::exit(EXIT_CODE.into()),
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self { n_pressed })
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.n_pressed.store(0, Ordering::Relaxed);
    }

    /// An answer has ended; says whether Ctrl-C ended it.
    pub fn end(&self) -> bool {
        self.n_pressed.swap(IDLE, Ordering::Relaxed) > 0
    }

    /// Whether Ctrl-C was pressed during this answer.
    pub fn is_pressed(&self) -> bool {
        self.n_pressed.load(Ordering::Relaxed) > 0
    }
}

/// Takes over Ctrl-C for work that ends within moments when the flag is set, and
/// clears up behind itself. The second Ctrl-C ends the program at once. Can be done
/// once, in place of [`Interrupt::install`].
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let pressed = flag.clone();
    ctrlc::set_handler(move || {
        if pressed.swap(true, Ordering::Relaxed) {
            process::exit(EXIT_CODE.into());
        }
        // Nobody may be left to hear of it.
        let _ = writeln!(io::stderr(), "{STOPPING}");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
