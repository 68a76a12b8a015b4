//! What a target is, and what it says of an input.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Something to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub fuzz: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that inputs are likely to be made of.
    pub words: &'static [&'static str],
    /// The longest input.
    pub len_max: usize,
}

thread_local! {
    pub(crate) static OUTCOME: Cell<u64> = const { Cell::new(0) };
}

/// Notes what an input led to, so that inputs which lead elsewhere are kept. Order,
/// repetitions and numbers make no difference.
pub(crate) fn reached(what: &str) {
    let mut hasher = DefaultHasher::new();
    what.bytes().filter(|byte| !byte.is_ascii_digit()).for_each(|byte| byte.hash(&mut hasher));
    OUTCOME.set(OUTCOME.get() | 1 << (hasher.finish() % 64));
}

/// Checks what a user would be told.
///
/// # Panics
///
/// If it is not one line of limited length.
pub(crate) fn check_message(error: &impl std::error::Error) {
    let message = error.to_string();
    assert!((1..1100).contains(&message.chars().count()), "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
    // What is quoted differs from input to input.
    let words = message.split([':', '`', '"']).next().unwrap_or_default();
    reached(&words.chars().take(60).collect::<String>());
}
