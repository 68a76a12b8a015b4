//! End-to-end tests of moewe.
