//! What the caller of a chat template wrote stays text: no control token of the
//! model can come of it.
//!
//! In the name of a control token, and in what could become a part of one, marks stand on
//! both sides of every character of the kind that holds such names together
//! (`⟂<⟂|⟂im_end⟂|⟂>⟂`). So a name in the rendered text is the template's own, and the
//! marks go when control tokens have been found. All else is left as it is: a template
//! does with it what it does elsewhere.

use std::borrow::Cow;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input};

use crate::error::{Error, Result};

/// Code points that are no characters, for a program's own use.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';
/// The longest name of a control token, in bytes: the work for a message grows with it.
const NAME_BYTES_MAX: usize = 256;

/// A mark that none of these texts has.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) if they have all.
pub fn choose<'a>(texts: impl Iterator<Item = &'a str>) -> Result<char> {
    let mut taken = [false; 32];
    for c in texts.flat_map(str::chars).filter(|c| MARKS.contains(c)) {
        taken[c as usize - *MARKS.start() as usize] = true;
    }
    MARKS.zip(taken).find(|(_, taken)| !taken).map(|(mark, _)| mark).ok_or_else(|| {
        Error::input(
            "the messages have all code points from U+FDD0 to U+FDEF, which are no characters; \
             take them out",
        )
    })
}

/// The names of a vocabulary's control tokens, to find what could become one.
///
/// Templates strip white space and change the case of letters, so neither counts here.
pub struct Names {
    /// In order.
    forward: Vec<String>,
    /// Read backwards, in order.
    backward: Vec<String>,
    longest: usize,
    whole: Option<AhoCorasick>,
    /// Those that are nothing but letters: for them all counts.
    words: Option<AhoCorasick>,
}

impl Names {
    /// # Errors
    /// [`InvalidModel`](crate::ErrorKind::InvalidModel) if there are too many names,
    /// or one is too long.
    pub fn new<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<Self> {
        if let Some(name) = names.clone().find(|name| name.len() > NAME_BYTES_MAX) {
            return Err(Error::invalid(format!(
                "the name of a control token has {} bytes, at most {NAME_BYTES_MAX} can be told \
                 from text",
                name.len()
            )));
        }
        let (held, words): (Vec<_>, Vec<_>) =
            names.filter(|name| !name.is_empty()).partition(|name| name.contains(holds_together));
        let mut forward: Vec<String> = held.into_iter().map(plain).collect();
        forward.sort_unstable();
        forward.dedup();
        let mut backward: Vec<String> = forward.iter().map(|name| reversed(name)).collect();
        backward.sort_unstable();
        Ok(Self {
            longest: forward.iter().map(String::len).max().unwrap_or(0),
            whole: finder(&forward)?,
            words: finder(&words)?,
            forward,
            backward,
        })
    }

    /// The string with marks, if it needs any.
    pub fn marked<'a>(&self, text: &'a str, mark: char) -> Cow<'a, str> {
        let plain = plain(text);
        let held = self.parts(&plain);
        let words = found(&self.words, text);
        if held.is_empty() && words.is_empty() {
            return Cow::Borrowed(text);
        }
        let (held, words) = (covered(held, plain.len()), covered(words, text.len()));
        let mut out = String::with_capacity(2 * text.len());
        let (mut at, mut folded) = (0, String::new());
        for (i, c) in text.char_indices() {
            fold(c, &mut folded);
            let is_text = !folded.is_empty();
            let is_marked = is_text && (words[i] || (held[at] && holds_together(c)));
            if is_marked && !out.ends_with(mark) {
                out.push(mark);
            }
            out.push(c);
            if is_marked {
                out.push(mark);
            }
            at += folded.len();
            folded.clear();
        }
        Cow::Owned(out)
    }

    /// Where a plain text has names, and what names could be made of with what stands
    /// around the text.
    fn parts(&self, text: &str) -> Vec<Range<usize>> {
        let mut parts = found(&self.whole, text);
        if text.len() < self.longest
            && text.contains(holds_together)
            && self.forward.iter().any(|name| name.contains(text))
        {
            parts.push(0..text.len());
        }
        let end = ends_as_one_begins(text, &self.forward, self.longest);
        parts.extend(end.map(|n| text.len() - n..text.len()));
        let start: String = text.chars().take(self.longest).collect();
        let start = ends_as_one_begins(&reversed(&start), &self.backward, self.longest);
        parts.extend(start.map(|n| 0..n));
        parts
    }
}

/// Where a text has names. One that has another within it need not be among them.
fn found(names: &Option<AhoCorasick>, text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(names) = names
        && let Some(name) = names.find(Input::new(text).range(from..))
    {
        found.push(name.range());
        from = name.start() + 1;
    }
    found
}

/// Which of `len` bytes lie in one of the ranges.
fn covered(ranges: Vec<Range<usize>>, len: usize) -> Vec<bool> {
    let mut covered = vec![false; len];
    ranges.into_iter().for_each(|range| covered[range].fill(true));
    covered
}

/// The most bytes with which the text ends and one of the names begins, which are in
/// order.
fn ends_as_one_begins(text: &str, names: &[String], longest: usize) -> Option<usize> {
    let ends = text.char_indices().rev().map(|(at, _)| &text[at..]);
    let ends = ends.take_while(|end| end.len() < longest).filter(|end| {
        let first = names.partition_point(|name| name.as_str() < *end);
        end.contains(holds_together) && names.get(first).is_some_and(|name| name.starts_with(*end))
    });
    ends.map(str::len).last()
}

/// Whether a character makes a name of what would be words without it.
fn holds_together(c: char) -> bool {
    !(c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '-'))
}

/// Without white space, in small letters.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    text.chars().for_each(|c| fold(c, &mut plain));
    plain
}

/// Appends a character, unless it is white space, in small letters: those that it has
/// when it was capitalised as well, since there are characters outside of ASCII which
/// become its letters in the one way or the other.
fn fold(c: char, out: &mut String) {
    if c.is_ascii() && !c.is_whitespace() {
        out.push(c.to_ascii_lowercase());
    } else if !c.is_whitespace() {
        out.extend(c.to_uppercase().flat_map(char::to_lowercase));
    }
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

fn finder(names: &[impl AsRef<[u8]>]) -> Result<Option<AhoCorasick>> {
    if names.is_empty() {
        return Ok(None);
    }
    let built = AhoCorasick::builder().kind(Some(AhoCorasickKind::NoncontiguousNFA)).build(names);
    built
        .map(Some)
        .map_err(|e| Error::invalid(format!("the control tokens cannot be told from text: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: char = '\u{fdd0}';

    fn names() -> Names {
        Names::new(["<|im_start|>", "<|im_end|>", "<|user|>", "</s>", "[INST]", "EOT"].into_iter())
            .unwrap()
    }

    #[test]
    fn what_cannot_become_a_name_is_left_alone() {
        let names = names();
        for text in [
            "",
            "Hello",
            "user",
            "if a < b && c > d { x[i] = \"</a>\" }",
            "|> is a pipe, <| as well |",
            "im_end|im_start",
            "an eo t",
            "<think>\n</think>\n\n[1]",
            "<i",
        ] {
            // The end of a tag may be the end of a name.
            let inner = format!("({text})");
            assert!(matches!(names.marked(&inner, MARK), Cow::Borrowed(_)), "{text}");
        }
        assert!(matches!(names.marked("user", MARK), Cow::Borrowed(_)));
    }

    #[test]
    fn names_and_parts_of_names_are_marked() {
        let names = names();
        for text in [
            "a<|im_end|>b",
            "<|im_end|>",
            "<|IM_END|>",
            "< |im_\nend| >",
            "a <",
            "a <|im_st",
            "end|> a",
            "> a",
            "|im_end|",
            "<|im_end|",
            "im_end|>",
            "user|><|im_start",
            "[inst]",
            // A long s, a ligature and the sign for Kelvin.
            "a [IN\u{17f}T] a",
            "<|im_\u{fb06}art|>",
            "</\u{17f}>",
        ] {
            let marked = names.marked(text, MARK);
            assert_eq!(marked.replace(MARK, ""), text);
            let held = marked.match_indices(holds_together).filter(|(_, c)| *c != MARK.to_string());
            for (at, c) in held {
                assert!(marked[..at].ends_with(MARK), "{marked}");
                assert!(marked[at + c.len()..].starts_with(MARK), "{marked}");
            }
        }
        assert_eq!(names.marked("a EOT", '.'), "a .E.O.T.");
        assert_eq!(names.marked("<i>a</i> <|im_end|>.", '^'), "<i>a</i> ^<^|^im_end^|^>^.");
        assert_eq!(
            names.marked("\u{e9} <|Im_end| >\u{e9}", '^'),
            "\u{e9} ^<^|^Im_end^|^ ^>^\u{e9}"
        );
    }

    #[test]
    fn a_mark_is_in_no_text() {
        assert_eq!(choose(["a", "\u{fdd1}"].into_iter()).unwrap(), '\u{fdd0}');
        assert_eq!(choose(["\u{fdd0}a", "\u{fdd1}"].into_iter()).unwrap(), '\u{fdd2}');
        let all: String = MARKS.collect();
        let error = choose([all.as_str()].into_iter()).unwrap_err();
        assert!(error.to_string().contains("U+FDD0"), "{error}");
    }
}
