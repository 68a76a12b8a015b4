//! Makes one component of a command, the engine that it uses, and what feeds that:
//! `moewe-compose PROVIDER ENGINE COMMAND OUT`, all of them files.
//!
//! A program of its own, because `cargo xtask run` does without it.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions, NodeId};

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<()> {
    let files: Vec<_> = std::env::args_os().skip(1).map(std::path::PathBuf::from).collect();
    let [provider, engine, command, out] = &files[..] else {
        bail!("usage: moewe-compose PROVIDER ENGINE COMMAND OUT");
    };
    let read = |path: &std::path::PathBuf| {
        fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let program = compose(read(provider)?, read(engine)?, read(command)?)
        .context("the components do not fit together")?;
    fs::write(out, program).with_context(|| format!("{} cannot be written", out.display()))
}

/// One component of three: `command` uses `engine`, which `provider` feeds.
/// What `command` exports and what nobody here provides is left to the
/// outside.
fn compose(provider: Vec<u8>, engine: Vec<u8>, command: Vec<u8>) -> Result<Vec<u8>> {
    let mut graph = CompositionGraph::new();
    let provider = instantiate(&mut graph, "moewe:provider", provider)?;
    let engine = instantiate(&mut graph, "moewe:engine", engine)?;
    let command = instantiate(&mut graph, "moewe:command", command)?;
    connect(&mut graph, provider, engine)?;
    connect(&mut graph, engine, command)?;
    for name in exports(&graph, command) {
        let export = graph.alias_instance_export(command, &name)?;
        graph.export(export, name)?;
    }
    Ok(graph.encode(EncodeOptions::default())?)
}

fn instantiate(graph: &mut CompositionGraph, name: &str, bytes: Vec<u8>) -> Result<NodeId> {
    let package = Package::from_bytes(name, None, bytes, graph.types_mut())?;
    let package = graph.register_package(package)?;
    Ok(graph.instantiate(package))
}

/// Gives all exports of the instance `from` to the instance `to`.
fn connect(graph: &mut CompositionGraph, from: NodeId, to: NodeId) -> Result<()> {
    for name in exports(graph, from) {
        let export = graph.alias_instance_export(from, &name)?;
        graph.set_instantiation_argument(to, &name, export)?;
    }
    Ok(())
}

fn exports(graph: &CompositionGraph, instance: NodeId) -> Vec<String> {
    let package = graph[instance].package().expect("an instance has a package");
    graph.types()[graph[package].ty()].exports.keys().cloned().collect()
}
