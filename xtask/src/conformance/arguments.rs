//! The command line of `cargo xtask conformance`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use xtask::fetch::Origin;

use super::device::Device;

/// A program of the kernel's self-tests.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Suite {
    /// Every ioctl of `/dev/iommu` (tools/testing/selftests/iommu/iommufd.c).
    Iommufd,
    /// The same calls with every allocation failing in turn (iommufd_fail_nth.c).
    #[value(name = "iommufd_fail_nth")]
    IommufdFailNth,
    /// Every program of tools/testing/selftests/vfio, on each kind of device.
    Vfio,
}

impl Suite {
    /// The program's name, which is also that of its expectations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iommufd => "iommufd",
            Self::IommufdFailNth => "iommufd_fail_nth",
            Self::Vfio => "vfio",
        }
    }
}

/// Arguments of `cargo xtask conformance`.
#[derive(Args, Debug)]
pub(crate) struct Conformance {
    pub(crate) suite: Suite,
    /// Link the test program statically.
    #[arg(long = "static")]
    pub(crate) static_link: bool,
    /// Run it so many times in a row.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Run only the tests whose names contain TEXT; may be given again.
    #[arg(long, alias = "only", value_name = "TEXT")]
    pub(crate) filter: Vec<String>,
    /// Of the suite `vfio`: only on this kind of device; may be given again.
    #[arg(long, value_name = "KIND")]
    pub(crate) device: Vec<Device>,
    /// Print how the run differs from this TAP file, test by test.
    #[arg(long, value_name = "FILE.tap")]
    pub(crate) compare_oracle: Option<PathBuf>,
    /// Leave the host's pool of huge pages as it is.
    #[arg(long)]
    pub(crate) no_hugepages: bool,
    /// Stop a run after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Use this `ioasid` instead of building one, optimised.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) ioasid: Option<PathBuf>,
    /// Passed to `ioasid run`, such as `-v`; may be given again.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) run_option: Vec<String>,
    /// Of `iommufd` and `iommufd_fail_nth`: trace each run, and replay its calls on a fresh machine, where they
    /// must do the same.
    #[arg(long)]
    pub(crate) replay: bool,
    #[command(flatten)]
    pub(crate) origin: Origin,
}
