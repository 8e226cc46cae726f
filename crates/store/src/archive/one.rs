//! Reading one file of a staged upload, for what a definition refers to in its snapshot.

use std::{
    cell::Cell,
    fs::File,
    io::{BufReader, Cursor, Read, Seek},
};

use trainyard_core::{Error, ErrorKind, Result, archive::ArchiveLimits};

use super::{DIRECTORY_BUDGET_BYTES, Opened, inflate::Inflater};
use crate::blobs::{StagedBlob, StagedContent, storage_error};

/// A file that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its path in the archive; a leading `./` and Windows separators do not matter.
    pub path: String,
    /// A longer one is refused.
    pub max_bytes: u64,
}

/// Reads one file of an archive that was inspected. [`ErrorKind::Invalid`] with what the archive has instead,
/// [`ErrorKind::TooLarge`] over the limit; messages begin with the path.
pub async fn read_staged(staged: &StagedBlob, limits: ArchiveLimits, wanted: Wanted) -> Result<Vec<u8>> {
    let task = match staged.content() {
        StagedContent::Memory(bytes) => {
            let bytes = bytes.clone();
            tokio::task::spawn_blocking(move || read(Cursor::new(bytes), &limits, &wanted))
        }
        StagedContent::File(path) => {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || {
                let file = File::open(&path).map_err(|error| storage_error("the uploaded zip cannot be read", error))?;
                read(BufReader::new(file), &limits, &wanted)
            })
        }
    };
    task.await.map_err(Error::internal)?
}

fn read(reader: impl Read + Seek, limits: &ArchiveLimits, wanted: &Wanted) -> Result<Vec<u8>> {
    let budget = Cell::new(DIRECTORY_BUDGET_BYTES);
    let mut opened = Opened::new(reader, &budget, limits)?;
    let index = opened.plan.find_file(&wanted.path)?;
    let size = opened.plan.files[index].size_bytes;
    if size > wanted.max_bytes {
        let message = format!("`{}` has {size} bytes, and {} are the most", opened.plan.files[index].path, wanted.max_bytes);
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    let mut content = Vec::new();
    opened.read(index, &mut Inflater::new(), |bytes| {
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    #[test]
    fn one_file_is_read_by_its_path_and_a_missing_or_long_one_is_named() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in [("train.py", "print()"), ("env/conda.yml", "name: x")] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        let bytes = zip.finish().unwrap().into_inner();
        let limits = ArchiveLimits { max_unpacked_bytes: 1000, max_files: 10, max_ratio: 100 };
        let read = |path: &str, max_bytes| read(Cursor::new(&bytes), &limits, &Wanted { path: path.into(), max_bytes });
        assert_eq!(read("./env\\conda.yml", 100).unwrap(), b"name: x");
        assert_eq!(
            read("conda.yml", 100).unwrap_err().message(),
            "`conda.yml` is not in the zip; it has `env/conda.yml`: zip the content of the folder, not the folder"
        );
        assert_eq!(read("env/conda.yml", 3).unwrap_err().kind(), ErrorKind::TooLarge);
        assert!(read("../env/conda.yml", 100).is_err());
    }
}
