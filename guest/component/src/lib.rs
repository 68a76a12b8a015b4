//! The moewe engine as a WebAssembly component: the world `engine` of the
//! package `moewe:inference`.

mod attached;
#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({ world: "engine", path: "../../wit" });
}
mod experts;
mod inference;
mod pages;
mod team;
mod weights;

struct Component;

bindings::export!(Component with_types_in bindings);
