//! The disk as its callers use it.
#![cfg(target_os = "linux")]

mod common;
mod faults;
mod files;
mod ring;
