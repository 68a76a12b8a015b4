//! Feeds the moewe component over plain WASI.
