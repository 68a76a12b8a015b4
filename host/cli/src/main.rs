//! The moewe command.

fn main() {}
