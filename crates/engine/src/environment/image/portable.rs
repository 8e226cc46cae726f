//! A program of this machine that runs in any image: with the loader and the libraries of this machine beside it, whatever C library the image has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::super::{
    command::{ask, command},
    host::Host,
    prepare::PrepareError,
};

/// The words that start `program` inside an image that sees `folder`, into which its libraries are copied; without those words where it needs none.
pub(super) async fn words(host: &Host, program: &Path, folder: &Path, cancel: &CancellationToken) -> Result<Vec<PathBuf>, PrepareError> {
    let mut question = command(host, program);
    // The loader answers instead of starting the program.
    question.env("LD_TRACE_LOADED_OBJECTS", "1").arg("--version");
    let (_, answer) = ask(question, cancel).await?;
    let Some((loader, libraries)) = read(&answer) else { return Ok(vec![program.to_owned()]) };
    let failed = |error| PrepareError::disk("the libraries of uv cannot be copied", error);
    fs::create_dir_all(folder).map_err(failed)?;
    for (name, path) in &libraries {
        fs::copy(path, folder.join(name)).map_err(failed)?;
    }
    let own_loader = folder.join("loader");
    fs::copy(&loader, &own_loader).map_err(failed)?;
    Ok(vec![own_loader, "--library-path".into(), folder.to_owned(), program.to_owned()])
}

type Libraries = Vec<(String, PathBuf)>;

/// The loader and the libraries in a list like that of `ldd`; `None`: it is none, the program stands alone.
fn read(answer: &str) -> Option<(PathBuf, Libraries)> {
    let mut loader = None;
    let mut libraries = Libraries::new();
    for line in answer.lines().map(str::trim) {
        let (name, place) = match line.split_once(" => ") {
            Some((name, place)) => (name, place),
            None => ("", line),
        };
        let Some(path) = place.rsplit_once(" (0x").map(|(path, _)| PathBuf::from(path)).filter(|path| path.is_absolute()) else { continue };
        if name.is_empty() || name.starts_with('/') {
            loader = Some(path);
        } else {
            libraries.push((name.to_owned(), path));
        }
    }
    Some((loader?, libraries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_a_loader_is_read() {
        let answer = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = (PathBuf::from("/lib64/ld-linux-x86-64.so.2"), vec![("libc.so.6".to_owned(), PathBuf::from("/lib/libc.so.6"))]);
        assert_eq!(read(answer), Some(expected));
        assert_eq!(read("uv 0.13.9 (x86_64-unknown-linux-musl)"), None);
    }
}
