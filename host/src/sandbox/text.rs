//! Text that a guest gives to its host.

use super::bindings::exports::moewe::inference::inference as wit;

/// The text that these bytes are, which were copied out of a guest's memory.
///
/// Other members of the team may write to that memory while the host reads it,
/// so only the copy holds still to be checked. A guest that gives something else
/// than text is not the engine any more: the error ends its sandbox.
pub(crate) fn checked_text(bytes: Vec<u8>) -> wasmtime::Result<String> {
    String::from_utf8(bytes).map_err(|_| {
        wasmtime::format_err!("the engine gave bytes that are no text, please report it")
    })
}

/// The same for an answer.
pub(crate) fn checked_answer(
    answer: Result<Vec<u8>, wit::Error>,
) -> wasmtime::Result<Result<String, wit::Error>> {
    Ok(match answer {
        Ok(bytes) => Ok(checked_text(bytes)?),
        Err(error) => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use wasmtime::component::types::{ComponentItem, Type};

    use crate::sandbox::program::Program;

    /// Counts the texts in a type, and fails if one is a `string`.
    fn check(at: &str, ty: &Type, n_texts: &mut usize) {
        let mut check = |ty: Type| check(at, &ty, n_texts);
        match ty {
            Type::String => panic!("{at}: Wasmtime would check it before it is copied"),
            Type::List(list) if list.ty() == Type::U8 => *n_texts += 1,
            Type::List(list) => check(list.ty()),
            Type::Record(record) => record.fields().for_each(|field| check(field.ty)),
            Type::Tuple(tuple) => tuple.types().for_each(check),
            Type::Variant(variant) => variant.cases().filter_map(|case| case.ty).for_each(check),
            Type::Option(option) => check(option.ty()),
            Type::Result(result) => result.ok().into_iter().chain(result.err()).for_each(check),
            Type::Bool
            | Type::Char
            | Type::Enum(_)
            | Type::Flags(_)
            | Type::Own(_)
            | Type::Borrow(_) => {}
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => {}
            Type::S8 | Type::S16 | Type::S32 | Type::S64 | Type::Float32 | Type::Float64 => {}
            other => panic!("{at}: is {other:?} sound if its bytes change meanwhile?"),
        }
    }

    /// All that comes out of the guest: arguments of imports, results of exports.
    #[test]
    fn whatever_text_the_guest_gives_is_checked_in_the_hosts_copy() {
        let program = Program::narrow().unwrap();
        let engine = program.guest.engine();
        let guest = program.guest.instance_pre().component().component_type();
        let (imports, exports) = (guest.imports(engine), guest.exports(engine));
        let interfaces = imports.map(|i| (true, i)).chain(exports.map(|e| (false, e)));
        let (mut n_functions, mut n_texts) = (0, 0);
        for (imported, (interface, item)) in interfaces {
            let ComponentItem::ComponentInstance(instance) = item.ty else {
                panic!("{interface} is no interface");
            };
            for (name, item) in instance.exports(engine) {
                let ComponentItem::ComponentFunc(function) = item.ty else { continue };
                let at = format!("{interface}.{name}");
                n_functions += 1;
                match imported {
                    true => function.params().for_each(|(_, ty)| check(&at, &ty, &mut n_texts)),
                    false => function.results().for_each(|ty| check(&at, &ty, &mut n_texts)),
                }
            }
        }
        assert!(n_functions > 25 && n_texts > 10, "{n_functions} functions, {n_texts} texts");
    }
}
