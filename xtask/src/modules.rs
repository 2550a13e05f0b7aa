//! The folder rule, and the cycles of imports inside a crate.
//!
//! A crate with folders may declare their order, from the lowest:
//!
//! ```toml
//! [package.metadata.ioasid]
//! floor = 3
//! folders = ["base", "space", "commands"]
//! cycle = 23                  # the longest cycle of imports that is still there; 3 without the key
//! ```
//!
//! A path in a file of one of these folders must not name a module of a folder above it. Cycles are
//! counted in files; `lib.rs`, the table of contents, is no part of one. The number can only fall: a
//! crate whose longest cycle is shorter than it says breaks the rule as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use syn::{
    UseTree,
    visit::{self, Visit},
};

/// Files of the longest cycle that is allowed where a crate does not say otherwise: a module with
/// two parts that know it.
pub const CYCLE: usize = 3;

/// A path of modules below the crate, such as `space::ioas`; the crate itself is empty.
type Module = Vec<String>;

/// The modules of one crate and what they name.
#[derive(Debug, Default)]
pub struct Modules {
    /// Each module that is a file: what it names of the crate, as far as paths say.
    files: BTreeMap<Module, BTreeSet<Module>>,
    /// What a module re-exports under a name.
    exports: BTreeMap<(Module, String), Module>,
}

impl Modules {
    /// Reads the source below `src`.
    ///
    /// # Errors
    /// If a file cannot be read or is no Rust.
    pub fn read(src: &Path) -> Result<Modules> {
        let mut sources = Vec::new();
        collect(src, &mut Vec::new(), &mut sources)?;
        let sources = sources
            .iter()
            .map(|(module, text)| (module.clone(), text.as_str()));
        Modules::from_sources(sources)
    }

    /// From the text of each module.
    ///
    /// # Errors
    /// If a text is no Rust.
    pub fn from_sources<'a>(
        sources: impl IntoIterator<Item = (Module, &'a str)>,
    ) -> Result<Modules> {
        let mut modules = Modules::default();
        let mut named = Vec::new();
        for (module, text) in sources {
            let file = syn::parse_file(text)
                .with_context(|| format!("reading the module {}", module.join("::")))?;
            let mut names = Names {
                module: module.clone(),
                paths: Vec::new(),
                exports: Vec::new(),
            };
            names.visit_file(&file);
            for (name, path) in names.exports {
                modules.exports.insert((module.clone(), name), path);
            }
            // A folder is a module too, whichever file declares it.
            for depth in 0..=module.len() {
                modules.files.entry(module[..depth].to_vec()).or_default();
            }
            named.push((module, names.paths));
        }
        for (module, paths) in named {
            let found: BTreeSet<_> = paths
                .iter()
                .filter_map(|path| modules.resolve(path, 0))
                .filter(|found| *found != module && !found.is_empty())
                .collect();
            modules.files.insert(module, found);
        }
        Ok(modules)
    }

    /// The module that defines what `path` names, through re-exports.
    fn resolve(&self, path: &[String], depth: usize) -> Option<Module> {
        // Re-exports that lead to one another do not compile; a glob may still fool this reader.
        if depth > 8 {
            return None;
        }
        let mut module = Module::new();
        for (index, name) in path.iter().enumerate() {
            let mut child = module.clone();
            child.push(name.clone());
            if self.files.contains_key(&child) {
                module = child;
                continue;
            }
            if let Some(target) = self.exports.get(&(module.clone(), name.clone())) {
                let mut target = target.clone();
                target.extend_from_slice(&path[index + 1..]);
                return self.resolve(&target, depth + 1);
            }
            break;
        }
        Some(module)
    }

    /// Every path that points up between `folders`, which are ordered from the lowest; one sentence
    /// each, and one for each folder that is not there.
    pub fn breaches(&self, folders: &[String]) -> Vec<String> {
        let floor = |module: &Module| {
            folders
                .iter()
                .position(|folder| module.first() == Some(folder))
        };
        let mut breaches = Vec::new();
        for folder in folders {
            if !self
                .files
                .keys()
                .any(|module| module.first() == Some(folder))
            {
                breaches.push(format!("there is no folder `{folder}`"));
            }
        }
        for (module, named) in &self.files {
            for other in named {
                if let (Some(own), Some(above)) = (floor(module), floor(other))
                    && above > own
                {
                    breaches.push(format!(
                        "{} names {}, which is above it",
                        module.join("::"),
                        other.join("::")
                    ));
                }
            }
        }
        breaches
    }

    /// The files of the longest cycle; empty if there is none.
    pub fn longest_cycle(&self) -> Vec<String> {
        let keys: Vec<_> = self.files.keys().collect();
        let number = |module: &Module| keys.binary_search(&module).ok();
        let mut graph = DiGraphMap::<usize, ()>::new();
        for (module, named) in &self.files {
            for other in named {
                if let (Some(from), Some(to)) = (number(module), number(other)) {
                    graph.add_edge(from, to, ());
                }
            }
        }
        let cycles = tarjan_scc(&graph).into_iter();
        let longest = cycles.filter(|cycle| cycle.len() > 1).max_by_key(Vec::len);
        let mut names: Vec<_> = longest
            .unwrap_or_default()
            .into_iter()
            .map(|index| keys[index].join("::"))
            .collect();
        names.sort();
        names
    }

    /// Number of modules that are files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Each file below `folder` with its path of modules.
fn collect(folder: &Path, module: &mut Module, sources: &mut Vec<(Module, String)>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry.context("reading a folder")?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, sources)?;
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let mut own = module.clone();
            if !matches!(name.as_str(), "mod" | "lib" | "main") {
                own.push(name);
            }
            sources.push((own, text));
        }
    }
    Ok(())
}

/// The paths of a file that begin with `crate`, `self` or `super`, or in a `use` with anything.
struct Names {
    module: Module,
    /// From the crate's root.
    paths: Vec<Module>,
    exports: Vec<(String, Module)>,
}

impl Names {
    /// A path as seen from the crate's root, if it is one of this crate.
    fn absolute(&self, path: &[String], in_use: bool) -> Option<Module> {
        let mut base = self.module.clone();
        let rest = match path.first()?.as_str() {
            "crate" => {
                base.clear();
                &path[1..]
            }
            "self" => &path[1..],
            "super" => path,
            // A child module, or another crate, which then leads nowhere.
            _ if in_use => path,
            _ => return None,
        };
        let ups = rest.iter().take_while(|name| *name == "super").count();
        base.truncate(base.len().checked_sub(ups)?);
        base.extend_from_slice(&rest[ups..]);
        Some(base)
    }

    fn use_tree(&mut self, tree: &UseTree, before: &mut Module, public: bool) {
        let (name, exported) = match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.use_tree(&path.tree, before, public);
                before.pop();
                return;
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, before, public);
                }
                return;
            }
            UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string()),
            UseTree::Rename(rename) => (rename.ident.to_string(), rename.rename.to_string()),
            _ => (String::new(), String::new()),
        };
        let mut path = before.clone();
        if !name.is_empty() && name != "self" {
            path.push(name);
        }
        let Some(absolute) = self.absolute(&path, true) else {
            return;
        };
        if public && !exported.is_empty() {
            self.exports.push((exported, absolute.clone()));
        }
        // What a module re-exports, its users name.
        if !public {
            self.paths.push(absolute);
        }
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        self.use_tree(&item.tree, &mut Module::new(), public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Module = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.paths.extend(self.absolute(&names, false));
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        // A test may name what it likes.
        let test = module.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|path| path.is_ident("test"))
        });
        if !test && module.content.is_some() {
            self.module.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(sources: &[(&str, &str)]) -> Modules {
        let sources = sources.iter().map(|(module, text)| {
            let module = module.split("::").filter(|name| !name.is_empty());
            (module.map(str::to_owned).collect(), *text)
        });
        Modules::from_sources(sources).unwrap()
    }

    fn folders() -> [String; 2] {
        ["low", "high"].map(str::to_owned)
    }

    #[test]
    fn a_path_down_is_fine_and_a_path_up_is_not() {
        let down = modules(&[
            ("high::a", "use crate::low::b::B;"),
            ("low::b", "use super::c; pub struct B;"),
            ("low::c", ""),
        ]);
        assert_eq!(down.breaches(&folders()), Vec::<String>::new());
        for up in [
            "use crate::high::a::A;",
            "use super::super::high::a;",
            "fn f() { crate::high::a::g(); }",
            "type T = Vec<crate::high::a::A>;",
        ] {
            let up = modules(&[("high::a", ""), ("low::b", up)]);
            assert_eq!(
                up.breaches(&folders()),
                ["low::b names high::a, which is above it"]
            );
        }
    }

    #[test]
    fn a_re_export_hides_no_arrow() {
        let up = modules(&[
            ("", "pub use high::A;"),
            ("high", "pub(crate) use a::A;"),
            ("high::a", "pub struct A;"),
            ("low::b", "use crate::A;"),
        ]);
        assert_eq!(
            up.breaches(&folders()),
            ["low::b names high::a, which is above it"]
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_a_breach() {
        let none = modules(&[("low::b", "")]);
        assert_eq!(none.breaches(&folders()), ["there is no folder `high`"]);
    }

    #[test]
    fn tests_inside_a_file_may_name_what_they_like() {
        let test = "#[cfg(test)] mod tests { use crate::high::a; }";
        let test = modules(&[("high::a", ""), ("low::b", test)]);
        assert_eq!(test.breaches(&folders()), Vec::<String>::new());
    }

    #[test]
    fn the_longest_cycle_is_found_and_the_table_of_contents_is_none() {
        let cycle = modules(&[
            ("", "pub use a::A;"),
            ("a", "use crate::b;"),
            ("b", "use crate::c::C;"),
            ("c", "use crate::A;"),
            ("d", "use crate::e;"),
            ("e", "use crate::d;"),
        ]);
        assert_eq!(cycle.longest_cycle(), ["a", "b", "c"]);
        let none = modules(&[("", "mod a; mod b;"), ("a", "use crate::b;"), ("b", "")]);
        assert!(none.longest_cycle().is_empty());
    }
}
