//! A command line for the moewe component over plain WASI.
