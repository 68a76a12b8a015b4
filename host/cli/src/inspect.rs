//! `moewe inspect`: what is in a model's file.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use indicatif::HumanBytes;
use moewe::{Guest, Model, ModelOptions};
use moewe_gguf::Value;
use moewe_models::inspect::Report;
use moewe_packed::PackedCopy;
use serde_json::json;

use crate::open;
use crate::print::{self, printable};

/// Arrays and texts of the metadata are shown up to this many entries and
/// bytes.
const SHOWN_LEN_MAX: usize = 8;
const SHOWN_BYTES_MAX: usize = 200;

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

pub fn run(args: &Args) -> Result<ExitCode> {
    let path = open::resolve(&args.model)?;
    let report = Report::read(&path)?;
    // What is missing is told elsewhere.
    let guest = Model::guest_for(&path, &ModelOptions::default()).ok();
    let mut out = io::stdout().lock();
    if args.json {
        print::json(&mut out, &json(&report, guest.map(|(guest, _)| guest), args.tensors))?;
    } else {
        print(&report, guest, &mut out, args.tensors)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json(report: &Report, guest: Option<Guest>, with_tensors: bool) -> serde_json::Value {
    let metadata: serde_json::Map<_, _> =
        report.header.metadata.iter().map(|(k, v)| (k.to_owned(), json_value(v))).collect();
    let mut value = json!({
        "file": report.path.to_string_lossy(),
        "is_packed": report.is_packed(),
        "packed_copy": match &report.packed_copy {
            PackedCopy::Current(path) => Some(path.to_string_lossy()),
            PackedCopy::Absent | PackedCopy::Stale(..) => None,
        },
        "n_files": report.header.header_bytes.len(),
        "n_params": report.n_params(),
        "n_tensors": report.header.tensors.len(),
        "n_expert": report.n_expert,
        "n_expert_used": report.n_expert_used,
        "n_ctx_train": report.n_ctx_train,
        "memory": report.memory,
        "guest_bits": guest.map(Guest::bits),
        "unsupported": report.unsupported,
        "metadata": metadata,
    });
    if with_tensors {
        let tensors = report.tensors().into_iter().map(|t| {
            json!({
                "name": t.name,
                "dims": t.dims,
                "type": t.ty.name(),
                "file": t.file,
                "offset": t.offset,
                "size": t.size,
            })
        });
        value["tensors"] = tensors.collect();
    }
    value
}

fn print(
    report: &Report,
    guest: Option<(Guest, &str)>,
    out: &mut impl Write,
    with_tensors: bool,
) -> Result<()> {
    let n_files = report.header.header_bytes.len();
    writeln!(out, "{} ({n_files} file{})", report.path.display(), plural(n_files))?;
    writeln!(out, "{:.1} M parameters", report.n_params() as f64 / 1e6)?;
    if report.is_packed() {
        writeln!(out, "packed: the rows of matrices are interleaved")?;
    }
    match &report.packed_copy {
        PackedCopy::Absent => {}
        PackedCopy::Stale(copy, mismatch) => {
            writeln!(out, "{}", print::stale(&report.path, copy, *mismatch))?;
        }
        PackedCopy::Current(path) => {
            writeln!(out, "its packed copy {} is used in its place", path.display())?;
        }
    }
    if let Some((guest, why)) = guest {
        writeln!(out, "computed in the guest of {} bits: {why}", guest.bits())?;
    }
    if let Some(reason) = &report.unsupported {
        writeln!(out, "cannot be run: {}", printable(reason))?;
    }

    writeln!(out, "\nmetadata")?;
    for (key, value) in report.header.metadata.iter() {
        writeln!(out, "  {:<40} {}", printable(key), printable(&Shown(value).to_string()))?;
    }

    writeln!(out, "\ntensors")?;
    for (name, (n, bytes)) in report.types() {
        writeln!(out, "  {name:<8} {n:>6} {:>12}", HumanBytes(bytes).to_string())?;
    }
    if with_tensors {
        for t in report.tensors() {
            let n_dims = t.dims.iter().rposition(|&d| d != 1).map_or(1, |i| i + 1);
            let dims: Vec<_> = t.dims[..n_dims].iter().map(u64::to_string).collect();
            let (dims, size) = (dims.join(" x "), HumanBytes(t.size).to_string());
            let (name, ty) = (printable(&t.name), t.ty.name());
            write!(out, "  {name:<32} {ty:<8} {dims:>22} {size:>12}")?;
            writeln!(out, "  at {} of file {}", t.offset, t.file + 1)?;
        }
    }

    let memory = &report.memory;
    writeln!(out, "\nmemory")?;
    writeln!(out, "  weights for every token    {:>12}", bytes(memory.dense_bytes))?;
    if memory.expert_bytes > 0 {
        writeln!(
            out,
            "  experts                    {:>12} ({} a layer)",
            bytes(memory.expert_bytes),
            report.n_expert
        )?;
        writeln!(
            out,
            "  experts that a token needs {:>12} ({} a layer)",
            bytes(memory.expert_bytes_per_token),
            report.n_expert_used
        )?;
    }
    if let (Some(per_token), Some(max)) = (memory.kv_bytes_per_token, memory.kv_bytes_max) {
        writeln!(out, "  KV cache for a token       {:>12}", bytes(per_token))?;
        let label = format!("KV cache for {} tokens", report.n_ctx_train);
        writeln!(out, "  {label:<26} {:>12}", bytes(max))?;
    }
    Ok(())
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
    let first: Vec<_> = entries.take(SHOWN_LEN_MAX).collect();
    if length > SHOWN_LEN_MAX { json!({ "length": length, "first": first }) } else { json!(first) }
}

fn cut(text: &str) -> String {
    match text.len() {
        n if n > SHOWN_BYTES_MAX => {
            format!("{}... ({n} bytes)", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)])
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
