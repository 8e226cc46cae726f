//! What packages may ask of this machine.

use std::sync::OnceLock;

use rattler_conda_types::{GenericVirtualPackage, Subdir};
use rattler_virtual_packages::{VirtualPackage, VirtualPackageOverrides};

use crate::CondaError;

/// The subdirectory of channels that is made for this machine.
pub(crate) fn subdir() -> Result<Subdir, CondaError> {
    Subdir::current().ok_or_else(|| CondaError::Node { what: "conda has no packages for this kind of machine".into(), source: None })
}

/// Kernel, C library, processor, GPU driver, as packages; `CONDA_OVERRIDE_…` variables win.
pub(crate) fn virtual_packages() -> &'static [GenericVirtualPackage] {
    static FOUND: OnceLock<Vec<GenericVirtualPackage>> = OnceLock::new();
    FOUND.get_or_init(|| match VirtualPackage::detect(&VirtualPackageOverrides::from_env(), None) {
        Ok(found) => found.into_iter().map(Into::into).collect(),
        Err(error) => {
            tracing::warn!(error = crate::error::chain(&error), "what this machine offers to conda packages cannot be found out");
            Vec::new()
        }
    })
}

/// What the choice of packages depends on, for the hash of an environment, e.g. `linux-64 __glibc=2.36 __cuda=12.4`. Without the
/// release of the kernel: hardly a package asks for one, and its next patch must not build every environment anew.
pub fn platform() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let subdir = Subdir::current().map_or_else(|| std::env::consts::ARCH.to_owned(), |subdir| subdir.to_string());
        let mut parts: Vec<String> = virtual_packages()
            .iter()
            .filter(|package| !matches!(package.name.as_normalized(), "__linux" | "__unix"))
            .map(|package| {
                let build = package.build_string.to_string();
                let build = if build.is_empty() || build == "0" { String::new() } else { format!("={build}") };
                format!("{}={}{build}", package.name.as_normalized(), package.version)
            })
            .collect();
        parts.sort_unstable();
        parts.insert(0, subdir);
        parts.join(" ")
    })
}
