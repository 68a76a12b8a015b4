//! A module with 64-bit addresses that also sees the memory of its component's main
//! module, with 32-bit ones, and copies between both.
//!
//! Compilers know one memory only. So the other is added to what they have made, as the
//! first one, because imports come first, and two functions with it:
//!
//! - `copy_in(to: i64, from: i32, length: i32)` from the main module's memory to this one's;
//! - `copy_out(to: i32, from: i64, length: i32)` back.

use std::convert::Infallible;

use anyhow::{Context, Result};
use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    CodeSection, EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection,
    MemoryType, Module, TypeSection, ValType,
};

/// The main module's memory.
const MAIN: u32 = 0;
/// The module's own.
const OWN: u32 = 1;

/// Both functions: name, parameters, to and from which memory they copy.
const COPIES: [(&str, [ValType; 3], u32, u32); 2] = [
    ("copy_in", [ValType::I64, ValType::I32, ValType::I32], OWN, MAIN),
    ("copy_out", [ValType::I32, ValType::I64, ValType::I32], MAIN, OWN),
];

/// Adds the main module's memory to a module.
pub fn add(module: &[u8]) -> Result<Vec<u8>> {
    let mut added = Module::new();
    Adder::default()
        .parse_core_module(&mut added, wasmparser::Parser::new(0), module)
        .context("the module cannot be given a second memory")?;
    Ok(added.finish())
}

/// How many types and functions the module has of its own.
#[derive(Default)]
struct Adder {
    n_types: u32,
    n_functions: u32,
}

type Reencoded = Result<(), Error<Infallible>>;

impl Reencode for Adder {
    type Error = Infallible;

    fn memory_index(&mut self, memory: u32) -> Result<u32, Error<Infallible>> {
        Ok(memory + OWN)
    }

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_type_section(self, types, section)?;
        self.n_types = types.len();
        for (_, parameters, ..) in COPIES {
            types.ty().function(parameters, []);
        }
        Ok(())
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: wasmparser::ImportSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_import_section(self, imports, section.clone())?;
        for import in section.into_imports() {
            self.n_functions += u32::from(matches!(import?.ty, wasmparser::TypeRef::Func(_)));
        }
        let memory = MemoryType {
            minimum: 0,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        };
        imports.import("env", "memory", EntityType::Memory(memory));
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_function_section(self, functions, section)?;
        self.n_functions += functions.len();
        for (i, _) in (self.n_types..).zip(COPIES) {
            functions.function(i);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_export_section(self, exports, section)?;
        for (i, (name, ..)) in (self.n_functions..).zip(COPIES) {
            exports.export(name, ExportKind::Func, i);
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Reencoded {
        utils::parse_code_section(self, code, section)?;
        for (.., to, from) in COPIES {
            let mut copy = Function::new([]);
            let mut body = copy.instructions();
            body.local_get(0).local_get(1).local_get(2).memory_copy(to, from).end();
            code.function(&copy);
        }
        Ok(())
    }
}
