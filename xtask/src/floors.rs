//! The floor rule: a dependency between crates of the workspace points strictly down.
//!
//! Every crate says in its manifest where it stands:
//!
//! ```toml
//! [package.metadata.ioasid]
//! floor = 3          # or: outside = true
//! ```
//!
//! A crate *outside* the floors may use any of them. It may be used by a floor only if it knows
//! nothing of the workspace itself, as an arrow through it could otherwise point up again.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::modules::{CYCLE, Modules};

/// Where a crate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this floor.
    Floor(u32),
    /// Outside: tools, benchmarks, clients.
    Outside,
}

/// The crates of a workspace, each with its place and the crates of the workspace it depends on
/// (in any way: for building and testing too).
#[derive(Clone, Debug, Default)]
pub struct House {
    crates: BTreeMap<String, (Option<Place>, Vec<String>)>,
    insides: Vec<Inside>,
}

/// What a crate says of its own files ([`crate::modules`]).
#[derive(Clone, Debug)]
struct Inside {
    name: String,
    folder: PathBuf,
    /// From the lowest.
    folders: Vec<String>,
    /// Files of its longest cycle of imports.
    cycle: Option<usize>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    metadata: Option<PackageMetadata>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Only a dependency inside the workspace has one.
    path: Option<String>,
}

#[derive(Deserialize)]
struct PackageMetadata {
    ioasid: Option<Stand>,
}

#[derive(Deserialize)]
struct Stand {
    floor: Option<u32>,
    #[serde(default)]
    outside: bool,
    #[serde(default)]
    folders: Vec<String>,
    cycle: Option<usize>,
}

impl House {
    /// From the output of `cargo metadata --no-deps --format-version 1`.
    ///
    /// # Errors
    /// If it is not that.
    pub fn from_metadata(json: &str) -> Result<House> {
        let metadata: Metadata = serde_json::from_str(json).context("reading cargo metadata")?;
        let mut house = House::default();
        for package in metadata.packages {
            let stand = package.metadata.and_then(|metadata| metadata.ioasid);
            let place = match &stand {
                Some(Stand {
                    floor: Some(floor),
                    outside: false,
                    ..
                }) => Some(Place::Floor(*floor)),
                Some(Stand {
                    floor: None,
                    outside: true,
                    ..
                }) => Some(Place::Outside),
                _ => None,
            };
            if let (Some(stand), Some(folder)) = (stand, package.manifest_path.parent()) {
                house.insides.push(Inside {
                    name: package.name.clone(),
                    folder: folder.join("src"),
                    folders: stand.folders,
                    cycle: stand.cycle,
                });
            }
            let inside = package.dependencies.into_iter();
            let inside = inside.filter(|dependency| dependency.path.is_some());
            let inside = inside.map(|dependency| dependency.name).collect();
            house.crates.insert(package.name, (place, inside));
        }
        Ok(house)
    }

    /// Adds a crate; for tests of the rule.
    #[must_use]
    pub fn with(mut self, name: &str, place: Option<Place>, dependencies: &[&str]) -> House {
        let dependencies = dependencies.iter().map(|name| (*name).to_owned());
        self.crates
            .insert(name.to_owned(), (place, dependencies.collect()));
        self
    }

    /// The crates of the workspace that `name` depends on directly.
    pub fn dependencies(&self, name: &str) -> Option<&[String]> {
        self.crates.get(name).map(|(_, inside)| inside.as_slice())
    }

    /// Number of crates on floors.
    pub fn on_floors(&self) -> usize {
        let places = self.crates.values().map(|(place, _)| place);
        places
            .filter(|place| matches!(place, Some(Place::Floor(_))))
            .count()
    }

    /// Every breach of the rule, one sentence each; empty if there is none.
    pub fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for (name, (place, dependencies)) in &self.crates {
            let Some(place) = place else {
                breaches.push(format!(
                    "{name} says neither `floor` nor `outside` in [package.metadata.ioasid]"
                ));
                continue;
            };
            let Place::Floor(floor) = place else { continue };
            for dependency in dependencies {
                match self.crates.get(dependency) {
                    Some((Some(Place::Floor(below)), _)) if below < floor => {}
                    Some((Some(Place::Floor(other)), _)) => breaches.push(format!(
                        "{name} (floor {floor}) depends on {dependency} (floor {other}): not below"
                    )),
                    Some((Some(Place::Outside), inside)) if inside.is_empty() => {}
                    Some((Some(Place::Outside), inside)) => breaches.push(format!(
                        "{name} (floor {floor}) depends on {dependency}, which stands outside and \
                         depends on {}",
                        inside.join(", ")
                    )),
                    // Reported at its own turn, or no crate of the workspace.
                    Some((None, _)) | None => {}
                }
            }
        }
        breaches
    }
}

impl House {
    /// Every breach of the folder rule inside a crate, one sentence each, and the longest cycle of
    /// imports of each crate that has one.
    ///
    /// # Errors
    /// If a source file cannot be read.
    pub fn inside(&self) -> Result<(Vec<String>, Vec<String>)> {
        let (mut breaches, mut cycles) = (Vec::new(), Vec::new());
        for inside in &self.insides {
            let name = &inside.name;
            let modules = Modules::read(&inside.folder).with_context(|| name.clone())?;
            let own = modules.breaches(&inside.folders);
            breaches.extend(own.into_iter().map(|breach| format!("{name}: {breach}")));
            let cycle = modules.longest_cycle();
            let allowed = inside.cycle.unwrap_or(CYCLE);
            let falls = inside.cycle.is_some_and(|cycle| cycle > CYCLE);
            if cycle.len() > allowed || (falls && cycle.len() < allowed) {
                breaches.push(format!(
                    "{name}: the longest cycle of imports has {} files, not {allowed}: {}",
                    cycle.len(),
                    cycle.join(", ")
                ));
            }
            if !cycle.is_empty() {
                cycles.push(format!(
                    "{name}: {} of {} files",
                    cycle.len(),
                    modules.len()
                ));
            }
        }
        Ok((breaches, cycles))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_down_is_fine_and_level_or_up_is_not() {
        let house = House::default()
            .with("core", Some(Place::Floor(0)), &[])
            .with("iommu", Some(Place::Floor(2)), &["core"])
            .with("vfio", Some(Place::Floor(4)), &["core", "iommu"]);
        assert_eq!(house.breaches(), Vec::<String>::new());
        let level = house.clone().with("mdev", Some(Place::Floor(4)), &["vfio"]);
        assert_eq!(level.breaches().len(), 1);
        let up = house.with("core", Some(Place::Floor(0)), &["vfio"]);
        assert_eq!(
            up.breaches(),
            ["core (floor 0) depends on vfio (floor 4): not below"]
        );
    }

    #[test]
    fn no_arrow_goes_up_through_a_crate_outside() {
        let house = House::default()
            .with("core", Some(Place::Floor(0)), &["tool"])
            .with("tool", Some(Place::Outside), &[]);
        assert_eq!(house.breaches(), Vec::<String>::new());
        let through = house.with("tool", Some(Place::Outside), &["top"]);
        let through = through.with("top", Some(Place::Floor(9)), &[]);
        assert_eq!(through.breaches().len(), 1);
    }

    #[test]
    fn a_crate_that_says_nothing_is_a_breach() {
        let house = House::default().with("new", None, &[]);
        assert_eq!(house.breaches().len(), 1);
    }
}
