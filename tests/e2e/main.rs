//! The command and the host crate, end to end, on real files.

mod mistakes;
mod packed;
mod reference;
mod sandboxes;
mod smollm2;
