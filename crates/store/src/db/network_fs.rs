//! SQLite's write-ahead log needs memory shared between processes and locks that hold, which network file systems do not
//! give: better to refuse at the start than to lose rows later.

use std::path::Path;

use trainyard_core::{Error, ErrorKind, Result};

/// File systems that SQLite must not live on, by the magic number of `statfs`.
#[cfg(target_os = "linux")]
const NETWORK: [(u32, &str); 9] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFE53_4D42, "SMB2"),
    (0xFF53_4D42, "CIFS"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564C, "NCP"),
    (0x0BD0_0BD0, "Lustre"),
];

/// Fails when `folder` is on a network file system.
#[cfg(target_os = "linux")]
pub(super) fn refuse(folder: &Path) -> Result<()> {
    let found = rustix::fs::statfs(folder).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("the file system of {} can not be examined", folder.display())).with_source(error)
    })?;
    // The kernel's number has 32 bits; the C type is signed and wider on some machines.
    match network_name(found.f_type as u32) {
        None => Ok(()),
        Some(name) => Err(refusal(folder, name)),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn refuse(_folder: &Path) -> Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn network_name(magic: u32) -> Option<&'static str> {
    NETWORK.into_iter().find(|(known, _)| *known == magic).map(|(_, name)| name)
}

#[cfg(target_os = "linux")]
fn refusal(folder: &Path, name: &str) -> Error {
    Error::invalid(format!(
        "the data directory {} is on a network file system ({name}), where SQLite can lose data; \
         put it on a local disk, or keep the database in PostgreSQL with [store] database = \"postgres://…\"",
        folder.display()
    ))
    .with_target("store.database")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_refused_and_local_ones_are_not() {
        assert_eq!(network_name(0x6969), Some("NFS"));
        assert_eq!(network_name(0xFF53_4D42), Some("CIFS"));
        // ext4, xfs, btrfs, tmpfs, overlayfs.
        for local in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] {
            assert_eq!(network_name(local), None);
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        refuse(folder.path()).expect("temporary folders are local");
        let message = refusal(folder.path(), "NFS").to_string();
        assert!(message.contains("network file system (NFS)") && message.contains("local disk"), "{message}");
    }
}
