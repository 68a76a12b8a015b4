//! Tokenizers and chat templates of real models against what others make of them.

mod templates;
mod vocabularies;
