//! Builds, runs and tests moewe.

fn main() {}
