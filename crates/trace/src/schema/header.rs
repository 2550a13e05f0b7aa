//! The first line: what a replay needs to build the same machine, and what a reader wants to know.

use serde::{Deserialize, Serialize};

/// What was traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Header {
    /// The version of the schema, [`VERSION`](super::VERSION).
    pub schema: u32,
    /// The program and its arguments; empty if the machine had several.
    pub program: Vec<String>,
    /// What the machine was built of.
    pub machine: MachineSource,
    /// The kernel's self-test of `/dev/iommu` had its mock devices.
    #[serde(default, skip_serializing_if = "is_false")]
    pub selftest: bool,
    /// RLIMIT_MEMLOCK was enforced.
    #[serde(default, skip_serializing_if = "is_false")]
    pub enforce_memlock: bool,
    /// Where it ran.
    pub host: Host,
    /// When it began, in seconds since 1970.
    pub began: u64,
}

/// What a machine is built of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MachineSource {
    /// The text of a machine file.
    File(String),
    /// Strings as `--device` takes them.
    Devices(Vec<String>),
}

/// Facts about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Host {
    /// The version of ioasid.
    pub ioasid: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The processors' architecture.
    pub architecture: String,
    /// How many processors the machine could use.
    pub processors: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}
