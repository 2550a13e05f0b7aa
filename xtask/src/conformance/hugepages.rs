//! Huge pages, which some tests map: lent to the host's pool for a run, and taken back.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use xtask::fetch::Cache;

/// What the tests use at once.
const NEEDED: u64 = 120;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The pool of 2 MiB pages, as it is during a run. Dropping it takes back what was lent.
#[derive(Debug)]
pub(crate) struct Hugepages {
    free: u64,
    /// Why there are not more.
    reason: Option<String>,
    /// The pool's size before, and where that is written down in case the runner is killed.
    before: Option<(u64, PathBuf)>,
}

impl Hugepages {
    /// Grows the pool to [`NEEDED`] free pages if `allowed` and possible.
    ///
    /// # Errors
    /// If the pool could not be put back as it was.
    pub(crate) fn lend(cache: &Cache, allowed: bool) -> Result<Self> {
        let record = cache.path("hugepages-before");
        restore_after_kill(&record)?;
        let mut pool = Self {
            free: read("free_hugepages").unwrap_or(0),
            reason: None,
            before: None,
        };
        let default = default_size();
        if default != Some(2048) {
            pool.free = 0;
            pool.reason = Some(match default {
                Some(size) => format!("the host's default size is {size} KiB, not 2 MiB"),
                None => "the host has none".to_owned(),
            });
            return Ok(pool);
        }
        if pool.enough() {
            return Ok(pool);
        }
        if !allowed {
            pool.reason = Some("the host's pool is left as it is".to_owned());
            return Ok(pool);
        }
        let size = read("nr_hugepages").unwrap_or(0);
        let grown = size.saturating_add(NEEDED.saturating_sub(pool.free));
        fs::write(&record, size.to_string())
            .with_context(|| format!("writing {}", record.display()))?;
        if let Err(error) = set(grown) {
            let _ = fs::remove_file(&record);
            pool.reason = Some(format!("the pool can be grown by root only ({error:#})"));
            return Ok(pool);
        }
        pool.before = Some((size, record));
        pool.free = read("free_hugepages").unwrap_or(0);
        if !pool.enough() {
            pool.reason = Some("the host has not so much contiguous memory left".to_owned());
            pool.take_back()?;
        }
        Ok(pool)
    }

    /// Whether the tests that map huge pages can pass.
    pub(crate) fn enough(&self) -> bool {
        self.free >= NEEDED
    }

    fn take_back(&mut self) -> Result<()> {
        if let Some((size, record)) = self.before.take() {
            set(size).with_context(|| format!("putting nr_hugepages back to {size}"))?;
            fs::remove_file(&record).with_context(|| format!("removing {}", record.display()))?;
        }
        Ok(())
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            eprintln!("conformance: {error:#}");
        }
    }
}

impl fmt::Display for Hugepages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            None => write!(f, "{} huge pages of 2 MiB are free", self.free),
            Some(reason) => write!(
                f,
                "WITHOUT the {NEEDED} huge pages of 2 MiB that tests map: {reason}; expecting those not to pass"
            ),
        }
    }
}

/// Undoes what a runner that was killed left behind.
fn restore_after_kill(record: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(record) else {
        return Ok(());
    };
    if let Ok(size) = text.trim().parse() {
        set(size).with_context(|| {
            format!(
                "an earlier run was killed; put nr_hugepages back to {size} and remove {}",
                record.display()
            )
        })?;
        println!("conformance: put nr_hugepages back to {size} after a run that was killed");
    }
    fs::remove_file(record).with_context(|| format!("removing {}", record.display()))
}

fn read(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new(POOL).join(name))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn set(size: u64) -> Result<()> {
    let path = Path::new(POOL).join("nr_hugepages");
    fs::write(&path, size.to_string()).with_context(|| format!("writing {}", path.display()))
}

/// Whether the host has a huge page of 1 GiB that nobody uses. They can hardly be had after boot.
pub(crate) fn gigantic_is_free() -> bool {
    let path = "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages";
    let free = fs::read_to_string(path).ok();
    free.and_then(|text| text.trim().parse::<u64>().ok()) > Some(0)
}

/// The size in KiB of what `MAP_HUGETLB` gives without asking for a size.
fn default_size() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    line.split_whitespace().next()?.parse().ok()
}
