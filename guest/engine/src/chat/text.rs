//! Values as Python's `str` writes them.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::tokenizer::TEXT_BYTES_MAX;

/// How deep values may lie in one another, on a small stack.
const N_NESTED_MAX: usize = 100;

/// A value as text.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(value, 0, &mut out)?;
    Ok(out)
}

/// Appends a value; one that lies in another looks as it does in a program.
fn write(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > N_NESTED_MAX || out.len() > TEXT_BYTES_MAX {
        let message = "a value that is written nests too deep, or is too long";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::Seq => {
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            let (open, close) = if is_tuple { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut n = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if n > 0 { ", " } else { "" });
                write(&item?, depth + 1, out)?;
                n += 1;
            }
            out.push_str(if is_tuple && n == 1 { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                out.push_str(if i > 0 { ", " } else { "" });
                write(&key, depth + 1, out)?;
                out.push_str(": ");
                write(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        ValueKind::String if depth > 0 => out.push_str(&format!("{value:?}")),
        ValueKind::Undefined if depth > 0 => out.push_str("Undefined"),
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A number as Python writes it: Rust has the same digits and the same limits of what has
/// an exponent.
pub(super) fn float(number: f64) -> String {
    let text = format!("{number:?}").replace("NaN", "nan");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    #[test]
    fn values_are_written_as_in_python() {
        let cases = [
            ("'it\\'s'", "it's"),
            ("['a', \"it's\", 1, 2.0, true, none]", "['a', \"it's\", 1, 2.0, True, None]"),
            ("{'a': {'b': [0.0000003, 1e16]}}", "{'a': {'b': [3e-07, 1e+16]}}"),
            ("(1,)", "(1,)"),
            ("(1, 'a')", "(1, 'a')"),
            ("[]", "[]"),
            ("1e-7", "1e-07"),
            ("nothing", ""),
        ];
        let mut env = Environment::new();
        env.add_filter("text", |value: Value| text(&value));
        for (value, expected) in cases {
            let rendered = env.render_str(&format!("{{{{ {value} | text }}}}"), ()).unwrap();
            assert_eq!(rendered, expected);
        }
        let itself = "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | text }}";
        let error = env.render_str(itself, ()).unwrap_err().to_string();
        assert!(error.contains("nests too deep"), "{error}");
    }
}
