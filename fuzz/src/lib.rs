//! Fuzz targets for everything of moewe that reads what strangers wrote.
//!
//! A target is a function of some bytes that panics if a promise is broken. Each has
//! an oracle: it knows what must hold of the answer, beyond that there is one. Bytes
//! are taken either as they are, or as a description of something that is nearly
//! sound, so that more than the first check is reached.
//!
//! `cargo xtask fuzz` runs the targets on a stable toolchain, over seeds, what lies
//! in `fuzz/corpus/TARGET`, and mutations of these. With a nightly one,
//! `cargo +nightly fuzz run --features libfuzzer TARGET` runs them under libFuzzer.
//! A new target is a module here, a line in [`TARGETS`], a file in `fuzz_targets`
//! and an entry in `Cargo.toml`.

pub mod chat;
pub mod driver;
pub mod gguf;
mod made_up;
pub mod memory;
mod mutate;
pub mod packed;
pub mod sampler;
mod target;
pub mod tokenizer;
pub mod trace;

pub use target::Target;

/// All targets.
pub const TARGETS: [Target; 6] =
    [chat::TARGET, gguf::TARGET, packed::TARGET, sampler::TARGET, tokenizer::TARGET, trace::TARGET];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Options, run};

    #[global_allocator]
    static ALLOCATOR: memory::Counting = memory::Counting;

    /// A few inputs for each target, as they come.
    fn survives(target: &Target) {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { n_inputs: Some(300), ..Options::new(folder.path()) };
        let report = run(target, &options).unwrap();
        assert!(report.finds.is_empty(), "{report}");
        assert!(report.n_inputs >= 300, "{report}");
        assert!(report.n_outcomes >= 5, "the target reaches nothing: {report}");
    }

    #[test]
    fn chat() {
        survives(&chat::TARGET);
    }

    #[test]
    fn gguf() {
        survives(&gguf::TARGET);
    }

    #[test]
    fn packed() {
        survives(&packed::TARGET);
    }

    #[test]
    fn sampler() {
        survives(&sampler::TARGET);
    }

    #[test]
    fn tokenizer() {
        survives(&tokenizer::TARGET);
    }

    #[test]
    fn trace() {
        survives(&trace::TARGET);
    }
}
