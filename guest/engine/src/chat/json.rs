//! JSON as Python's `json.dumps` writes it.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::text::float;
use crate::tokenizer::TEXT_BYTES_MAX;

/// How deep values may lie in one another, on a small stack.
const N_NESTED_MAX: usize = 100;
/// The most blanks for each level.
const INDENT_MAX: usize = 64;

/// The filter `tojson`, with the arguments that Hugging Face gives it.
pub(super) fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Value> = kwargs.get("separators")?;
    let (item, key) = match separators.filter(|value| !value.is_none()) {
        Some(separators) => {
            let part = |i| Ok::<_, Error>(separators.get_item_by_index(i)?.to_string());
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut writer = Writer {
        out: String::new(),
        indent: indent.map(|n| n.min(INDENT_MAX)),
        item,
        key,
        ensure_ascii,
        sort_keys,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    /// Blanks for each level; without, all stands on one line.
    indent: Option<usize>,
    /// What stands between two items.
    item: String,
    /// What stands between a key and its value.
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > N_NESTED_MAX || self.out.len() > TEXT_BYTES_MAX {
            return Err(failure("tojson: the value nests too deep, or is too long"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.group(['[', ']'], &items, depth, |this, item| this.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                self.group(['{', '}'], &keys, depth, |this, key| {
                    this.name(key)?;
                    this.out.push_str(&this.key.clone());
                    this.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(failure(&format!("tojson: {kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    /// Writes items between brackets, each on its line if there is an indent.
    fn group(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    /// Writes a key, which JSON wants to be a string.
    fn name(&mut self, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.string(text);
            return Ok(());
        }
        if !matches!(key.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) {
            return Err(failure(&format!("tojson: {} cannot be a key in JSON", key.kind())));
        }
        self.out.push('"');
        self.value(key, 0)?;
        self.out.push('"');
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => {
                let text = float(number);
                self.out.push_str(&text.replace("nan", "NaN").replace("inf", "Infinity"));
            }
            _ => self.out.push_str(&value.to_string()),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn failure(message: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, message.to_owned())
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn rendered(template: &str) -> Result<String, Error> {
        let mut env = Environment::new();
        env.add_filter("tojson", to_json);
        env.render_str(template, ())
    }

    #[test]
    fn json_is_python_s() {
        let cases = [
            ("{'a': [1, 2.0, none, true], 'b': {}}", "", r#"{"a": [1, 2.0, null, true], "b": {}}"#),
            ("[]", "indent=4", "[]"),
            (
                "{'a': [1, {'b': 2}]}",
                "indent=1",
                "{\n \"a\": [\n  1,\n  {\n   \"b\": 2\n  }\n ]\n}",
            ),
            ("{'b': 1, 'a': [2, 3]}", "sort_keys=true", r#"{"a": [2, 3], "b": 1}"#),
            ("{'b': 1, 'a': [2, 3]}", "separators=(',', ':')", r#"{"b":1,"a":[2,3]}"#),
            ("'\u{e9}\u{1f680}'", "ensure_ascii=true", r#""\u00e9\ud83d\ude80""#),
            (
                "'\u{e9}<&>\\\"\\\\\\n\\t\u{7f}\u{1}'",
                "",
                "\"\u{e9}<&>\\\"\\\\\\n\\t\u{7f}\\u0001\"",
            ),
            (
                "[0.0001, 0.00001, 1e15, 1e16, 1.5e300, -2.5e-7]",
                "",
                "[0.0001, 1e-05, \
              1000000000000000.0, 1e+16, 1.5e+300, -2.5e-07]",
            ),
            ("range(3)", "", "[0, 1, 2]"),
        ];
        for (value, arguments, expected) in cases {
            let template = format!("{{{{ {value} | tojson({arguments}) }}}}");
            assert_eq!(rendered(&template).unwrap(), expected, "{template}");
        }
        for (value, words) in [("nothing", "undefined"), ("range", "plain object")] {
            let error = rendered(&format!("{{{{ {value} | tojson }}}}")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        for template in [
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
            "{% set ns = namespace(x=['a' * 1000]) %}{% for i in range(60) %}\
             {% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        ] {
            let error = rendered(template).unwrap_err().to_string();
            assert!(error.contains("too deep, or is too long"), "{error}");
        }
    }
}
