//! Chat templates.
//!
//! A template that is made of pieces whose meaning is known writes what these say,
//! whatever the messages are. Any other is told in one line if it does not compile.
//! What compiles is not run here: what a hostile template may take is limited by
//! whoever runs it.

use std::fmt::Write;

use arbitrary::{Arbitrary, Result, Unstructured};
use moewe_engine::ErrorKind;
use moewe_engine::chat::{Conversation, Message};

use crate::memory;
use crate::target::{Target, check_message, reached};

/// See the module.
pub const TARGET: Target = Target {
    name: "chat",
    fuzz,
    seeds,
    words: &[
        "{% for message in messages %}",
        "{% endfor %}",
        "{% if add_generation_prompt %}",
        "{% else %}",
        "{% endif %}",
        "{% generation %}",
        "{%- endgeneration -%}",
        "{% set ns = namespace(a=1) %}",
        "{% macro m(x) %}",
        "{% endmacro %}",
        "{{ message['content'] | trim }}",
        "{{ messages | tojson(indent=2) }}",
        "not ",
        "(((((",
        "[[[[[",
        "{{ -",
        "{%",
        "%}",
        "{#",
        "#}",
        "'\\u",
    ],
    len_max: 2048,
};

const BOS: &str = "<s>";
const EOS: &str = "</s>";

fn seeds() -> Vec<Vec<u8>> {
    let templates = [
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% endfor %}",
        "{%- macro m(x, y=2) -%}{{ x ~ y }}{%- endmacro -%}{{ m(1) }}{# no #}",
        "{% generation %}{{ {'a': [1, none, true]} | tojson(indent=2) }}{% endgeneration %}",
        "{% set ns = namespace(n=0) %}{% if ns.n is defined and not x %}a{% elif y %}b{% endif %}",
    ];
    let any = templates.iter().map(|template| [&[0], template.as_bytes()].concat());
    let known = (1..6u8).map(|step| (0..=150u8).map(|i| (i | 1).wrapping_mul(step * 7)).collect());
    any.chain(known).collect()
}

/// See the module.
///
/// # Panics
///
/// If a promise is broken.
pub fn fuzz(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    if first % 2 == 0 {
        any_template(&String::from_utf8_lossy(rest));
    } else {
        let _ = known_template(&mut Unstructured::new(rest));
    }
}

fn render(source: &str, messages: &[Message], is_prompt: bool) -> moewe_engine::Result<String> {
    let conversation = Conversation {
        template: source.to_owned(),
        messages: messages.to_vec(),
        add_generation_prompt: is_prompt,
        bos: BOS.to_owned(),
        eos: EOS.to_owned(),
        bytes_max: 1 << 20,
        mark: '\u{fdd0}',
    };
    conversation.render()
}

/// Compiles a template, which then ends at once.
fn any_template(source: &str) {
    const STOP: &str = "{{ raise_exception('stop here') }}";
    let bytes_max = (4 << 20) + 4096 * source.len();
    let result = memory::bounded(bytes_max, || render(&format!("{STOP}{source}"), &[], true));
    let error = result.expect_err("the template begins with an error");
    let kinds = [ErrorKind::InvalidInput, ErrorKind::Unsupported];
    assert!(kinds.contains(&error.kind()), "{error}");
    check_message(&error);
    // What the parser missed.
    let message = error.to_string();
    message.split_whitespace().skip(10).take(12).for_each(reached);
}

/// A template, and what it must write.
#[derive(Default)]
struct Known {
    source: String,
    expected: String,
}

/// What a piece may speak of.
struct Scope<'a> {
    messages: &'a [Message],
    is_prompt: bool,
    /// Inside a loop over the messages, which this one is.
    at: Option<usize>,
}

fn known_template(u: &mut Unstructured<'_>) -> Result<()> {
    let is_prompt = bool::arbitrary(u)?;
    let mut messages = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let role = (*u.choose(&["user", "system", "assistant", "", "a\"b"])?).to_owned();
        messages.push(Message { role, content: content(u)? });
    }
    let mut template = Known::default();
    let scope = Scope { messages: &messages, is_prompt, at: None };
    let n = u.int_in_range(1..=8)?;
    write_pieces(u, &scope, n, 0, &mut template)?;
    let Known { source, expected } = template;
    let bytes_max = (4 << 20) + 4096 * source.len() + 64 * expected.len();
    let got = memory::bounded(bytes_max, || render(&source, &messages, is_prompt));
    let got = got.unwrap_or_else(|error| panic!("{error}: {source}"));
    assert_eq!(got, expected, "{source} with {messages:?}");
    Ok(())
}

/// What people write.
fn content(u: &mut Unstructured<'_>) -> Result<String> {
    const PIECES: [&str; 12] = [
        "Hi",
        " ",
        "\n",
        "{{ bos_token }}",
        "{% endfor %}",
        "<|im_end|>",
        "\"",
        "\\",
        "\u{7f}\u{1}",
        "\u{e9}\u{1f98a}",
        "'",
        "</s>",
    ];
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=4)? {
        text += u.choose(&PIECES)?;
    }
    if u.ratio(1, 4)? {
        text += &String::from_utf8_lossy(u.bytes(u.len().min(9))?);
    }
    Ok(text)
}

/// Writes some pieces, for a loop once for each message: what they describe is read
/// anew each time.
fn write_pieces(
    u: &mut Unstructured<'_>,
    scope: &Scope<'_>,
    n: usize,
    depth: usize,
    out: &mut Known,
) -> Result<()> {
    for _ in 0..n {
        write_piece(u, scope, depth, out)?;
    }
    Ok(())
}

fn write_piece(
    u: &mut Unstructured<'_>,
    scope: &Scope<'_>,
    depth: usize,
    out: &mut Known,
) -> Result<()> {
    let kind = u.int_in_range(0..=if depth < 3 { 14 } else { 10 })?;
    // Each of these is the same for source and expectation.
    let mut put = |source: &str, expected: &str| {
        out.source += source;
        out.expected += expected;
        reached(source);
    };
    let message = scope.at.map(|at| &scope.messages[at]);
    match kind {
        0 => {
            let word = *u.choose(&["a", "<|im_start|>", "b c", "\u{e9}", "x=1", "}", "%", "#"])?;
            put(word, word);
        }
        1 => put("{{ 'it''s' | replace('z', '') }}", "its"),
        2 => put("{{ true }}{{ false }}{{ none }}", "TrueFalseNone"),
        3 => put("{{ bos_token }}{{ eos_token }}", &format!("{BOS}{EOS}")),
        4 => put("{# {{ nothing }} #}", ""),
        5 => put("{{ strftime_now('%d %B %Y, %H:%M%%') }}", "01 January 2026, 00:00%"),
        6 => put("{{ messages | length }}", &scope.messages.len().to_string()),
        7 => put("{{ {'a': [1, none]} | tojson }}", "{\"a\": [1, null]}"),
        8 => put("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        9 | 10 => match message {
            None => put("{{ messages | tojson }}", &json(scope.messages)),
            Some(m) => match u.int_in_range(0..=5)? {
                0 => put("{{ m.content }}", &m.content),
                1 => put(
                    "{{ m['role'] + ': ' + m['content'] }}",
                    &format!("{}: {}", m.role, m.content),
                ),
                2 => put("{{ m.content | trim }}", m.content.trim()),
                3 => put("{{ m | tojson }}", &json_message(m)),
                4 => put("{{ m.content | length }}", &m.content.chars().count().to_string()),
                _ => put("{{ loop.index0 }}", &scope.at.unwrap_or(0).to_string()),
            },
        },
        11 => {
            let [begin, end] = *u.choose(&[
                ["{% generation %}", "{% endgeneration %}"],
                ["{%- generation -%}", "{%- endgeneration -%}"],
                ["{%generation%}", "{%endgeneration%}"],
            ])?;
            out.source += begin;
            let n = u.int_in_range(0..=3)?;
            write_pieces(u, scope, n, depth + 1, out)?;
            out.source += end;
        }
        12 | 13 => {
            let (condition, is_true) = match message {
                Some(m) if u.ratio(1, 2)? => ("m.role == 'user'", m.role == "user"),
                Some(_) => ("loop.last", scope.at == Some(scope.messages.len() - 1)),
                None => ("add_generation_prompt", scope.is_prompt),
            };
            let mut branches = [Known::default(), Known::default()];
            for branch in &mut branches {
                let n = u.int_in_range(0..=2)?;
                write_pieces(u, scope, n, depth + 1, branch)?;
            }
            let [then, other] = branches;
            let (a, b) = (then.source, other.source);
            let _ = write!(out.source, "{{% if {condition} %}}{a}{{% else %}}{b}{{% endif %}}");
            out.expected += if is_true { &then.expected } else { &other.expected };
        }
        _ => {
            // The body is described once, and means something else for each message.
            let described = u.bytes(u.len().min(24))?;
            out.source += "{% for m in messages %}";
            let mut source = None;
            for at in 0..scope.messages.len() {
                let mut body = Known::default();
                let scope = Scope { at: Some(at), ..*scope };
                write_pieces(&mut Unstructured::new(described), &scope, 3, depth + 1, &mut body)?;
                out.expected += &body.expected;
                let first = source.get_or_insert_with(|| body.source.clone());
                assert_eq!(*first, body.source, "the same description");
            }
            out.source += source.as_deref().unwrap_or_default();
            out.source += "{% endfor %}";
        }
    }
    Ok(())
}

/// As Python's `json.dumps(messages, ensure_ascii=False)`.
fn json(messages: &[Message]) -> String {
    let all: Vec<_> = messages.iter().map(json_message).collect();
    format!("[{}]", all.join(", "))
}

fn json_message(message: &Message) -> String {
    let Message { role, content } = message;
    format!("{{\"role\": {}, \"content\": {}}}", json_string(role), json_string(content))
}

fn json_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{8}' => out += "\\b",
            '\u{c}' => out += "\\f",
            '\0'..='\u{1f}' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}
