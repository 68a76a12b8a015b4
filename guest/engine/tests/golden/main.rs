//! Ways of computing that must give the same bits, with the reference models.

mod context;
mod speculation;
mod store;
mod team;

use std::path::{Path, PathBuf};

/// The reference models, unless they are absent.
fn golden() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    if !path.is_dir() {
        eprintln!("SKIPPED: the reference models are not there: {}", path.display());
        return None;
    }
    Some(path)
}

/// The reference text.
fn tokens(golden: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(golden.join("tokens.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}
