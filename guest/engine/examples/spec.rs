//! Temporary.
use moewe_engine::language_model::*;
use moewe_engine::native::Folder;
use moewe_engine::sampler::Sampling;
use std::path::Path;
fn main() {
    let (folder, name) = Folder::of(Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    let model = LanguageModel::load(&folder, &name, u64::MAX).unwrap();
    let code = "fn main() {\n    let mut total_count = 0;\n    for item in items.iter() {\n        total_count += item.count;\n    }\n    println!(\"{}\", total_count);\n}\n\nRewrite the program above with the variable total_count renamed to sum.\n";
    let story = "Write a short story about a lighthouse keeper.";
    let list = "Extract names: Alice Johnson (34, Berlin), Bob Smithers (29, Hamburg), Carol Danvers (41, Munich), Dieter Krause (55, Cologne). Repeat the list, one line for each person with age and city.";
    let py = "Write a Python class Stack with push, pop, peek, is_empty and size methods, with docstrings, then write unit tests for it.";
    let json = "Write a JSON array with five people, each with name, age, email and city.";
    let sum = "Correct the spelling of this text: The quik brown fox jumps over the lazzy dog. The dog was sleping in the shade of an old oak tree, and it did not notice the fox at all. Later that day, the fox came back and stole the dogs bone, which was burried beside the tree.";
    let facts = "What is the capital of France, and why is it famous?";
    for (pn, prompt) in [
        ("code", code),
        ("story", story),
        ("list", list),
        ("facts", facts),
        ("py", py),
        ("sum", sum),
        ("json", json),
        ("poem", "Write a poem with a refrain about the sea."),
        ("chat", "Explain how bread is made, step by step."),
    ] {
        for (t, tk) in [(0.0, 0), (0.8, 40)] {
            let s = Sampling {
                temperature: t,
                top_k: tk,
                top_p: 0.95,
                min_p: 0.05,
                repeat_penalty: 1.0,
                repeat_last_n: 64,
                seed: 42,
            };
            let text = model
                .apply_chat_template(
                    &[moewe_engine::chat::Message { role: "user".into(), content: prompt.into() }],
                    true,
                )
                .unwrap();
            let tokens = model.tokenizer().unwrap().encode(&text, true, true).unwrap();
            let mut session = model.start(None, s).unwrap();
            session.feed(&tokens).unwrap();
            let (mut n, mut passes) = (0, 0);
            let mut last = 0;
            for _ in 0..200 {
                let st = session.next().unwrap();
                if st.stop.is_some() {
                    break;
                }
                n += 1;
                if session.context().accepted_tokens() == last {
                    passes += 1;
                }
                last = session.context().accepted_tokens();
            }
            let (d, a) = (session.context().drafted_tokens(), session.context().accepted_tokens());
            let c = 0.35;
            println!("TOK {pn}-{t} {} {:?}", tokens.len(), session.context().tokens());
            println!(
                "{pn} temp {t}: {n} tokens, {passes} passes, drafted {d}, accepted {a}: speed-up {:.2}",
                n as f64 / (passes as f64 + c * d as f64)
            );
        }
    }
}
