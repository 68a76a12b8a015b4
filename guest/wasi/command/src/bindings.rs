//! What the engine exports.

wit_bindgen::generate!({ path: "../../../wit", world: "client" });
