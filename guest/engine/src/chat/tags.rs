//! Tags that mean something else to Hugging Face's Jinja than to the engine's.

use std::ops::Range;

/// The filter that [`adapted`] puts behind what loops go over.
pub(super) const LOOP_FILTER: &str = "__loop_over";

/// The source with `{% generation %}` blocks, which mark the assistant's words for
/// training, as blocks that do nothing, and with [`LOOP_FILTER`] behind what loops go
/// over. Tags with the end of a tag in a string are left as they are.
pub(super) fn adapted(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start + 2..].find("%}").map(|n| start + 2 + n) else { break };
        let inside = &rest[start + 2..end];
        let tag = inside.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start + 2]);
        match (tag, iterable(inside)) {
            ("generation", _) => out.push_str(&inside.replacen(tag, "if true", 1)),
            ("endgeneration", _) => out.push_str(&inside.replacen(tag, "endif", 1)),
            (_, Some(Range { start, end })) => {
                let (before, behind) = (&inside[..start], &inside[end..]);
                let iterable = inside[start..end].trim();
                out.extend([before, " (", iterable, ") | ", LOOP_FILTER, " ", behind]);
            }
            _ => out.push_str(inside),
        }
        out.push_str("%}");
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}

/// What a loop goes over; `None` if the tag is another one.
fn iterable(tag: &str) -> Option<Range<usize>> {
    let words = words(tag)?;
    let (first, rest) = words.split_first()?;
    let (at, _) = rest.iter().find(|(_, word)| first.1 == "for" && *word == "in")?;
    let start = at + "in".len();
    let is_end = |(at, word): &&(usize, &str)| *at > start && ["if", "recursive"].contains(word);
    let end = rest.iter().find(is_end).map(|&(at, _)| at);
    Some(start..end.unwrap_or_else(|| tag.trim_end_matches(['-', '+']).len()))
}

/// The words outside of strings and brackets, and where they are; `None` if one of these
/// has no end.
fn words(text: &str) -> Option<Vec<(usize, &str)>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut words, mut depth, mut at) = (Vec::new(), 0usize, 0);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += match c {
            '"' | '\'' => {
                let mut is_escaped = false;
                let end = rest[1..].find(|next| {
                    let is_end = next == c && !is_escaped;
                    is_escaped = next == '\\' && !is_escaped;
                    is_end
                });
                end? + 2
            }
            c if is_word(c) => {
                let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
                if depth == 0 {
                    words.push((at, word));
                }
                word.len()
            }
            c => {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.checked_sub(1)?,
                    _ => {}
                }
                c.len_utf8()
            }
        };
    }
    (depth == 0).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_get_a_filter() {
        let cases = [
            ("{% for a in b %}", "{% for a in (b) | F %}"),
            ("{%- for a, b in c.items() -%}", "{%- for a, b in (c.items()) | F -%}"),
            ("{%for a in b if a in c%}", "{%for a in (b) | F if a in c%}"),
            ("{% for a in b recursive +%}", "{% for a in (b) | F recursive +%}"),
            (
                "{% for a in [1 if x else 2, ' if '] %}",
                "{% for a in ([1 if x else 2, ' if ']) | F %}",
            ),
            ("{% for a in 'it\\'s in if' %}", "{% for a in ('it\\'s in if') | F %}"),
        ];
        for (source, expected) in cases {
            let adapted = adapted(source).replace(LOOP_FILTER, "F");
            let blanks = |text: &str| text.replace(' ', "");
            assert_eq!(blanks(&adapted), blanks(expected), "{source}");
        }
    }

    #[test]
    fn what_is_no_loop_is_left_alone() {
        for source in [
            "",
            "{% if a in b %}",
            "{% set a = b in c %}{# for a in b #}{{ for a in b }}",
            "for a in b %}",
            "{% for a in b",
            "{% for a in 'b %}",
            "{% for a in [b %}",
            "{% for a in b) %}",
            "{% for %}{% for a %}{% endfor %}",
        ] {
            assert_eq!(adapted(source), source);
        }
    }

    #[test]
    fn generation_blocks_do_nothing() {
        let source = "{% generation %}a{%- endgeneration -%}{% if generation %}";
        assert_eq!(adapted(source), "{% if true %}a{%- endif -%}{% if generation %}");
    }
}
