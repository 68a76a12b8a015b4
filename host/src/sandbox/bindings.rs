//! What `bindgen!` makes of the WIT package; nothing of it is public.

#![allow(missing_docs)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "moewe:inference/engine",
    with: {
        "moewe:inference/weights.source": crate::sandbox::handles::WeightFileHandle,
        "moewe:inference/experts.store": crate::sandbox::handles::StoreHandle,
    },
    imports: { default: trappable },
});
