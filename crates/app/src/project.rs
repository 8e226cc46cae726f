//! A folder of code as the zip that a submission carries.
//!
//! What is left out is what `.amlignore` (else `.gitignore`) says, in the common subset of its patterns, and `.git`. Symbolic links are
//! followed only inside the folder; everything that is left out for another reason is an error, never silence.

use std::{
    fs,
    io::{Read as _, Seek, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use zip::write::SimpleFileOptions;

/// What goes into the zip.
pub struct Project {
    root: PathBuf,
    files: Vec<PathBuf>,
    /// Bytes in all.
    pub bytes: u64,
}

impl Project {
    /// Lists the files of `root`, in order.
    pub fn scan(root: &Path) -> Result<Self> {
        let ignored = Ignored::read(root)?;
        let mut project = Self { root: root.to_owned(), files: Vec::new(), bytes: 0 };
        project.visit(Path::new(""), &ignored)?;
        if project.files.is_empty() {
            bail!("the folder {} has no files to submit", root.display());
        }
        Ok(project)
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none; never after [`Project::scan`].
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn visit(&mut self, folder: &Path, ignored: &Ignored) -> Result<()> {
        let path = self.root.join(folder);
        let mut entries: Vec<_> = fs::read_dir(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("the folder {} cannot be read", path.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let relative = folder.join(entry.file_name());
            let shown = relative.to_str().with_context(|| format!("the name {} is not UTF-8", relative.display()))?;
            let content =
                fs::metadata(entry.path()).with_context(|| format!("{} cannot be read (a broken link?)", entry.path().display()))?;
            if ignored.matches(shown, content.is_dir()) {
                continue;
            }
            if entry.file_type()?.is_symlink() && !fs::canonicalize(entry.path())?.starts_with(fs::canonicalize(&self.root)?) {
                bail!("{shown} is a link out of the folder; copy what it points to, or name it in .amlignore");
            }
            if content.is_dir() {
                self.visit(&relative, ignored)?;
            } else if content.is_file() {
                self.bytes += content.len();
                self.files.push(relative);
            } else {
                bail!("{shown} is neither a file nor a folder; name it in .amlignore");
            }
        }
        Ok(())
    }

    /// Writes the zip, telling `progress` the bytes read so far.
    pub fn write<W: std::io::Write + Seek>(&self, out: W, progress: impl Fn(u64)) -> Result<()> {
        let mut zip = zip::ZipWriter::new(out);
        let mut done = 0;
        let mut buffer = vec![0; 1 << 16];
        for relative in &self.files {
            let path = self.root.join(relative);
            let mut file = fs::File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            let executable = is_executable(&file.metadata()?);
            let options = stored().large_file(true).unix_permissions(if executable { 0o755 } else { 0o644 });
            zip.start_file(relative.to_str().context("names were checked")?, options)?;
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                zip.write_all(&buffer[..count])?;
                done += count as u64;
                progress(done);
            }
        }
        zip.finish()?.flush()?;
        Ok(())
    }
}

/// How a file goes into an archive: without a time, so that the same files are the same archive, which the server keeps once and knows again.
pub fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default().last_modified_time(zip::DateTime::default())
}

fn is_executable(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0
}

/// The patterns of `.amlignore` (else `.gitignore`): names, `*` and `?`, a trailing `/` for folders, a leading `/` or an inner one for paths from the
/// root, `!` to take back. `**` is read as `*` across folders.
struct Ignored {
    patterns: Vec<Pattern>,
}

struct Pattern {
    text: String,
    anchored: bool,
    folders_only: bool,
    keep: bool,
}

impl Ignored {
    fn read(root: &Path) -> Result<Self> {
        let found = [".amlignore", ".gitignore"].iter().map(|name| root.join(name)).find(|path| path.is_file());
        let text = match found {
            Some(path) => fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?,
            None => String::new(),
        };
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patterns = lines.map(|line| {
            let (keep, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
            let (folders_only, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
            let anchored = line.contains('/') && !line.starts_with("**/");
            Pattern { text: line.trim_start_matches("**/").trim_start_matches('/').to_owned(), anchored, folders_only, keep }
        });
        Self { patterns: patterns.collect() }
    }

    fn matches(&self, path: &str, is_folder: bool) -> bool {
        if path == ".git" {
            return true;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let hits = |pattern: &&Pattern| {
            (is_folder || !pattern.folders_only) && wildcard(&pattern.text, if pattern.anchored { path } else { name })
        };
        // The last pattern that says something about the path decides, as in Git.
        self.patterns.iter().rev().find(hits).is_some_and(|pattern| !pattern.keep)
    }
}

/// Whether `text` matches `pattern`, where `*` stands for anything but `/`, `**` for anything, `?` for one character but `/`.
fn wildcard(pattern: &str, text: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**") {
        return (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| wildcard(rest.trim_start_matches('/'), &text[at..]));
    }
    let mut characters = pattern.chars();
    match characters.next() {
        None => text.is_empty(),
        Some('*') => {
            let reach = text.find('/').unwrap_or(text.len());
            (0..=reach).filter(|at| text.is_char_boundary(*at)).any(|at| wildcard(characters.as_str(), &text[at..]))
        }
        Some('?') => text.chars().next().is_some_and(|c| c != '/' && wildcard(characters.as_str(), &text[c.len_utf8()..])),
        Some(expected) => text.strip_prefix(expected).is_some_and(|rest| wildcard(characters.as_str(), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_leave_out_what_git_would_leave_out() {
        let ignored = Ignored::parse("# comment\n*.pyc\n__pycache__/\n/data\nmodels/*.bin\n!models/keep.bin\n**/tmp\n");
        let cases = [
            ("a.pyc", false, true),
            ("x/y/a.pyc", false, true),
            ("a.py", false, false),
            ("x/__pycache__", true, true),
            ("__pycache__", false, false),
            ("data", true, true),
            ("x/data", true, false),
            ("models/a.bin", false, true),
            ("models/keep.bin", false, false),
            ("a/b/tmp", true, true),
            (".git", true, true),
        ];
        for (path, is_folder, expected) in cases {
            assert_eq!(ignored.matches(path, is_folder), expected, "{path}");
        }
    }

    #[test]
    fn a_folder_becomes_a_zip_with_its_files_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("hello.py"), "print(1)").unwrap();
        fs::write(folder.path().join("sub/run.sh"), "exit").unwrap();
        fs::set_permissions(folder.path().join("sub/run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut bytes = std::io::Cursor::new(Vec::new());
        Project::scan(folder.path()).unwrap().write(&mut bytes, |_| {}).unwrap();
        let mut zip = zip::ZipArchive::new(bytes).unwrap();
        let mut seen = Vec::new();
        for index in 0..zip.len() {
            let file = zip.by_index(index).unwrap();
            assert_eq!(file.last_modified(), Some(zip::DateTime::default()), "the same files are the same archive, whenever");
            seen.push((file.name().unwrap().into_owned(), file.unix_mode().unwrap() & 0o777));
        }
        assert_eq!(seen, [("hello.py".to_owned(), 0o644), ("sub/run.sh".to_owned(), 0o755)]);
    }

    #[test]
    fn a_link_out_of_the_folder_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("leak")).unwrap();
        let error = Project::scan(folder.path()).err().unwrap().to_string();
        assert!(error.contains("leak is a link out of the folder"), "{error}");
    }
}
