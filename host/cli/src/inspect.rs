//! `moewe inspect`: what is in a model's file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use indicatif::HumanBytes;
use moewe_engine::native::Folder;
use moewe_gguf::{Gguf, Header, TensorInfo, Value};
use moewe_packed::PackedCopy;
use serde_json::json;

use crate::{open, printable};

/// Arrays and texts of the metadata are shown up to this many entries and
/// bytes.
const N_ENTRIES_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 200;

/// Show what is in a model's file, and how much memory it needs
///
/// Only the headers are read.
#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file (of a split model, the first), or the name of a known model
    model: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the model needs in memory.
#[derive(serde::Serialize)]
struct Memory {
    /// Bytes of the weights that every token needs.
    dense_bytes: u64,
    /// Bytes of all experts.
    expert_bytes: u64,
    /// Bytes of the experts that one token needs.
    expert_bytes_per_token: u64,
    /// Bytes of KV cache for a token, if the engine knows the architecture.
    kv_bytes_per_token: Option<u64>,
    /// Bytes of KV cache for the context that the model was trained for.
    kv_bytes_max: Option<u64>,
}

/// All that is shown.
struct Report {
    path: PathBuf,
    header: Header,
    packed_copy: PackedCopy,
    memory: Memory,
    n_expert: u64,
    n_expert_used: u64,
    n_ctx_train: u64,
    /// Why the engine cannot run the model.
    unsupported: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let report = Report::read(open::resolve(&args.model)?)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report.json(args.tensors))?;
        writeln!(out)?;
    } else {
        report.print(&mut out, args.tensors)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn read(path: PathBuf) -> Result<Self> {
        let (folder, name) = Folder::of(&path)?;
        let header = Gguf::read(&path)?.header;
        let metadata = &header.metadata;
        let arch = metadata.str("general.architecture")?.unwrap_or_default();
        let number = |key: &str| {
            let number = metadata.u32(&format!("{arch}.{key}"));
            number.map(|n| u64::from(n.unwrap_or_default()))
        };
        let (n_expert, n_expert_used) = (number("expert_count")?, number("expert_used_count")?);
        let n_ctx_train = number("context_length")?;

        // The engine knows best what its KV cache takes. Mapping the weights
        // to ask it reads next to nothing of them.
        let engine = moewe_engine::Model::load(&folder, &name, u64::MAX);
        let kv_bytes_per_token = engine.as_ref().ok().map(|m| m.info().kv_bytes_per_token);
        let (expert_bytes, dense_bytes) = (header.tensors.values())
            .map(|t| if t.is_expert() { (t.size, 0) } else { (0, t.size) })
            .fold((0_u64, 0_u64), |(a, b), (c, d)| (a.saturating_add(c), b.saturating_add(d)));
        let memory = Memory {
            dense_bytes,
            expert_bytes,
            expert_bytes_per_token: (expert_bytes / n_expert.max(1)).saturating_mul(n_expert_used),
            kv_bytes_per_token,
            kv_bytes_max: kv_bytes_per_token.map(|n| n.saturating_mul(n_ctx_train)),
        };
        let unsupported = engine.err().map(|e| e.to_string());
        let packed_copy = PackedCopy::of(&path);
        Ok(Self {
            path,
            header,
            packed_copy,
            memory,
            n_expert,
            n_expert_used,
            n_ctx_train,
            unsupported,
        })
    }

    fn n_params(&self) -> u64 {
        self.header.tensors.values().fold(0, |sum, t| sum.saturating_add(t.n_elements()))
    }

    /// Whether rows are interleaved.
    fn is_packed(&self) -> bool {
        self.header.tensors.values().any(|t| t.ty.is_packed())
    }

    /// For each tensor type, how many tensors have it, and their bytes.
    fn types(&self) -> BTreeMap<&'static str, (usize, u64)> {
        let mut types = BTreeMap::new();
        for tensor in self.header.tensors.values() {
            let (n, bytes) = types.entry(tensor.ty.name()).or_insert((0, 0_u64));
            *n += 1;
            *bytes = bytes.saturating_add(tensor.size);
        }
        types
    }

    /// The tensors in the order of the files.
    fn tensors(&self) -> Vec<&TensorInfo> {
        let mut tensors: Vec<_> = self.header.tensors.values().collect();
        tensors.sort_by_key(|t| (t.file, t.offset));
        tensors
    }

    fn json(&self, with_tensors: bool) -> serde_json::Value {
        let metadata: serde_json::Map<_, _> =
            self.header.metadata.iter().map(|(k, v)| (k.to_owned(), json_value(v))).collect();
        let mut report = json!({
            "file": self.path.to_string_lossy(),
            "is_packed": self.is_packed(),
            "packed_copy": match &self.packed_copy {
                PackedCopy::Current(path) => Some(path.to_string_lossy()),
                PackedCopy::Absent | PackedCopy::Stale(..) => None,
            },
            "n_files": self.header.header_bytes.len(),
            "n_params": self.n_params(),
            "n_tensors": self.header.tensors.len(),
            "n_expert": self.n_expert,
            "n_expert_used": self.n_expert_used,
            "n_ctx_train": self.n_ctx_train,
            "memory": self.memory,
            "unsupported": self.unsupported,
            "metadata": metadata,
        });
        if with_tensors {
            let tensors = self.tensors().into_iter().map(|t| {
                json!({
                    "name": t.name,
                    "dims": t.dims,
                    "type": t.ty.name(),
                    "file": t.file,
                    "offset": t.offset,
                    "size": t.size,
                })
            });
            report["tensors"] = tensors.collect();
        }
        report
    }

    fn print(&self, out: &mut impl Write, with_tensors: bool) -> Result<()> {
        let n_files = self.header.header_bytes.len();
        writeln!(out, "{} ({n_files} file{})", self.path.display(), plural(n_files))?;
        writeln!(out, "{:.1} M parameters", self.n_params() as f64 / 1e6)?;
        if self.is_packed() {
            writeln!(out, "packed: the rows of matrices are interleaved")?;
        }
        match &self.packed_copy {
            PackedCopy::Absent => {}
            PackedCopy::Stale(copy, mismatch) => {
                writeln!(out, "{}", open::stale(&self.path, copy, *mismatch))?;
            }
            PackedCopy::Current(path) => {
                writeln!(out, "its packed copy {} is used in its place", path.display())?;
            }
        }
        if let Some(reason) = &self.unsupported {
            writeln!(out, "cannot be run: {}", printable(reason))?;
        }

        writeln!(out, "\nmetadata")?;
        for (key, value) in self.header.metadata.iter() {
            writeln!(out, "  {:<40} {}", printable(key), printable(&Shown(value).to_string()))?;
        }

        writeln!(out, "\ntensors")?;
        for (name, (n, bytes)) in self.types() {
            writeln!(out, "  {name:<8} {n:>6} {:>12}", HumanBytes(bytes).to_string())?;
        }
        if with_tensors {
            for t in self.tensors() {
                let n_dims = t.dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
                let dims: Vec<_> = t.dims[..n_dims].iter().map(u64::to_string).collect();
                let (dims, size) = (dims.join(" x "), HumanBytes(t.size).to_string());
                let (name, ty) = (printable(&t.name), t.ty.name());
                write!(out, "  {name:<32} {ty:<8} {dims:>22} {size:>12}")?;
                writeln!(out, "  at {} of file {}", t.offset, t.file + 1)?;
            }
        }

        let memory = &self.memory;
        writeln!(out, "\nmemory")?;
        writeln!(out, "  weights for every token    {:>12}", bytes(memory.dense_bytes))?;
        if memory.expert_bytes > 0 {
            writeln!(
                out,
                "  experts                    {:>12} ({} a layer)",
                bytes(memory.expert_bytes),
                self.n_expert
            )?;
            writeln!(
                out,
                "  experts that a token needs {:>12} ({} a layer)",
                bytes(memory.expert_bytes_per_token),
                self.n_expert_used
            )?;
        }
        if let (Some(per_token), Some(max)) = (memory.kv_bytes_per_token, memory.kv_bytes_max) {
            writeln!(out, "  KV cache for a token       {:>12}", bytes(per_token))?;
            let label = format!("KV cache for {} tokens", self.n_ctx_train);
            writeln!(out, "  {label:<26} {:>12}", bytes(max))?;
        }
        Ok(())
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// The value as people read it: long ones are cut.
struct Shown<'a>(&'a Value);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match json_value(self.0) {
            serde_json::Value::Object(array) => {
                let first = array["first"].to_string();
                let first = first.trim_end_matches(']');
                write!(f, "{first}, ...] {} in all", array["length"])
            }
            value => write!(f, "{value}"),
        }
    }
}

/// The value as JSON; a long array as its length and first entries, a long
/// text cut.
fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Uint(n) => json!(n),
        Value::Int(n) => json!(n),
        // Four bytes are not shown with the digits of eight.
        Value::Float(x) if f64::from(*x as f32) == *x => {
            json!((*x as f32).to_string().parse::<f64>().unwrap_or(*x))
        }
        Value::Float(x) => json!(x),
        Value::Bool(b) => json!(b),
        Value::String(s) => json!(cut(s)),
        Value::Ints(a) => json_array(a.len(), a.iter().copied()),
        Value::Floats(a) => json_array(a.len(), a.iter().copied()),
        Value::Bools(a) => json_array(a.len(), a.iter().copied()),
        Value::Strings(a) => json_array(a.len(), a.iter().map(cut)),
    }
}

fn json_array<T: serde::Serialize>(
    length: usize,
    entries: impl Iterator<Item = T>,
) -> serde_json::Value {
    let first: Vec<_> = entries.take(N_ENTRIES_MAX).collect();
    if length > N_ENTRIES_MAX { json!({ "length": length, "first": first }) } else { json!(first) }
}

fn cut(text: &str) -> String {
    match text.len() {
        n if n > TEXT_BYTES_MAX => {
            format!("{}... ({n} bytes)", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut() {
        let shown = |value| Shown(&value).to_string();
        assert_eq!(shown(Value::Float(f64::from(0.1_f32))), "0.1");
        assert_eq!(shown(Value::Ints((0..8).collect())), "[0,1,2,3,4,5,6,7]");
        assert_eq!(shown(Value::Ints((0..9).collect())), "[0,1,2,3,4,5,6,7, ...] 9 in all");
        assert_eq!(cut(&"ä".repeat(100)), "ä".repeat(100));
        assert_eq!(
            cut(&format!("x{}", "ä".repeat(100))),
            format!("x{}... (201 bytes)", "ä".repeat(99))
        );
    }
}
