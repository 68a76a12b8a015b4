//! Sandboxes share one copy of the weights.

use std::process::Command;

use moewe::{Engine, Model, ModelOptions, SessionOptions};
use moewe_gguf::Gguf;
use moewe_tests::{program, smollm2};

/// The reader takes headers in pieces of this size.
const HEADER_PIECE: u64 = 64 << 10;

#[test]
fn only_the_header_is_read_and_the_weights_are_attached() {
    let Some(path) = smollm2() else { return };
    let header = Gguf::read(&path).unwrap().header;

    let engine = Engine::new().unwrap();
    let model = Model::open(&engine, &path, ModelOptions::default()).unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.feed(&[504, 3575, 282]).unwrap();
    let stats = model.stats();
    let tensors: u64 = header.tensors.values().map(|t| t.size).sum();
    assert_eq!(stats.bytes_attached, tensors);
    assert!(stats.bytes_read >= header.header_bytes[0]);
    assert!(
        stats.bytes_read < header.header_bytes[0] + HEADER_PIECE,
        "{} bytes read for a header of {}",
        stats.bytes_read,
        header.header_bytes[0]
    );
}

/// The example measures its own proportional set size (Pss), on a copy of the
/// file: pages that other tests map too would not be counted in full.
#[test]
fn a_second_sandbox_costs_less_than_40_mb() {
    let Some(path) = smollm2() else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("model.gguf");
    std::fs::copy(path, &copy).unwrap();
    let output = Command::new(program("tenants")).arg(&copy).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let costs: Vec<u64> = printed
        .lines()
        .filter_map(|line| line.strip_prefix("memory: ")?.strip_suffix(" kB")?.parse().ok())
        .collect();
    let [one, two] = costs[..] else { panic!("two numbers expected in {printed:?}") };
    println!("one sandbox: {one} kB, two: {two} kB");
    assert!(one > 90_000, "{one} kB do not even hold the weights");
    assert!(two - one < 40_000, "a second sandbox costs {} kB", two - one);
}
