//! Lists the files below a folder of the working directory, which the user's code may be changing at the same time.
//!
//! What is not a plain file inside the working directory is never opened: a link to somewhere else would carry files of the machine into
//! the run. What is left out is said in a sentence each.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which file it is.
    pub(super) inode: u64,
    /// Bytes.
    pub(super) length: u64,
    /// Nanoseconds since the epoch: the content.
    pub(super) modified_ns: i128,
    /// Nanoseconds since the epoch: the content or the file's other properties; can't be set back.
    pub(super) changed_ns: i128,
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its path in the run: the prefix given, then relative to the folder, separated by `/`.
    pub(super) path: String,
    /// Where it is.
    pub(super) file: PathBuf,
    /// What it was like.
    pub(super) stamp: Stamp,
}

/// What a folder holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// The files, by path.
    pub(super) files: Vec<Found>,
    /// What was left out, a sentence each.
    pub(super) left_out: Vec<String>,
}

impl Stamp {
    /// The stamp of a file with this metadata.
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        let ns = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Self {
            inode: meta.ino(),
            length: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Lists `folder`, whose files are called `prefix/…` in the run. `within` is the working directory: links are followed to plain files inside it.
/// A folder that does not exist is empty.
pub(super) fn list(folder: &Path, prefix: &str, within: &Path) -> Listing {
    let mut listing = Listing::default();
    // Where the attempt's folder is itself below a link, what is inside must be compared by real paths.
    let Ok(within) = within.canonicalize() else { return listing };
    match fs::symlink_metadata(folder) {
        Err(_) => return listing,
        Ok(meta) if !meta.is_dir() => {
            listing.left_out.push(format!("`{prefix}` is not kept: it is not a folder"));
            return listing;
        }
        Ok(_) => {}
    }
    let mut open = vec![(folder.to_owned(), prefix.to_owned())];
    while let Some((folder, prefix)) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                listing.left_out.push(format!("the folder `{prefix}` is not kept: {error}"));
                continue;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                listing.left_out.push(format!("`{prefix}/{}` is not kept: its name is not UTF-8", name.to_string_lossy()));
                continue;
            };
            let (path, file) = (format!("{prefix}/{name}"), entry.path());
            match look_at(&file, &within) {
                Ok(Kind::Folder) => open.push((file, path)),
                Ok(Kind::File(stamp)) => listing.files.push(Found { path, file, stamp }),
                Ok(Kind::LeftOut(why)) => listing.left_out.push(format!("`{path}` is not kept: {why}")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => listing.left_out.push(format!("`{path}` is not kept: {error}")),
            }
        }
    }
    listing.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    listing.left_out.sort_unstable();
    listing
}

enum Kind {
    Folder,
    File(Stamp),
    LeftOut(&'static str),
}

fn look_at(file: &Path, within: &Path) -> io::Result<Kind> {
    let meta = fs::symlink_metadata(file)?;
    if meta.is_dir() {
        return Ok(Kind::Folder);
    }
    if meta.is_file() {
        return Ok(Kind::File(Stamp::of(&meta)));
    }
    if !meta.is_symlink() {
        return Ok(Kind::LeftOut("it is not a plain file"));
    }
    let Ok(target) = file.canonicalize() else { return Ok(Kind::LeftOut("it is a link to nowhere")) };
    if !target.starts_with(within) {
        return Ok(Kind::LeftOut("it is a link that leads out of the working directory"));
    }
    let meta = fs::metadata(&target)?;
    // A link to a folder may lead in a circle, and what is in the folder is kept under its own name if it is kept at all.
    Ok(if meta.is_file() { Kind::File(Stamp::of(&meta)) } else { Kind::LeftOut("it is a link to something else than a plain file") })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn files_are_listed_by_their_path_in_the_run() {
        let work = tempfile::tempdir().unwrap();
        let outputs = work.path().join("outputs");
        fs::create_dir_all(outputs.join("b/c")).unwrap();
        fs::write(outputs.join("b/c/deep"), "12345").unwrap();
        fs::write(outputs.join("a.txt"), "").unwrap();
        let listing = list(&outputs, "outputs", work.path());
        let paths: Vec<_> = listing.files.iter().map(|found| (found.path.as_str(), found.stamp.length)).collect();
        assert_eq!(paths, [("outputs/a.txt", 0), ("outputs/b/c/deep", 5)]);
        assert!(listing.left_out.is_empty());
        assert_eq!(list(&work.path().join("none"), "none", work.path()), Listing::default());
    }

    #[test]
    fn nothing_outside_the_working_directory_is_reached_through_a_link() {
        let (work, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "s").unwrap();
        let outputs = work.path().join("outputs");
        fs::create_dir(&outputs).unwrap();
        fs::write(work.path().join("model"), "m").unwrap();
        symlink("../model", outputs.join("inside")).unwrap();
        symlink(outside.path().join("secret"), outputs.join("file")).unwrap();
        symlink(outside.path(), outputs.join("folder")).unwrap();
        symlink("..", outputs.join("circle")).unwrap();
        symlink("gone", outputs.join("nowhere")).unwrap();
        let _socket = UnixListener::bind(outputs.join("socket")).unwrap();
        let listing = list(&outputs, "outputs", work.path());
        assert_eq!(listing.files.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), ["outputs/inside"]);
        assert_eq!(listing.left_out.len(), 5, "{:?}", listing.left_out);

        let whole = work.path().join("linked");
        symlink(outside.path(), &whole).unwrap();
        assert_eq!(list(&whole, "linked", work.path()).left_out, ["`linked` is not kept: it is not a folder"]);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_left_out_with_a_word() {
        let work = tempfile::tempdir().unwrap();
        let outputs = work.path().join("outputs");
        fs::create_dir(&outputs).unwrap();
        fs::write(outputs.join(std::ffi::OsStr::from_bytes(b"a\xffb")), "").unwrap();
        let listing = list(&outputs, "outputs", work.path());
        assert!(listing.files.is_empty());
        assert_eq!(listing.left_out, ["`outputs/a\u{fffd}b` is not kept: its name is not UTF-8"]);
    }

    #[test]
    fn any_change_of_a_file_changes_its_stamp() {
        let work = tempfile::tempdir().unwrap();
        let file = work.path().join("f");
        let stamp = || Stamp::of(&fs::metadata(&file).unwrap());
        fs::write(&file, "one").unwrap();
        let first = stamp();
        fs::remove_file(&file).unwrap();
        fs::write(work.path().join("other"), "two").unwrap();
        fs::rename(work.path().join("other"), &file).unwrap();
        assert_ne!(stamp(), first);
    }
}
