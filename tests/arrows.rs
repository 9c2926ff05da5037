//! The map in `src/lib.rs` is true: a room uses only the rooms below it, and no files use one another in a circle.
//!
//! An *arrow* leads from a file to every file that defines an item it names, in `use` or in any other path. Re-exports are
//! followed to the definition. What is compiled for unit tests alone has no arrows. The order is read from the module
//! documentation: a list that follows the words [`MARK`] has one line a rank, outermost first. All modules of that
//! file must be in it, and modules of one line do not know each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree, Visibility};

/// What a list of ranks begins with.
const MARK: &str = "each knows only those below it";

/// The path of a module, from the crate's root.
type Module = Vec<String>;

/// A source file that stands for a module.
#[derive(Default)]
struct File {
    source: PathBuf,
    items: BTreeSet<String>,
    children: BTreeSet<String>,
    /// What a name stands for that `use` brings in: the path as written.
    imports: BTreeMap<String, Vec<String>>,
    exports: BTreeSet<String>,
    /// Every path that the file names.
    paths: BTreeSet<Vec<String>>,
    /// The ranks of its children, if its documentation has a list of them.
    ranks: Vec<BTreeSet<String>>,
}

/// The files of one crate, and how they use one another.
struct House {
    files: BTreeMap<Module, File>,
    read: Box<dyn Fn(&Path) -> String>,
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn text(attribute: &Attribute, name: &str) -> Option<String> {
    let syn::Meta::NameValue(meta) = &attribute.meta else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &meta.value else { return None };
    meta.path.is_ident(name).then(|| text.value())
}

/// The lines of a list of ranks: the modules that each names before its first colon.
fn ranks(attributes: &[Attribute]) -> Vec<BTreeSet<String>> {
    let lines = attributes.iter().filter_map(|attribute| text(attribute, "doc"));
    let listed = lines.skip_while(|line| !line.contains(MARK)).skip_while(|line| !line.starts_with(" - "));
    let list = listed.take_while(|line| !line.trim().is_empty());
    list.filter_map(|line| line.trim_start().strip_prefix("- ").map(str::to_owned))
        .map(|line| {
            let (names, _) = line.split_once(": ").unwrap_or((&line, ""));
            names
                .split('`')
                .skip(1)
                .step_by(2)
                .map(|name| name.trim_start_matches("mod@").to_owned())
                .collect()
        })
        .collect()
}

impl House {
    /// Reads the crate whose root file is `root`, and every file that `mod` declares in it.
    fn of(root: &str, read: impl Fn(&Path) -> String + 'static) -> House {
        let mut house = House { files: BTreeMap::new(), read: Box::new(read) };
        let dir = Path::new(root).parent().unwrap().to_path_buf();
        house.add(Vec::new(), Path::new(root).to_path_buf(), &dir);
        house
    }

    /// Adds a file; its children are in `dir`.
    fn add(&mut self, module: Module, source: PathBuf, dir: &Path) {
        let parsed = syn::parse_file(&(self.read)(&source)).unwrap();
        let mut file = File { ranks: ranks(&parsed.attrs), source, ..File::default() };
        let beside = file.source.parent().unwrap().to_path_buf();
        for item in parsed.items {
            match &item {
                Item::Mod(child) if child.content.is_none() && !is_for_tests(&child.attrs) => {
                    let name = child.ident.to_string();
                    let within: Module = module.iter().cloned().chain([name.clone()]).collect();
                    let given = child.attrs.iter().find_map(|attribute| text(attribute, "path"));
                    let candidates = match &given {
                        Some(path) => vec![normal(&beside.join(path))],
                        None => vec![dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")],
                    };
                    let source = candidates.iter().find(|path| path.exists()).unwrap().clone();
                    let below = match &given {
                        Some(_) => source.parent().unwrap().to_path_buf(),
                        None => dir.join(&name),
                    };
                    if file.children.insert(name) {
                        self.add(within, source, &below);
                    }
                }
                _ => file.visit_item(&item),
            }
        }
        self.files.insert(module, file);
    }

    /// The file that defines what `path` leads to, as `from` names it; none if it is not of this crate.
    fn target(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let file = &self.files[from];
        let (mut at, rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => {
                let up = path.iter().take_while(|segment| *segment == "super").count();
                (from[..from.len().checked_sub(up)?].to_vec(), &path[up..])
            }
            first if file.children.contains(first) => (from.clone(), path),
            first => {
                let import = file.imports.get(first).filter(|import| import.first() != path.first())?;
                let full: Vec<String> = import.iter().chain(&path[1..]).cloned().collect();
                return if depth > 8 { None } else { self.target(from, &full, depth + 1) };
            }
        };
        for (taken, segment) in rest.iter().enumerate() {
            let file = self.files.get(&at)?;
            if file.children.contains(segment) {
                at.push(segment.clone());
            } else if !file.items.contains(segment) && file.exports.contains(segment) && depth < 8 {
                let full: Vec<String> =
                    file.imports[segment].iter().chain(&rest[taken + 1..]).cloned().collect();
                return self.target(&at, &full, depth + 1);
            } else {
                break;
            }
        }
        Some(at)
    }

    /// All arrows, but for those within a file.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let all = self.files.iter().map(|(module, file)| {
            let targets = file.paths.iter().filter_map(|path| self.target(module, path, 0));
            (module, targets.filter(|target| target != module).collect())
        });
        all.collect()
    }

    /// What contradicts the map.
    fn faults(&self) -> Vec<String> {
        let arrows = self.arrows();
        let mut faults = self.upward(&arrows);
        faults.extend(self.circles(&arrows));
        for (module, file) in &self.files {
            let ranked: BTreeSet<&String> = file.ranks.iter().flatten().collect();
            if !file.ranks.is_empty() && ranked != file.children.iter().collect() {
                faults.push(format!(
                    "{}: the map has {ranked:?}, the code {:?}",
                    shown(module),
                    file.children
                ));
            }
        }
        faults
    }

    /// Arrows between ranked modules that do not lead down.
    fn upward(&self, arrows: &BTreeMap<&Module, BTreeSet<Module>>) -> Vec<String> {
        let mut faults = Vec::new();
        for (from, to) in arrows.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (*from, to)))
        {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            let ranks = &self.files[&from[..common].to_vec()].ranks;
            let place = |module: &Module| {
                let name = module.get(common)?;
                ranks.iter().position(|rank| rank.contains(name))
            };
            if let (Some(a), Some(b)) = (place(from), place(to))
                && a >= b
            {
                faults.push(format!(
                    "{} uses {}, which is not below it",
                    self.files[from].source.display(),
                    shown(to)
                ));
            }
        }
        faults
    }

    /// Files that use one another in a circle: each that reaches itself, with those on its way.
    fn circles(&self, arrows: &BTreeMap<&Module, BTreeSet<Module>>) -> Vec<String> {
        let reached = |from: &Module| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<&Module> = arrows[from].iter().collect();
            while let Some(next) = open.pop() {
                if seen.insert(next) {
                    open.extend(&arrows[next]);
                }
            }
            seen
        };
        let reach: BTreeMap<&Module, BTreeSet<&Module>> =
            arrows.keys().map(|module| (*module, reached(module))).collect();
        let circle = |module: &&Module| -> BTreeSet<String> {
            let with = reach[*module].iter().filter(|other| reach[**other].contains(*module));
            with.map(|other| shown(other)).collect()
        };
        let circles: BTreeSet<_> = arrows.keys().map(circle).filter(|circle| !circle.is_empty()).collect();
        circles.into_iter().map(|circle| format!("a circle of files: {circle:?}")).collect()
    }
}

/// Collects what a file defines, declares and names.
impl<'ast> Visit<'ast> for File {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, Some(&item.ident)),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            _ => return,
        };
        if is_for_tests(attributes) {
            return;
        }
        self.items.extend(name.map(ToString::to_string));
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let exports = !matches!(item.vis, Visibility::Inherited);
        let mut open = vec![(Vec::new(), &item.tree)];
        while let Some((mut path, tree)) = open.pop() {
            let name = match tree {
                UseTree::Path(tree) => {
                    path.push(tree.ident.to_string());
                    open.push((path, &tree.tree));
                    continue;
                }
                UseTree::Group(group) => {
                    open.extend(group.items.iter().map(|tree| (path.clone(), tree)));
                    continue;
                }
                UseTree::Glob(_) => None,
                UseTree::Name(tree) if tree.ident == "self" => path.last().cloned(),
                UseTree::Name(tree) => {
                    path.push(tree.ident.to_string());
                    path.last().cloned()
                }
                UseTree::Rename(tree) => {
                    path.push(tree.ident.to_string());
                    Some(tree.rename.to_string())
                }
            };
            if let Some(name) = name {
                if exports {
                    self.exports.insert(name.clone());
                }
                self.imports.insert(name, path.clone());
            }
            // A re-export is no use: whoever names it has the arrow.
            if !exports {
                self.paths.insert(path);
            }
        }
    }

    /// A single word is no arrow: `use` has it, or it is of this file.
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.paths.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    /// What a macro is given is not parsed: any words that colons join may be a path.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let tokens = format!("{}", call.tokens).replace(" :: ", "::");
        let words = tokens.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let paths = words.filter(|word| word.contains("::"));
        self.paths.extend(paths.map(|path| path.split("::").map(str::to_owned).collect()));
    }
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "the crate's root".to_owned() } else { module.join("::") }
}

/// `a/../b` as `b`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        if part.as_os_str() == ".." {
            path.pop()
        } else {
            path.push(part);
            true
        };
        path
    })
}

const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The library, with `line` put before the first item of `file`.
fn with(file: &'static str, line: &'static str) -> House {
    House::of(LIBRARY, move |path| {
        let text = read(path);
        if !path.ends_with(file) {
            return text;
        }
        let first = text.find("\nuse ").unwrap();
        format!("{}\n{line}{}", &text[..first], &text[first..])
    })
}

#[test]
fn rooms_use_only_those_below_them_and_no_files_form_a_circle() {
    let manifest: toml::Table =
        read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).parse().unwrap();
    let programs = manifest["bin"].as_array().unwrap().iter();
    let roots = programs
        .map(|program| format!("{}/{}", env!("CARGO_MANIFEST_DIR"), program["path"].as_str().unwrap()));
    let mut faults = Vec::new();
    for root in [LIBRARY.to_owned()].into_iter().chain(roots) {
        faults.extend(House::of(&root, read).faults());
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn an_arrow_that_leads_up_is_found() {
    let house = with("src/sys/file/inode.rs", "use crate::policy::Policy;");
    let faults = house.faults().join("\n");
    assert!(faults.contains("src/sys/file/inode.rs uses policy::load, which is not below it"), "{faults}");
    // Not in `use`, and within a room.
    let house =
        with("src/sys/file/inode.rs", "fn up() { log::info!(\"{:?}\", crate::sys::path::root::read_at) }");
    let faults = house.faults().join("\n");
    assert!(faults.contains("src/sys/file/inode.rs uses sys::path::root, which is not below it"), "{faults}");
}

#[test]
fn a_circle_of_files_is_found() {
    let house = with("src/sys/share/lock.rs", "use super::swap::Name;");
    let faults = house.faults().join("\n");
    assert!(faults.contains("a circle of files"), "{faults}");
}
