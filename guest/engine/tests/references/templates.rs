//! Chat templates against what Hugging Face's renderer makes of them.

use std::path::Path;

use moewe_engine::Error;
use moewe_engine::chat::{ChatTemplate, DateTime};
use moewe_fixtures::{golden, llama_cpp, smollm2};
use moewe_gguf::Gguf;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What Hugging Face's renderer makes of a template.
#[derive(Deserialize)]
struct Reference {
    /// A file, or what a file has.
    template: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
    /// When it was rendered.
    strftime_now: String,
    cases: Vec<Case>,
}

/// A conversation. What is JSON in it keeps its order.
#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Box<RawValue>,
    tools: Box<RawValue>,
    variables: Box<RawValue>,
    add_generation_prompt: bool,
    /// The text; without, there is an error.
    expected: Option<String>,
    error: Option<String>,
}

impl Case {
    /// All that the template is told.
    fn variables(&self, reference: &Reference) -> String {
        let mut members = vec![
            format!("\"messages\": {}", self.messages),
            format!("\"tools\": {}", self.tools),
            format!("\"add_generation_prompt\": {}", self.add_generation_prompt),
        ];
        let tokens = [("bos", &reference.bos_token), ("eos", &reference.eos_token)];
        members.extend(tokens.into_iter().filter_map(|(name, token)| {
            Some(format!("\"{name}_token\": {}", serde_json::to_string(token.as_ref()?).unwrap()))
        }));
        let more = self.variables.get().trim().strip_prefix('{').unwrap();
        members.extend(Some(more.strip_suffix('}').unwrap().to_owned()).filter(|s| s.trim() != ""));
        format!("{{{}}}", members.join(", "))
    }

    /// How a rendered text is not what it should be.
    fn difference(&self, rendered: &Result<String, Error>) -> Option<String> {
        match (rendered, &self.expected, &self.error) {
            (Ok(text), Some(expected), _) if text == expected => None,
            (Err(error), None, Some(expected)) => {
                // What a template says to a user, in its words.
                let said = expected.strip_prefix("TemplateError: ");
                let is_said = said.is_none_or(|words| error.to_string().ends_with(words));
                (!is_said).then(|| format!("{error}, not {expected}"))
            }
            (Ok(text), Some(expected), _) => {
                let pairs = text.char_indices().zip(expected.chars());
                let n_same = pairs.take_while(|((_, a), b)| a == b).count();
                let shown = |text: &str| {
                    text.chars().skip(n_same.saturating_sub(40)).take(120).collect::<String>()
                };
                Some(format!("{:?}\nnot\n{:?}", shown(text), shown(expected)))
            }
            (Ok(text), ..) => Some(format!("no error, but {text:?}; {:?} expected", self.error)),
            (Err(error), ..) => Some(error.to_string()),
        }
    }
}

/// The time that a reference was made, as `2026-11-24 12:34:56`.
fn time(text: &str) -> DateTime {
    let numbers: Vec<u16> = text.split(['-', ' ', ':']).map(|n| n.parse().unwrap()).collect();
    let [year, month, day, time @ ..] = &numbers[..] else { panic!("{text}") };
    let time: Vec<u8> = time.iter().map(|&n| n as u8).collect();
    DateTime::new([*year, *month, *day], time.try_into().unwrap()).unwrap()
}

/// A template's source; `None` if its file is missing.
fn source(template: &str, llama_cpp: &Path) -> Option<String> {
    if template.ends_with(".jinja") {
        return Some(
            std::fs::read_to_string(llama_cpp.join("models/templates").join(template)).unwrap(),
        );
    }
    assert!(template.starts_with("SmolLM2-"), "{template}");
    let header = Gguf::read(&smollm2()?).unwrap().header;
    Some(header.metadata.str("tokenizer.chat_template").unwrap().unwrap().to_owned())
}

#[test]
fn templates_render_as_with_hugging_face() {
    let (Some(golden), Some(llama_cpp)) = (golden(), llama_cpp()) else { return };
    let (mut n, mut failures) = (0, Vec::new());
    let mut paths: Vec<_> =
        (golden.join("chat").read_dir().unwrap()).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let reference: Reference = serde_json::from_str(&text).unwrap();
        let Some(source) = source(&reference.template, &llama_cpp) else { continue };
        let template = ChatTemplate::new(&source);
        for case in &reference.cases {
            let now = time(&reference.strftime_now);
            let rendered = template.render(&case.variables(&reference), now, 1 << 20);
            n += 1;
            failures.extend(
                (case.difference(&rendered))
                    .map(|what| format!("{} {}: {what}", reference.template, case.name)),
            );
        }
    }
    println!("{} of {n} conversations", n - failures.len());
    assert!(failures.is_empty(), "{} of {n}:\n{}", failures.len(), failures.join("\n\n"));
    assert!(n >= 464, "only {n} conversations");
}
