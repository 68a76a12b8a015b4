//! temp
#![allow(missing_docs)]
use crate::error::Result;
pub struct Message {
    pub role: String,
    pub content: String,
}
pub struct ChatTemplate;
impl ChatTemplate {
    pub fn from_metadata(_: &crate::gguf::Metadata) -> Result<Option<Self>> {
        Ok(None)
    }
    pub fn apply(&self, _: &[Message], _: bool, _: &str, _: &str) -> Result<String> {
        unreachable!()
    }
}
