//! The command and the host crate, end to end, on real files.

mod long_context;
mod mistakes;
mod packed;
mod reference;
mod sandboxes;
mod smollm2;
mod speculation;
