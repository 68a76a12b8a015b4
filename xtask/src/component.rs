//! Encoding and checking components.

use anyhow::{Context, Result, bail};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wit_component::{ComponentEncoder, LibraryInfo};

use crate::toolchain::Target;
use crate::two_memories;

/// What a runtime must support to run the guest.
const FEATURES: WasmFeatures =
    WasmFeatures::WASM2.union(WasmFeatures::RELAXED_SIMD).union(WasmFeatures::COMPONENT_MODEL);

/// What it must support besides for an engine with 64-bit addresses, whose face has a
/// memory of its own.
const WIDE_FEATURES: WasmFeatures = WasmFeatures::MEMORY64.union(WasmFeatures::MULTI_MEMORY);

/// Makes a component of a core module, whose custom sections say which world it was
/// built for.
pub fn encode(module: &[u8]) -> Result<Vec<u8>> {
    let component = ComponentEncoder::default().module(module)?.validate(true).encode();
    component.context("the module cannot be made a component")
}

/// The same of a module with 32-bit addresses, its face, and one with 64-bit addresses,
/// the engine.
pub fn encode_wide(face: &[u8], wide: &[u8]) -> Result<Vec<u8>> {
    let arguments = LibraryInfo { arguments: Vec::new() };
    let component = (ComponentEncoder::default().module(face)?)
        .library("wide", &two_memories::add(wide)?, arguments)?
        .validate(true)
        .encode();
    component.context("the modules cannot be made a component")
}

/// Checks that `component` is valid where its engine is for `target`, that the names of all its imports begin
/// with `imports`, and that it has one export, whose name begins with
/// `export`.
pub fn check(component: &[u8], target: Target, imports: &str, export: &str) -> Result<()> {
    let features = match target {
        Target::Wasm32 => FEATURES,
        Target::Wasm64 => FEATURES.union(WIDE_FEATURES),
    };
    Validator::new_with_features(features).validate_all(component).context("is not valid")?;
    let names = Names::of(component)?;
    for name in names.imports {
        if !name.starts_with(imports) {
            bail!("imports `{name}`, and should import only `{imports}*`");
        }
    }
    match &names.exports[..] {
        [name] if name.starts_with(export) => Ok(()),
        names => bail!("exports {names:?}, and should export only `{export}*`"),
    }
}

struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Names {
    /// The names at the outside of `component`.
    fn of(component: &[u8]) -> Result<Self> {
        let mut names = Self { imports: Vec::new(), exports: Vec::new() };
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(component) {
            match payload? {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    bail!("is a core module, not a component")
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        names.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        names.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(names)
    }
}
