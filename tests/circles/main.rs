//! No file of a crate uses what another one has that uses it: modules have an order, and
//! whoever reads one knows which others to read first.

mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use serde_json::Value;

use source::Crate;

/// The circles of a crate's files, each line a file and what it uses of the others.
fn circles(root: &Path) -> Vec<Vec<String>> {
    let source = Crate::read(root);
    let folder = root.parent().expect("a file lies in a folder");
    let uses: DiGraphMap<&Path, ()> = source.uses().into_iter().collect();
    let name = |file: &Path| file.strip_prefix(folder).unwrap_or(file).display().to_string();
    let mut circles = Vec::new();
    for files in tarjan_scc(&uses).into_iter().filter(|files| files.len() > 1) {
        let line = |file: &&Path| {
            let mut used: Vec<String> =
                uses.neighbors(file).filter(|used| files.contains(used)).map(name).collect();
            used.sort();
            format!("{} uses {}", name(file), used.join(", "))
        };
        let mut lines: Vec<String> = files.iter().map(line).collect();
        lines.sort();
        circles.push(lines);
    }
    circles.sort();
    circles
}

/// The root files of all crates of the workspace.
fn roots() -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = cargo.current_dir(moewe_tests::root()).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("there are packages");
    let targets = packages.iter().flat_map(|package| package["targets"].as_array());
    let paths = targets.flatten().map(|target| target["src_path"].as_str());
    paths.map(|path| path.expect("a target has a file").into()).collect()
}

#[test]
fn no_crate_of_the_workspace_has_a_circle() {
    let roots = roots();
    assert!(roots.iter().any(|root| root.ends_with("host/src/lib.rs")), "{roots:?}");
    let mut text = String::new();
    for root in roots {
        for circle in circles(&root) {
            text += &format!("\n{}:\n    {}\n", root.display(), circle.join("\n    "));
        }
    }
    assert!(text.is_empty(), "files that use one another, around:\n{text}");
}

/// Writes a crate of these files, and looks for its circles.
fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    circles(&folder.path().join("lib.rs"))
}

#[test]
fn circles_are_found_whatever_way_they_are_written() {
    // What `a.rs` and `b.rs` may say to use each other.
    let ways: BTreeMap<&str, [&str; 2]> = [
        ("use", ["use crate::b::B; pub struct A(B);", "use crate::a::A; pub struct B(A);"]),
        ("super", ["pub struct A(super::b::B);", "pub struct B(super::a::A);"]),
        ("group", ["use super::{b::{self}}; pub fn f() { b::g() }", "use super::a::f as h;"]),
        ("root", ["pub struct A; fn f(b: crate::B) {}", "pub struct B; fn f(a: crate::A) {}"]),
        ("glob", ["use crate::b::*; pub struct A; fn f(b: B) {}", "pub struct B(crate::A);"]),
        ("macro", ["pub fn f() { println!(\"{}\", crate::b::B) }", "use crate::a as c;"]),
        ("inline", ["pub mod c { use super::super::b::B; }", "pub fn f() { crate::a::c::g() }"]),
    ]
    .into();
    for (way, [a, b]) in ways {
        let root = "mod a; mod b; pub use a::*; pub use b::B; fn f() {}";
        let found = circles_of(&[("lib.rs", root), ("a.rs", a), ("b.rs", b)]);
        assert_eq!(found, [["a.rs uses b.rs", "b.rs uses a.rs"]], "{way}");
    }
    let parent = "mod c; pub struct B; fn f() { c::g() }";
    let files = [("lib.rs", "mod b;"), ("b.rs", parent), ("b/c.rs", "use super::B;")];
    assert_eq!(circles_of(&files), [["b.rs uses b/c.rs", "b/c.rs uses b.rs"]]);
    let system = "#[cfg(unix)] #[path = \"b/c.rs\"] mod d; pub struct B;";
    let files = [("lib.rs", "mod b;"), ("b.rs", system), ("b/c.rs", "use super::B;")];
    assert!(circles_of(&files).is_empty());
    let used = system.to_owned() + "fn f() { d::g() }";
    let files = [("lib.rs", "mod b;"), ("b.rs", &used), ("b/c.rs", "use super::B;")];
    assert_eq!(circles_of(&files).len(), 1);
    // To hand on what a child has is no use; to use what was handed on is.
    let parent = "mod c; pub use c::C; pub struct B; fn f(c: C) {}";
    let files = [("lib.rs", "mod b;"), ("b.rs", parent), ("b/c.rs", "use super::B;")];
    assert_eq!(circles_of(&files).len(), 1);
}

#[test]
fn what_is_no_circle_is_not_found() {
    let root = "mod a; mod b; pub use a::A; pub use b::B;";
    let files = [
        ("lib.rs", root),
        // A name of another crate, a doc, a test, a visibility and a method are no use.
        (
            "a.rs",
            "use std::b::B; /// crate::b::B\npub(in crate::b) struct A; fn f() { b.b() }
                  #[cfg(test)] mod tests { use crate::b::B; } #[cfg(test)] fn g(b: crate::b::B) {}
                  impl A { #[cfg(test)] fn h() { crate::b::B; } }",
        ),
        ("b.rs", "pub struct B(crate::A);"),
    ];
    assert!(circles_of(&files).is_empty());
}
