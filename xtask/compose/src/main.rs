//! Putting components together.

use anyhow::{Context, Result};
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions, NodeId};

/// One component of three: `command` uses `engine`, which `provider` feeds.
/// What `command` exports and what nobody here provides is left to the
/// outside.
pub fn chain(provider: Vec<u8>, engine: Vec<u8>, command: Vec<u8>) -> Result<Vec<u8>> {
    compose(provider, engine, command).context("the components do not fit together")
}

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
