//! Feeds the moewe component over plain WASI.
//!
//! A component that exports `moewe:inference/weights`,
//! `moewe:inference/experts` and `moewe:inference/team`, and imports `wasi:filesystem` only, so that any
//! runtime with WASI 0.2 can run the engine. It copies (`read`); it cannot map
//! files into another component (`attach` answers `unsupported`), and its team
//! has one member.
//!
//! # Which files a guest may open
//!
//! Those in the folders that the runtime opened for it (preopens), and below
//! them:
//! - A plain file name, `model.gguf`, is looked for in every preopened folder,
//!   in the runtime's order; the first that has it wins.
//! - A path, `/models/model.gguf` or `models/model.gguf`, is looked for in the
//!   preopened folders whose guest path it begins with. A leading `/` or `./`
//!   makes no difference. The files of a split model lie in one folder, so the
//!   path of the first with another number finds the others.

mod experts;
mod folders;
mod source;
mod team;

mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "provider" });
}

struct Provider;

bindings::export!(Provider with_types_in bindings);
