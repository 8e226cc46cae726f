//! The rules for uploaded zips: which archives are taken as a snapshot, and what of them is written where.
//!
//! [`check`] decides on plain data, one [`EntryHeader`] for each entry of the central directory. It neither opens nor
//! inflates anything: the store reads the headers, asks here, and verifies that what the headers declare is true.
//!
//! Invariant of every [`ArchivePlan`]: each path is relative, normalised and stays below the folder that it is joined to;
//! no two of its paths name the same file, not even where the file system ignores case; no file is the folder of another.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Folders within folders: more than any project has, few enough for every file system.
pub const MAX_DEPTH: usize = 32;
/// Bytes of one component of a path: what Linux file systems take.
pub const MAX_COMPONENT_BYTES: usize = 255;
/// Bytes of a whole path, so that it can still be opened below a data directory (Linux takes 4096).
pub const MAX_PATH_BYTES: usize = 2048;
/// Archives that unpack to less than this are taken at any ratio: a small file of zeros is not a bomb.
pub const RATIO_FLOOR_BYTES: u64 = 1 << 20;

/// What an uploaded zip may unpack to. Part of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveLimits {
    /// Bytes of all files together, unpacked. Default 314,572,800: the 300 MB of the SDK (azureml-wire H.3).
    pub max_unpacked_bytes: u64,
    /// Files; folders are counted apart, to the same limit. Over 65,534 has no effect: such a zip needs the zip64 format,
    /// which is not read. Default 20,000.
    pub max_files: usize,
    /// Unpacked bytes for each compressed byte, over the whole archive. Default 200: text seldom reaches 20.
    pub max_ratio: u64,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { max_unpacked_bytes: 300 << 20, max_files: 20_000, max_ratio: 200 }
    }
}

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// Deflated.
    Deflated,
    /// Some other method, by its number in the zip format.
    Other(u16),
}

/// What the central directory says about one entry. Nothing in it is trusted.
#[derive(Clone, Copy, Debug)]
pub struct EntryHeader<'a> {
    /// The name as it stands in the archive. A folder's name ends in `/`.
    pub name: &'a [u8],
    /// Unix mode with the type bits: the upper half of the external attributes; 0 where the archive has none.
    pub unix_mode: u32,
    /// Bytes in the archive.
    pub compressed_bytes: u64,
    /// Bytes when inflated, as declared.
    pub size_bytes: u64,
    /// Whether a password is needed.
    pub encrypted: bool,
    /// How the bytes are kept.
    pub method: Method,
}

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where, below the folder that the archive is unpacked to; components are separated by `/`.
    pub path: String,
    /// How many bytes, as declared; whoever inflates it refuses anything else.
    pub size_bytes: u64,
    /// `0o755` if anyone may execute it, else `0o644`.
    pub mode: u32,
    /// Which entry of the central directory holds it, from 0.
    pub entry: usize,
}

/// An archive that keeps the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchivePlan {
    /// The files, in the order of the central directory.
    pub files: Vec<PlannedFile>,
    /// Folders that have an entry of their own, which keeps empty ones.
    pub folders: Vec<String>,
    /// Bytes of all files together.
    pub total_bytes: u64,
}

/// Decides whether an archive with these entries is taken, and what it unpacks to.
///
/// [`ErrorKind::TooLarge`] when a limit is exceeded, [`ErrorKind::Invalid`] when a rule is broken; the sentence names the
/// entry and the rule.
pub fn check<'a>(entries: impl IntoIterator<Item = EntryHeader<'a>>, limits: &ArchiveLimits) -> Result<ArchivePlan> {
    let mut plan = ArchivePlan::default();
    let mut tree = Tree::default();
    let mut compressed_bytes = 0u64;
    for (index, header) in entries.into_iter().enumerate() {
        let refuse = |why: String| Error::invalid(format!("entry {} of the zip ({}) {why}", index + 1, shown(header.name)));
        check_kind(&header).map_err(refuse)?;
        let components = components(header.name).map_err(refuse)?;
        let is_folder = header.is_folder();
        if components.is_empty() {
            // `./` stands for the folder that the archive is unpacked to, which is there in any case.
            if is_folder {
                continue;
            }
            return Err(refuse("has no name".into()));
        }
        let node = if is_folder { Node::ListedFolder } else { Node::File };
        tree.insert(&components, node).map_err(refuse)?;
        let path = components.join("/");
        if is_folder {
            plan.folders.push(path);
        } else {
            let mode = if header.unix_mode & 0o111 != 0 { 0o755 } else { 0o644 };
            plan.files.push(PlannedFile { path, size_bytes: header.size_bytes, mode, entry: index });
        }
        plan.total_bytes = plan.total_bytes.saturating_add(header.size_bytes);
        compressed_bytes = compressed_bytes.saturating_add(header.compressed_bytes);
        check_counts(&plan, &tree, limits)?;
    }
    check_ratio(plan.total_bytes, compressed_bytes, limits)?;
    Ok(plan)
}

impl EntryHeader<'_> {
    /// Whether the entry is a folder: its name says so.
    pub fn is_folder(&self) -> bool {
        self.name.ends_with(b"/")
    }
}

impl ArchivePlan {
    /// Finds the script that a definition names and gives its path in the archive; a leading `./` and Windows separators
    /// in `script` do not matter. [`ErrorKind::Invalid`] with what the archive has instead.
    pub fn find_script(&self, script: &str) -> Result<&str> {
        let found = self.find_file(script).map_err(|error| Error::invalid(format!("script {}", error.message())))?;
        Ok(&self.files[found].path)
    }

    /// Finds any file in the same way and gives its index in `files`.
    pub fn find_file(&self, path: &str) -> Result<usize> {
        let path = path.replace('\\', "/");
        let wanted = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/");
        if let Some(found) = self.files.iter().position(|file| file.path == wanted && !path.starts_with('/')) {
            return Ok(found);
        }
        Err(Error::invalid(format!("{} is not in the zip; {}", shown(path.as_bytes()), self.nearest(&wanted))))
    }

    /// What to tell a person who looked for `wanted` in vain.
    fn nearest(&self, wanted: &str) -> String {
        let folded = wanted.to_lowercase();
        if let Some(file) = self.files.iter().find(|file| file.path.to_lowercase() == folded) {
            return format!("it has {}: names are compared with case", shown(file.path.as_bytes()));
        }
        let below = format!("/{wanted}");
        if let Some(file) = self.files.iter().find(|file| file.path.ends_with(&below)) {
            return format!("it has {}: zip the content of the folder, not the folder", shown(file.path.as_bytes()));
        }
        if self.files.is_empty() {
            return "it has no files".into();
        }
        let mut some: Vec<String> = self.files.iter().take(5).map(|file| shown(file.path.as_bytes())).collect();
        if self.files.len() > some.len() {
            some.push(format!("and {} more", self.files.len() - some.len()));
        }
        format!("it has {}", some.join(", "))
    }
}

/// The rules about what an entry is and how it is kept.
fn check_kind(header: &EntryHeader<'_>) -> Result<(), String> {
    const TYPE_MASK: u32 = 0o170_000;
    match header.unix_mode & TYPE_MASK {
        // None given, regular file, folder.
        0 | 0o100_000 => {}
        0o040_000 if header.is_folder() => {}
        0o040_000 => return Err("is marked as a folder but its name does not end in `/`".into()),
        0o120_000 => return Err("is a symbolic link; pack the file that it points to".into()),
        _ => return Err("is a device, pipe or socket; only files and folders are taken".into()),
    }
    if header.encrypted {
        return Err("is encrypted; pack it without a password".into());
    }
    match header.method {
        Method::Stored if header.compressed_bytes != header.size_bytes => {
            Err(format!("is stored but declares {} bytes packed and {} unpacked", header.compressed_bytes, header.size_bytes))
        }
        _ if header.is_folder() && header.size_bytes != 0 => Err("is a folder that declares content".into()),
        Method::Stored | Method::Deflated => Ok(()),
        Method::Other(number) => Err(format!("uses compression method {number}; only stored and deflate are taken")),
    }
}

/// Splits a name into the components of a normalised relative path; empty ones and `.` are dropped.
fn components(name: &[u8]) -> Result<Vec<&str>, String> {
    let name = std::str::from_utf8(name).map_err(|_| "has a name that is not UTF-8".to_owned())?;
    if name.contains('\0') {
        return Err("has a NUL character in its name".into());
    }
    if name.contains('\\') {
        return Err("has a backslash in its name; zip paths are separated by `/`".into());
    }
    if name.starts_with('/') {
        return Err("is an absolute path; names must be relative".into());
    }
    if let [letter, b':', ..] = name.as_bytes()
        && letter.is_ascii_alphabetic()
    {
        return Err("begins with a drive letter; names must be relative".into());
    }
    if name.len() > MAX_PATH_BYTES {
        return Err(format!("has a path of {} bytes; at most {MAX_PATH_BYTES} are taken", name.len()));
    }
    let components: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if components.contains(&"..") {
        return Err("has `..` in its path, which could leave the folder that it is unpacked to".into());
    }
    if components.len() > MAX_DEPTH {
        return Err(format!("is {} folders deep; at most {MAX_DEPTH} are taken", components.len()));
    }
    if let Some(long) = components.iter().find(|part| part.len() > MAX_COMPONENT_BYTES) {
        return Err(format!("has a path component of {} bytes; at most {MAX_COMPONENT_BYTES} are taken", long.len()));
    }
    Ok(components)
}

fn check_counts(plan: &ArchivePlan, tree: &Tree, limits: &ArchiveLimits) -> Result<()> {
    let too_large = |what: String| Err(Error::new(ErrorKind::TooLarge, what));
    if plan.files.len() > limits.max_files {
        return too_large(format!("the zip has more than {} files, the limit of this server (max_files)", limits.max_files));
    }
    if tree.folders > limits.max_files {
        return too_large(format!("the zip has more than {} folders, the limit of this server (max_files)", limits.max_files));
    }
    if plan.total_bytes > limits.max_unpacked_bytes {
        let limit = limits.max_unpacked_bytes;
        return too_large(format!("the zip unpacks to more than {limit} bytes, the limit of this server (max_unpacked_bytes)"));
    }
    Ok(())
}

fn check_ratio(total_bytes: u64, compressed_bytes: u64, limits: &ArchiveLimits) -> Result<()> {
    if total_bytes > RATIO_FLOOR_BYTES && total_bytes > compressed_bytes.saturating_mul(limits.max_ratio) {
        let message = format!(
            "the zip unpacks from {compressed_bytes} to {total_bytes} bytes, more than {} times its size: it looks like a bomb (max_ratio)",
            limits.max_ratio
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}

/// What a path of the archive stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File,
    /// A folder with an entry of its own.
    ListedFolder,
    /// A folder that only occurs in the paths of others.
    ImpliedFolder,
}

/// All paths of the archive by their folded spelling, to see names that clash.
#[derive(Debug, Default)]
struct Tree {
    nodes: HashMap<String, (Box<str>, Node)>,
    folders: usize,
}

impl Tree {
    /// Adds a path and the folders above it; the error says which path stands in the way.
    fn insert(&mut self, components: &[&str], node: Node) -> Result<(), String> {
        let mut folded = String::new();
        let mut ends = Vec::with_capacity(components.len());
        for component in components {
            if !folded.is_empty() {
                folded.push('/');
            }
            if component.is_ascii() {
                folded.push_str(component);
                let start = folded.len() - component.len();
                folded[start..].make_ascii_lowercase();
            } else {
                folded.push_str(&component.to_lowercase());
            }
            ends.push(folded.len());
        }
        // From the leaf upwards, so that a folder seen before ends the walk: what is above it was checked with it.
        for depth in (0..components.len()).rev() {
            let wanted = if depth + 1 == components.len() { node } else { Node::ImpliedFolder };
            let spelled = components[depth];
            match self.nodes.get_mut(&folded[..ends[depth]]) {
                None => {
                    self.folders += usize::from(wanted != Node::File);
                    self.nodes.insert(folded[..ends[depth]].to_owned(), (spelled.into(), wanted));
                }
                Some((before, known)) => {
                    if **before != *spelled {
                        let (a, b) = (shown(before.as_bytes()), shown(spelled.as_bytes()));
                        return Err(format!(
                            "differs from an entry before only in case ({b} and {a}), which not every file system keeps apart"
                        ));
                    }
                    match (*known, wanted) {
                        (Node::ListedFolder | Node::ImpliedFolder, Node::ImpliedFolder) => return Ok(()),
                        (Node::ImpliedFolder, Node::ListedFolder) => {
                            *known = Node::ListedFolder;
                            return Ok(());
                        }
                        (Node::File, Node::File) | (Node::ListedFolder, Node::ListedFolder) => {
                            return Err("is in the zip twice".into());
                        }
                        (Node::File, Node::ListedFolder | Node::ImpliedFolder) => {
                            return Err(format!("needs {} as a folder, which is a file in the same zip", shown(spelled.as_bytes())));
                        }
                        (Node::ListedFolder | Node::ImpliedFolder, Node::File) => {
                            return Err("is a file where other entries of the zip have a folder".into());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// A name from an archive as messages show it: without control characters, of bounded length.
pub fn printable(name: &[u8]) -> String {
    const MAX_CHARS: usize = 80;
    // Four bytes make at most one character, so a name of megabytes costs no more than a short one.
    let head = String::from_utf8_lossy(&name[..name.len().min((MAX_CHARS + 1) * 4)]);
    let mut text: String = head.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if head.chars().nth(MAX_CHARS).is_some() {
        text.push('…');
    }
    text
}

fn shown(name: &[u8]) -> String {
    format!("`{}`", printable(name))
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    fn file(name: &str) -> EntryHeader<'_> {
        EntryHeader {
            name: name.as_bytes(),
            unix_mode: 0o100_644,
            compressed_bytes: 10,
            size_bytes: 20,
            encrypted: false,
            method: Method::Deflated,
        }
    }

    fn folder(name: &str) -> EntryHeader<'_> {
        EntryHeader { unix_mode: 0o040_755, compressed_bytes: 0, size_bytes: 0, method: Method::Stored, ..file(name) }
    }

    fn refusal(entries: &[EntryHeader<'_>]) -> Error {
        check(entries.iter().copied(), &ArchiveLimits::default()).expect_err("the archive is refused")
    }

    #[test]
    fn a_normal_archive_is_planned_with_normalised_paths_and_masked_modes() {
        let entries = [
            folder("./"),
            folder("src/"),
            file("./hello.py"),
            EntryHeader { unix_mode: 0o104_751, ..file("src//run.sh") },
            EntryHeader { unix_mode: 0, ..file("src/deep/er/x") },
            folder("outputs/"),
        ];
        let plan = check(entries, &ArchiveLimits::default()).unwrap();
        let files: Vec<_> = plan.files.iter().map(|f| (f.path.as_str(), f.mode, f.entry)).collect();
        assert_eq!(files, [("hello.py", 0o644, 2), ("src/run.sh", 0o755, 3), ("src/deep/er/x", 0o644, 4)]);
        assert_eq!(plan.folders, ["src", "outputs"]);
        assert_eq!(plan.total_bytes, 60);
    }

    #[test]
    fn an_archive_without_entries_is_an_empty_plan() {
        assert_eq!(check([], &ArchiveLimits::default()).unwrap(), ArchivePlan::default());
    }

    #[test]
    fn each_bad_name_is_refused_with_its_rule() {
        let deep = "d/".repeat(32) + "x";
        let wide = "w".repeat(256);
        let long = format!("{}/", "w".repeat(200)).repeat(11) + "x";
        let table = [
            ("../x", "has `..` in its path"),
            ("a/../../x", "has `..` in its path"),
            ("a/..", "has `..` in its path"),
            ("/etc/passwd", "is an absolute path"),
            ("//host/share", "is an absolute path"),
            ("C:/x", "begins with a drive letter"),
            ("c:x", "begins with a drive letter"),
            ("a\\b", "has a backslash in its name"),
            ("..\\x", "has a backslash in its name"),
            ("a\0b", "has a NUL character in its name"),
            ("", "has no name"),
            (".", "has no name"),
            (deep.as_str(), "is 33 folders deep; at most 32"),
            (wide.as_str(), "has a path component of 256 bytes; at most 255"),
            (long.as_str(), "has a path of 2212 bytes; at most 2048"),
        ];
        for (name, rule) in table {
            let error = refusal(&[file("ok.py"), file(name)]);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}");
            assert!(error.message().starts_with("entry 2 of the zip (`"), "{error}");
            assert!(error.message().contains(rule), "{name:?}: {error}");
            assert!(error.message().len() < 300, "{error}");
        }
        let error = refusal(&[EntryHeader { name: b"caf\xe9.py", ..file("") }]);
        assert!(error.message().contains("not UTF-8"), "{error}");
    }

    #[test]
    fn each_bad_kind_of_entry_is_refused_with_its_rule() {
        let table = [
            (EntryHeader { unix_mode: 0o120_777, ..file("x") }, "is a symbolic link"),
            (EntryHeader { unix_mode: 0o120_777, ..folder("x/") }, "is a symbolic link"),
            (EntryHeader { unix_mode: 0o020_666, ..file("x") }, "is a device, pipe or socket"),
            (EntryHeader { unix_mode: 0o060_666, ..file("x") }, "is a device, pipe or socket"),
            (EntryHeader { unix_mode: 0o010_666, ..file("x") }, "is a device, pipe or socket"),
            (EntryHeader { unix_mode: 0o140_666, ..file("x") }, "is a device, pipe or socket"),
            (EntryHeader { unix_mode: 0o040_755, ..file("x") }, "is marked as a folder"),
            (EntryHeader { encrypted: true, ..file("x") }, "is encrypted"),
            (EntryHeader { method: Method::Other(14), ..file("x") }, "uses compression method 14"),
            (EntryHeader { method: Method::Stored, ..file("x") }, "declares 10 bytes packed and 20 unpacked"),
            (EntryHeader { size_bytes: 9, method: Method::Deflated, ..folder("x/") }, "is a folder that declares content"),
        ];
        for (entry, rule) in table {
            let error = refusal(&[entry]);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(rule), "{error}");
        }
    }

    #[test]
    fn names_that_clash_are_refused() {
        let table = [
            (vec![file("a"), file("a")], "is in the zip twice"),
            (vec![file("a"), file("./a")], "is in the zip twice"),
            (vec![folder("a/"), folder("a/")], "is in the zip twice"),
            (vec![file("Readme"), file("README")], "differs from an entry before only in case (`README` and `Readme`)"),
            (vec![file("STRAẞE"), file("straße")], "only in case"),
            (vec![file("A/x"), file("a/y")], "only in case (`a` and `A`)"),
            (vec![file("a"), file("a/b")], "needs `a` as a folder, which is a file"),
            (vec![file("a"), folder("a/")], "needs `a` as a folder, which is a file"),
            (vec![file("a/b/c"), file("a/b")], "is a file where other entries of the zip have a folder"),
            (vec![folder("a/"), file("a")], "is a file where other entries of the zip have a folder"),
        ];
        for (entries, rule) in table {
            let error = refusal(&entries);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(rule), "{error}");
        }
        let fine = [file("a/b"), folder("a/"), file("a/c"), file("ab"), file("é"), file("e")];
        assert!(check(fine, &ArchiveLimits::default()).is_ok());
    }

    #[test]
    fn limits_hold_exactly() {
        let limits = ArchiveLimits { max_unpacked_bytes: 60, max_files: 3, max_ratio: 200 };
        let names = ["a", "b", "c", "d"];
        assert!(check(names[..3].iter().map(|n| file(n)), &limits).is_ok());
        let error = check(names.iter().map(|n| EntryHeader { size_bytes: 0, ..file(n) }), &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.message().contains("more than 3 files"), "{error}");
        let error = check([file("a/b/c/d/e")], &limits).unwrap_err();
        assert!(error.message().contains("more than 3 folders"), "{error}");
        let error = check([EntryHeader { size_bytes: 61, ..file("a") }], &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.message().contains("more than 60 bytes"), "{error}");
        let huge = EntryHeader { size_bytes: u64::MAX, ..file("a") };
        assert_eq!(check([huge, EntryHeader { name: b"b", ..huge }], &limits).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_bomb_is_refused_by_its_declared_ratio_and_a_small_file_of_zeros_is_not() {
        let bomb = EntryHeader { compressed_bytes: 10_000, size_bytes: 10_000_000, ..file("zeros") };
        let error = refusal(&[bomb]);
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.message().contains("from 10000 to 10000000 bytes, more than 200 times"), "{error}");
        let small = EntryHeader { compressed_bytes: 1_000, size_bytes: 1_000_000, ..file("zeros") };
        assert!(check([small], &ArchiveLimits::default()).is_ok());
        let just_right = EntryHeader { compressed_bytes: 10_000, size_bytes: 2_000_000, ..file("zeros") };
        assert!(check([just_right], &ArchiveLimits::default()).is_ok());
    }

    #[test]
    fn a_script_is_found_by_its_path_and_a_missing_one_is_explained() {
        let plan = check([file("hello.py"), file("src/train.py"), file("project/main.py")], &ArchiveLimits::default()).unwrap();
        assert_eq!(plan.find_script("hello.py").unwrap(), "hello.py");
        assert_eq!(plan.find_script("./src/train.py").unwrap(), "src/train.py");
        assert_eq!(plan.find_script("src\\train.py").unwrap(), "src/train.py");
        let table = [
            ("Hello.py", "script `Hello.py` is not in the zip; it has `hello.py`: names are compared with case"),
            ("main.py", "it has `project/main.py`: zip the content of the folder, not the folder"),
            ("other.py", "it has `hello.py`, `src/train.py`, `project/main.py`"),
            ("/hello.py", "script `/hello.py` is not in the zip"),
            ("", "script `` is not in the zip"),
            ("src", "script `src` is not in the zip"),
        ];
        for (script, why) in table {
            let error = plan.find_script(script).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(why), "{error}");
        }
        assert!(ArchivePlan::default().find_script("a.py").unwrap_err().message().contains("it has no files"));
    }

    #[test]
    fn a_name_in_a_message_is_short_and_printable() {
        let text = shown(&[b'\n'; 5000]);
        assert!(text.len() < 200 && !text.contains('\n') && text.ends_with("…`"), "{text}");
        assert_eq!(shown(b"ok\xff"), "`ok\u{fffd}`");
    }

    #[test]
    fn limits_are_read_from_a_part_of_the_configuration_and_unknown_keys_are_refused() {
        let limits: ArchiveLimits = serde_json::from_str(r#"{"max_files": 7}"#).unwrap();
        assert_eq!(limits, ArchiveLimits { max_files: 7, ..ArchiveLimits::default() });
        assert!(serde_json::from_str::<ArchiveLimits>(r#"{"max_file": 7}"#).is_err());
    }

    /// Names that are likely to clash and to be bad, and some arbitrary ones.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        let component =
            prop_oneof![Just("a"), Just("A"), Just("b"), Just("."), Just(".."), Just(""), Just("é"), Just("É"), Just("c:"), Just("x\\y")];
        let path = prop::collection::vec(component, 0..5).prop_map(|parts| parts.join("/").into_bytes());
        prop_oneof![8 => path, 1 => prop::collection::vec(any::<u8>(), 0..12), 1 => any::<String>().prop_map(String::into_bytes)]
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_below_the_root_and_apart(names in prop::collection::vec((name(), any::<bool>()), 0..8)) {
            let names: Vec<Vec<u8>> = names.into_iter().map(|(mut n, dir)| { if dir { n.push(b'/'); } n }).collect();
            let entries = names.iter().map(|name| EntryHeader { name, unix_mode: 0, size_bytes: 0, ..file("") });
            if let Ok(plan) = check(entries, &ArchiveLimits::default()) {
                let root = Path::new("/some/folder");
                let mut seen = std::collections::HashSet::new();
                for path in plan.files.iter().map(|f| &f.path).chain(&plan.folders) {
                    let joined = root.join(path);
                    prop_assert!(joined.starts_with(root) && joined != root);
                    prop_assert!(Path::new(path).components().all(|c| matches!(c, Component::Normal(_))));
                    let rebuilt: std::path::PathBuf = Path::new(path).components().collect();
                    prop_assert_eq!(rebuilt.to_str(), Some(path.as_str()));
                    prop_assert!(seen.insert(path.to_lowercase()));
                }
                for file in &plan.files {
                    let as_folder = format!("{}/", file.path.to_lowercase());
                    prop_assert!(!seen.iter().any(|other| other.starts_with(&as_folder)));
                    prop_assert_eq!(plan.find_script(&file.path).ok(), Some(file.path.as_str()));
                }
            }
        }

        #[test]
        fn accepted_archives_are_within_the_limits(sizes in prop::collection::vec((any::<u64>(), 0u64..1000), 0..6)) {
            let limits = ArchiveLimits { max_unpacked_bytes: 1 << 62, max_files: 4, max_ratio: 50 };
            let names: Vec<String> = (0..sizes.len()).map(|n| n.to_string()).collect();
            let entries = sizes.iter().zip(&names).map(|((size, packed), name)| {
                EntryHeader { size_bytes: *size >> 20, compressed_bytes: *packed, ..file(name) }
            });
            if let Ok(plan) = check(entries, &limits) {
                let packed: u64 = sizes.iter().map(|(_, packed)| packed).sum();
                prop_assert!(plan.files.len() <= 4);
                prop_assert!(plan.total_bytes <= (packed * 50).max(RATIO_FLOOR_BYTES));
                prop_assert_eq!(plan.total_bytes, plan.files.iter().map(|f| f.size_bytes).sum::<u64>());
            }
        }
    }
}
