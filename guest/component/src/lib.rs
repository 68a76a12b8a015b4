//! The moewe engine as a WebAssembly component: the world `engine` of the
//! package `moewe:inference`.
//!
//! # In another component
//!
//! A component that imports `moewe:inference/inference`, as the world `client` does, is
//! composed with this one. What is left to import are `weights`, `experts` and `team`:
//! a host provides them, or `guest/wasi/provider`, as a third component.
//!
//! ```sh
//! wac plug app.wasm --plug moewe.wasm --output app-with-engine.wasm
//! ```
//!
//! A crate that is built with `cargo component build` names the package in its
//! `Cargo.toml`, beside the path and the world of its own WIT:
//!
//! ```toml
//! [package.metadata.component.target.dependencies]
//! "moewe:inference" = { path = "path/to/moewe/wit" }
//! ```
//!
//! `cargo component` wants Rust's target wasm32-wasip1. Where there is none, build for
//! wasm32-unknown-unknown with `wit-bindgen`, as `guest/wasi/command` is.
//!
//! # Two guests
//!
//! With its feature `engine`, which is the default, the crate is the whole guest, and has
//! 32-bit addresses. Without, it is the face of a guest whose engine is a module with
//! 64-bit addresses (`guest/wide`): it speaks WIT to the outside, and passes on messages.

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({ world: "engine", path: "../../wit" });
}
#[cfg(feature = "engine")]
mod engine;
#[cfg(not(feature = "engine"))]
#[path = "face.rs"]
mod engine;
mod host;
mod inference;

struct Component;

bindings::export!(Component with_types_in bindings);
