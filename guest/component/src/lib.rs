//! The moewe engine as a WebAssembly component.
