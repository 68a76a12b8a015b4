//! The command and the host crate, end to end, on real files.

#[cfg(target_os = "linux")]
mod guests;
mod kv;
mod long_context;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod midst;
mod mistakes;
#[cfg(target_os = "linux")]
mod outputs;
mod packed;
mod reference;
mod sandboxes;
mod smollm2;
mod speculation;
#[cfg(target_os = "linux")]
mod templates;
mod wasi;
#[cfg(target_os = "linux")]
mod windows;
