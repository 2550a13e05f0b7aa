//! `run --explain`: where the lines go, and the line at the end for a program that did without.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use ioasid_supervisor::Counts;

/// Stands for standard error.
const STDERR: &str = "-";

/// What the lines are written to.
pub(crate) fn open(path: &Path) -> Result<OwnedFd> {
    if path == Path::new(STDERR) {
        let stderr = std::io::stderr().as_fd().try_clone_to_owned();
        return stderr.context("standard error is closed");
    }
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(file.into())
}

/// What a program that failed is told at the end; nothing if it was refused nothing.
pub(crate) fn summary(Counts { refused, faults }: Counts) -> Option<String> {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let were = if refused == 1 { "was" } else { "were" };
    let calls = format!("{refused} call{} {were} refused", plural(refused));
    let dma = format!("{faults} DMA fault{} occurred", plural(faults));
    let what = match (refused, faults) {
        (0, 0) => return None,
        (_, 0) => calls,
        (0, _) => dma,
        _ => format!("{calls} and {dma}"),
    };
    Some(format!("ioasid: {what}: --explain says why"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_in_english() {
        let line = |refused, faults| summary(Counts { refused, faults });
        assert_eq!(line(0, 0), None);
        let sentence = "ioasid: 3 calls were refused and 1 DMA fault occurred: --explain says why";
        assert_eq!(line(3, 1).as_deref(), Some(sentence));
        let sentence = "ioasid: 1 call was refused: --explain says why";
        assert_eq!(line(1, 0).as_deref(), Some(sentence));
        let sentence = "ioasid: 2 DMA faults occurred: --explain says why";
        assert_eq!(line(0, 2).as_deref(), Some(sentence));
    }
}
