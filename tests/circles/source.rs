//! Which files of a crate use which others.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ImplItem, Item, ItemMod, ItemUse, Lit, Meta, MetaNameValue, UseTree,
    Visibility,
};

/// The modules of a crate, the root first.
///
/// Read without types: a method that another file adds to a type is not seen, nor is what
/// macros make.
pub struct Crate(Vec<Module>);

/// The segments of a path.
type Names = Vec<String>;

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: usize,
    children: HashMap<String, usize>,
    /// What is defined here.
    items: BTreeSet<String>,
    /// What has a name here, and is elsewhere.
    imports: HashMap<String, Names>,
    globs: Vec<Names>,
    /// What the code uses: paths, and names that may be variables too.
    paths: BTreeSet<Names>,
    names: BTreeSet<String>,
}

/// What a path leads to.
#[derive(Clone, Copy)]
enum Place {
    Module(usize),
    /// Something in that module.
    Item(usize),
}

/// The most steps to follow imports. Those of a name by itself have no end.
const N_STEPS_MAX: usize = 16;

impl Crate {
    /// Reads the file `root` and all modules below it.
    pub fn read(root: &Path) -> Self {
        let mut reader = Reader { modules: Vec::new(), at: 0, folder: root.with_file_name("") };
        reader.file(root.to_owned());
        Self(reader.modules)
    }

    /// Pairs of files of which the first one uses the second.
    pub fn uses(&self) -> BTreeSet<(&Path, &Path)> {
        let mut uses = BTreeSet::new();
        for (at, module) in self.0.iter().enumerate() {
            let paths = module.paths.iter().filter_map(|path| self.resolve(at, path, N_STEPS_MAX));
            let names = module.names.iter().filter_map(|name| self.item(at, name, N_STEPS_MAX));
            for Place::Module(used) | Place::Item(used) in paths.chain(names) {
                uses.insert((&*module.file, &*self.0[used].file));
            }
        }
        uses.retain(|(user, used)| user != used);
        uses
    }

    /// Where a path in the module `at` leads; `None` if out of the crate.
    fn resolve(&self, at: usize, path: &[String], n_steps: usize) -> Option<Place> {
        let (first, rest) = path.split_first()?;
        let mut place = self.step(at, first, rest.is_empty(), n_steps)?;
        for (i, name) in rest.iter().enumerate() {
            let Place::Module(module) = place else { break };
            let is_last = i + 1 == rest.len();
            place = self.step(module, name, is_last, n_steps).unwrap_or(Place::Item(module));
        }
        Some(place)
    }

    fn step(&self, at: usize, name: &str, is_last: bool, n_steps: usize) -> Option<Place> {
        match name {
            "crate" => return Some(Place::Module(0)),
            "self" => return Some(Place::Module(at)),
            "super" => return Some(Place::Module(self.0[at].parent)),
            _ => {}
        }
        let child = self.0[at].children.get(name).map(|&child| Place::Module(child));
        // A module may have the name of a function.
        match is_last {
            true => self.item(at, name, n_steps).or(child),
            false => child.or_else(|| self.item(at, name, n_steps)),
        }
    }

    /// What has this name in the module `at`, but for its children.
    fn item(&self, at: usize, name: &str, n_steps: usize) -> Option<Place> {
        let module = &self.0[at];
        if module.items.contains(name) {
            return Some(Place::Item(at));
        }
        let n_steps = n_steps.checked_sub(1)?;
        if let Some(path) = module.imports.get(name) {
            return self.resolve(at, path, n_steps);
        }
        module.globs.iter().find_map(|path| match self.resolve(at, path, n_steps)? {
            Place::Module(module) => self.step(module, name, true, n_steps),
            Place::Item(_) => None,
        })
    }
}

struct Reader {
    modules: Vec<Module>,
    /// The module that is being read, and where its children's files lie.
    at: usize,
    folder: PathBuf,
}

impl Reader {
    /// Reads a child, whose own children lie in `folder`.
    fn within(&mut self, folder: PathBuf, read: impl FnOnce(&mut Self) -> usize) -> usize {
        let outer = std::mem::replace(&mut self.folder, folder);
        let child = read(self);
        self.folder = outer;
        child
    }

    fn file(&mut self, path: PathBuf) -> usize {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.module(path, &file.items)
    }

    fn module(&mut self, file: PathBuf, items: &[Item]) -> usize {
        let module = self.modules.len();
        self.modules.push(Module { file, parent: self.at, ..Module::default() });
        let outer = std::mem::replace(&mut self.at, module);
        items.iter().for_each(|item| self.visit_item(item));
        self.at = outer;
        module
    }

    fn import(&mut self, tree: &UseTree, before: &Names, is_handed_on: bool) {
        let with = |name: &dyn ToString| [before.clone(), vec![name.to_string()]].concat();
        let (name, path) = match tree {
            UseTree::Path(tree) => {
                return self.import(&tree.tree, &with(&tree.ident), is_handed_on);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, before, is_handed_on));
            }
            UseTree::Name(name) if name.ident == "self" => (before.last(), before.clone()),
            UseTree::Name(name) => (None, with(&name.ident)),
            UseTree::Rename(name) => (Some(&name.rename.to_string()), with(&name.ident)),
            UseTree::Glob(_) => (None, before.clone()),
        };
        let module = &mut self.modules[self.at];
        match tree {
            UseTree::Glob(_) => module.globs.push(path.clone()),
            _ => {
                let name = name.or(path.last()).cloned().unwrap_or_default();
                module.imports.insert(name, path.clone());
            }
        }
        if !is_handed_on {
            module.paths.insert(path);
        }
    }

    fn mention(&mut self, path: Names) {
        let module = &mut self.modules[self.at];
        match <[String; 1]>::try_from(path) {
            Ok([name]) => module.names.insert(name),
            Err(path) => module.paths.insert(path),
        };
    }

    /// Paths in what is given to a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut n_colons) = (Names::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(name) if n_colons == 2 || path.is_empty() => {
                    path.push(name.to_string());
                    n_colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && n_colons < 2 => n_colons += 1,
                token => {
                    self.mention(std::mem::take(&mut path));
                    n_colons = 0;
                    match token {
                        TokenTree::Ident(name) => path.push(name.to_string()),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        _ => {}
                    }
                }
            }
        }
        self.mention(path);
    }
}

impl Visit<'_> for Reader {
    fn visit_item(&mut self, item: &Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, None),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Use(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            self.modules[self.at].items.extend(name.map(ToString::to_string));
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &ImplItem) {
        if !matches!(item, ImplItem::Fn(function) if is_test(&function.attrs)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        let name = item.ident.to_string();
        let file = self.modules[self.at].file.clone();
        let mut folder = self.folder.join(&name);
        let child = match &item.content {
            Some((_, items)) => self.within(folder, |reader| reader.module(file, items)),
            None => {
                let mut path = folder.with_added_extension("rs");
                if let Some(given) = given_path(&item.attrs) {
                    path = file.with_file_name(given);
                    folder = path.with_file_name("");
                } else if !path.exists() {
                    path = folder.join("mod.rs");
                }
                self.within(folder, |reader| reader.file(path))
            }
        };
        // For another system, another one may have the name.
        self.modules[self.at].children.entry(name).or_insert(child);
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if item.leading_colon.is_none() {
            let is_handed_on = !matches!(item.vis, Visibility::Inherited);
            self.import(&item.tree, &Names::new(), is_handed_on);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.leading_colon.is_none() {
            self.mention(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    /// Names who may see something, and uses nothing.
    fn visit_visibility(&mut self, _: &Visibility) {}
}

/// Whether something is there in tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else { return false };
        let text = list.tokens.to_string();
        let has = |word| text.split(|c: char| !c.is_alphanumeric()).any(|other| other == word);
        list.path.is_ident("cfg") && has("test") && !has("not") && !has("any")
    })
}

/// The file that a `path` names.
fn given_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(MetaNameValue { path, value: Expr::Lit(value), .. })
            if path.is_ident("path") =>
        {
            match &value.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            }
        }
        _ => None,
    })
}
