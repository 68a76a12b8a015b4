//! Tokenizes texts with the tokenizer of a GGUF file, which need not have weights.
//!
//! Usage: `tokenize MODEL`. Reads a JSON string from each line of standard input, and
//! prints a line of JSON for it: the tokens of the text, its own and those with the names
//! of control tokens read, and the text that the first make.

use std::error::Error;
use std::io::{BufRead, BufWriter, Write, stdin, stdout};

use moewe_engine::tokenizer::Tokenizer;
use moewe_gguf::Gguf;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model] = args.as_slice() else { return Err("usage: tokenize MODEL".into()) };
    let metadata = Gguf::read(model.as_ref())?.header.metadata;
    let tokenizer = Tokenizer::from_metadata(&metadata)?.ok_or("the file has no tokenizer")?;
    let mut out = BufWriter::new(stdout().lock());
    for line in stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let tokens = tokenizer.encode(&text, false, false)?;
        let trusted = tokenizer.encode(&text, false, true)?;
        let back = tokenizer.decode(&tokens, false)?;
        writeln!(out, "{}", serde_json::json!([tokens, trusted, back]))?;
    }
    Ok(out.flush()?)
}
