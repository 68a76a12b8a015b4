//! What the end-to-end tests of moewe share.

pub mod tiny;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use moewe_fixtures::{golden, model, skip, smollm2};

/// The root of the project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project's root")
}

/// A program of the project, built beside the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("the path of the test program");
    let folder = tests.ancestors().nth(2).expect("tests are built into a folder of their own");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run `cargo xtask test`", path.display());
    path
}

/// Set in a process that runs a single test.
const ALONE: &str = "MOEWE_TEST_ALONE";

/// Whether this process runs a single test.
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Whether this process runs the test of this name alone; otherwise another one does so,
/// to its end. What a process has, other tests included, counts in its budgets.
pub fn runs_alone(test: &str) -> bool {
    if is_alone() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().expect("the path of the test program"));
    let output = command.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output();
    let output = output.expect("the test program starts");
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    print!("{out}");
    false
}

/// Runs the command `moewe` to its end.
pub fn moewe<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program("moewe"));
    command.args(args).output().expect("moewe starts")
}

/// Runs `moewe`, which must succeed; returns what it printed.
pub fn moewe_ok<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = moewe(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "moewe failed: {stderr}");
    String::from_utf8(output.stdout).expect("moewe prints UTF-8")
}

/// Reads a matrix of f32 with `columns` columns from an NPY file.
pub fn read_npy(path: &Path, columns: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = npyz::NpyFile::new(&bytes[..]).expect("an NPY file");
    assert_eq!(file.shape().last(), Some(&(columns as u64)));
    let data: Vec<f32> = file.into_vec().expect("numbers of type f32");
    data.chunks(columns).map(<[f32]>::to_vec).collect()
}

/// The index of the largest number.
pub fn argmax(x: &[f32]) -> usize {
    (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).expect("at least one number")
}

/// Mean Kullback-Leibler divergence of the predictions `got` from `want`, in
/// nats, both given as logits.
pub fn mean_kl(want: &[Vec<f32>], got: &[Vec<f32>]) -> f64 {
    let log_softmax = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
        x.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
    };
    let kl = |(want, got): (&Vec<f32>, &Vec<f32>)| -> f64 {
        let (p, q) = (log_softmax(want), log_softmax(got));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    assert_eq!(want.len(), got.len());
    want.iter().zip(got).map(kl).sum::<f64>() / want.len() as f64
}
