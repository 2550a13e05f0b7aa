//! Debian packages without touching the host: apt with state, cache and sources of its own.
//!
//! The mirror's address is the one that the machine's apt is set up with; apt checks signatures and
//! sums as always. Nothing is installed.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Cache;

/// The suite that carries the newest kernel.
pub const NEWEST: &str = "sid";

/// The release whose QEMU and kernel are taken, and where newer versions of them are built for it.
const GUEST: &str = "trixie";
/// The suite with newer versions that were built for that release.
pub const BACKPORTS: &str = "trixie-backports";

/// Where packages come from.
#[derive(Args, Clone, Debug, Default)]
pub struct Origin {
    /// The Debian mirror [default: the one of this machine's own apt]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

/// One entry of the machine's own configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    uri: String,
    suites: Vec<String>,
    signed_by: Option<String>,
}

/// A private apt.
#[derive(Debug)]
pub struct Apt {
    config: PathBuf,
    downloads: PathBuf,
    archives: PathBuf,
}

impl Apt {
    /// An apt that knows the machine's own release and [`NEWEST`], with fresh lists.
    ///
    /// # Errors
    /// If apt is missing, no Debian mirror is known, or its lists cannot be had.
    pub fn new(cache: &Cache, origin: &Origin) -> Result<Self> {
        let suites: Vec<_> = own_suite().into_iter().chain([NEWEST.to_owned()]).collect();
        Self::with_suites(cache, origin, "apt", &suites)
    }

    /// An apt that knows the guests' release alone, and what was ported back to it: for programs
    /// that bring all of their libraries along.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn of_guests(cache: &Cache, origin: &Origin) -> Result<Self> {
        let suites = [GUEST.to_owned(), BACKPORTS.to_owned()];
        Self::with_suites(cache, origin, "apt-guests", &suites)
    }

    fn with_suites(cache: &Cache, origin: &Origin, name: &str, suites: &[String]) -> Result<Self> {
        let entry = match &origin.mirror {
            Some(uri) => Entry {
                uri: uri.clone(),
                ..Entry::default()
            },
            None => own_mirror()?,
        };
        let folder = cache.folder(name)?;
        for inside in [
            "state/lists/partial",
            "cache/archives/partial",
            "etc/sources.d",
        ] {
            cache.folder(Path::new(name).join(inside))?;
        }
        let downloads = cache.folder(Path::new(name).join("downloads"))?;
        write(
            &folder.join("etc/sources.d/debian.sources"),
            &sources(&entry, suites),
        )?;
        write(&folder.join("state/status"), "")?;
        let config = folder.join("etc/apt.conf");
        write(&config, &configuration(&folder))?;
        let archives = folder.join("cache/archives");
        let apt = Self {
            config,
            downloads,
            archives,
        };
        println!("fetch: reading the package lists");
        apt.call("apt-get", &["--quiet", "update"])
            .context("apt could not read the package lists (is the mirror reachable? `--mirror URL` names another)")?;
        Ok(apt)
    }

    /// Versions of the packages whose names start with `prefix`, as (name, version).
    pub fn search(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let names = self.call("apt-cache", &["pkgnames", prefix])?;
        let mut found = Vec::new();
        for name in names.lines() {
            let versions = self.call("apt-cache", &["madison", name])?;
            let version = versions
                .lines()
                .next()
                .and_then(|line| line.split('|').nth(1));
            if let Some(version) = version {
                found.push((name.to_owned(), version.trim().to_owned()));
            }
        }
        Ok(found)
    }

    /// Downloads `package` (`NAME`, `NAME=VERSION` or `NAME/SUITE`): the file.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        clear(&self.downloads)?;
        println!("fetch: fetching {package}");
        self.call("apt-get", &["--quiet", "download", package])
            .with_context(|| format!("apt could not fetch `{package}`"))?;
        debs(&self.downloads)?
            .pop()
            .context("apt said it fetched a package, but there is none")
    }

    /// Downloads these packages: the files.
    pub fn download_all(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        clear(&self.downloads)?;
        println!("fetch: fetching {}", packages.join(", "));
        self.call("apt-get", &[&["--quiet", "download"], packages].concat())
            .with_context(|| format!("apt could not fetch {}", packages.join(", ")))?;
        debs(&self.downloads)
    }

    /// Downloads `package` and all that it depends on, as if nothing were installed: the files.
    pub fn download_closure(&self, package: &str) -> Result<Vec<PathBuf>> {
        clear(&self.archives)?;
        println!("fetch: fetching {package} and what it depends on");
        let install = ["install", "--download-only", "--yes", "--quiet"];
        let which = ["--no-install-recommends", "--target-release", BACKPORTS];
        self.call("apt-get", &[&install[..], &which[..], &[package]].concat())
            .with_context(|| format!("apt could not fetch `{package}`"))?;
        let files: Vec<_> = debs(&self.archives)?;
        if files.is_empty() {
            bail!("apt said it fetched packages, but there are none");
        }
        Ok(files)
    }

    /// What `package` depends on directly, by name.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.call("apt-cache", &["depends", package])?;
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(ToOwned::to_owned).collect())
    }

    /// The package `name` of the machine's own release, so that it links with what is installed.
    pub fn download_own(&self, name: &str) -> Result<PathBuf> {
        match own_suite() {
            Some(suite) => self.download(&format!("{name}/{suite}")),
            None => self.download(name),
        }
    }

    fn call(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(tool)
            .args(arguments)
            .env("APT_CONFIG", &self.config)
            .current_dir(&self.downloads)
            .stdin(Stdio::null())
            .output()
            .with_context(|| {
                format!("`{tool}` could not be run; the sources are fetched as Debian packages")
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{tool} {}` failed ({}):\n{}",
                arguments.join(" "),
                output.status,
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The packages in `folder`, by name.
fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = crate::workspace::read_dir(folder)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    files.sort();
    Ok(files)
}

/// Removes the packages in `folder`.
pub fn clear(folder: &Path) -> Result<()> {
    for old in debs(folder)? {
        fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Everything private, no translations, and no complaint about a snapshot's age.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{folder}/etc/sources.d";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "5";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Sandbox::User "";
"#
    )
}

fn sources(entry: &Entry, suites: &[String]) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
        entry.uri,
        suites.join(" ")
    );
    if let Some(key) = &entry.signed_by {
        let _ = writeln!(text, "Signed-By: {key}");
    }
    text
}

/// The code name of the machine's own release, if it is Debian.
fn own_suite() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    (value("ID=")? == "debian").then(|| value("VERSION_CODENAME="))?
}

fn own_mirror() -> Result<Entry> {
    let mut texts = Vec::new();
    let parts =
        crate::workspace::read_dir(Path::new("/etc/apt/sources.list.d")).unwrap_or_default();
    for path in parts
        .into_iter()
        .chain([PathBuf::from("/etc/apt/sources.list")])
    {
        texts.extend(fs::read_to_string(&path).map(|text| (path, text)));
    }
    let mut entries = Vec::new();
    for (path, text) in &texts {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => entries.extend(stanzas(text)),
            Some("list") => entries.extend(lines(text)),
            _ => {}
        }
    }
    let suite = own_suite();
    let own = |entry: &Entry| {
        suite
            .as_ref()
            .is_some_and(|suite| entry.suites.contains(suite))
    };
    let debian = |entry: &Entry| entry.uri.trim_end_matches('/').ends_with("/debian");
    let mut candidates = entries
        .into_iter()
        .filter(|entry| debian(entry) && (own(entry) || suite.is_none()));
    candidates.next().context(
        "this machine's apt knows no Debian mirror; name one with `--mirror URL` \
         (its keys must be known: package debian-archive-keyring)",
    )
}

/// Entries of a `.sources` file.
fn stanzas(text: &str) -> Vec<Entry> {
    let field = |stanza: &str, key: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().to_owned())
    };
    let entry = |stanza: &str| {
        let uris = field(stanza, "URIs:")?;
        Some(Entry {
            uri: uris.split_whitespace().next()?.to_owned(),
            suites: words(&field(stanza, "Suites:")?),
            // A key that is written into the file itself goes over several lines: leave it to apt.
            signed_by: field(stanza, "Signed-By:").filter(|key| key.starts_with('/')),
        })
    };
    let disabled = |stanza: &&str| field(stanza, "Enabled:").is_none_or(|value| value != "no");
    text.split("\n\n")
        .filter(disabled)
        .filter_map(entry)
        .collect()
}

/// Entries of a `.list` file.
fn lines(text: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut fields = rest.split_whitespace();
        Some(Entry {
            uri: fields.next()?.to_owned(),
            suites: vec![fields.next()?.to_owned()],
            signed_by: options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(ToOwned::to_owned),
        })
    };
    text.lines().filter_map(entry).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_source_are_read() {
        let expected = Entry {
            uri: "http://mirror.example/debian".to_owned(),
            suites: vec!["stable".to_owned()],
            signed_by: Some("/usr/share/keyrings/k.gpg".to_owned()),
        };
        let list = "# a comment\ndeb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian stable main\ndeb-src http://x y main\n";
        assert_eq!(lines(list), std::slice::from_ref(&expected));
        let stanza = "Types: deb\nURIs: http://mirror.example/debian\nSuites: stable\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nEnabled: no\nURIs: http://off.example\nSuites: stable\n";
        assert_eq!(stanzas(stanza), [expected]);
    }

    #[test]
    fn the_private_list_names_the_suites_and_the_key() {
        let entry = Entry {
            uri: "http://mirror.example/debian".to_owned(),
            suites: Vec::new(),
            signed_by: Some("/k.gpg".to_owned()),
        };
        let text = sources(&entry, &["stable", "sid"].map(ToOwned::to_owned));
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: stable sid\nComponents: main\nSigned-By: /k.gpg\n"
        );
    }
}
