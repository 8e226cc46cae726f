//! Makes the inputs of a run ready, and the folders for its outputs that are not in the working directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use serde::{Deserialize, Serialize};
use trainyard_core::{
    data::{Input, InputMechanism, Output, OutputMechanism, Section},
    run::Cause,
};

use super::{
    bucket::{Bucket, Listing},
    fault::{Fault, PATIENCE, Reached, patiently},
    files::{self, Content, Local},
    journal::{Journal, Meter, files as count, size},
    partial::{Partial, make_sure_of_room},
    source::{Desk, Named, Source},
    web,
};
use crate::{
    agent::{folder::boot_id, life::Attempt, walk::Found},
    data::DatastoreAccess,
    trust::{Access, replace_file},
};

/// Objects that are fetched at the same time.
const AT_ONCE: usize = 4;

/// Sentences about what was left out of one input that go to the run; the rest is in the log.
const MAX_LEFT_OUT: usize = 5;

/// Where everything is that a definition names.
#[derive(Debug)]
pub(in crate::agent) struct Fetched {
    pub(super) entries: Vec<Entry>,
    /// The folder that copies lie in.
    pub(super) root: PathBuf,
}

/// An input or output that is ready.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) section: Section,
    pub(super) name: String,
    pub(super) seen: Seen,
    pub(super) path_on_compute: Option<String>,
    pub(super) overwrite: bool,
    pub(super) variable: Option<String>,
}

/// How the code sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Only the address is told.
    Address(String),
    /// A file or folder of the node.
    Mounted { path: PathBuf, access: DatastoreAccess },
    /// A copy in the attempt's folder.
    Copied(PathBuf),
    /// A folder whose files are uploaded at the end; in the attempt's folder unless the definition says where.
    Collected(PathBuf),
}

/// Makes the data of `attempt` ready, apart from what has to be in its working directory. `Err`: what ends the attempt.
pub(in crate::agent) async fn fetch(attempt: &Attempt) -> Result<Fetched, Cause> {
    let desk = Desk::new(attempt)?;
    let spec = &attempt.definition.data;
    let mut fetched = Fetched { entries: Vec::new(), root: desk.root().to_owned() };
    if spec.is_empty() {
        return Ok(fetched);
    }
    let journal = Journal::of(&attempt.folder, "65_job_prep");
    for input in &spec.inputs {
        let named = Named { section: input.section, name: &input.name, location: &input.location };
        let seen = read(attempt, (&desk, &journal), input, named).await.map_err(|fault| failed(&journal, named, fault))?;
        let (name, path_on_compute, variable) = (input.name.clone(), input.path_on_compute.clone(), input.variable.clone());
        fetched.entries.push(Entry { section: input.section, name, seen, path_on_compute, overwrite: input.overwrite, variable });
    }
    for output in &spec.outputs {
        let named = Named { section: output.section, name: &output.name, location: &output.location };
        let seen = written(&desk, &journal, output, named).map_err(|fault| failed(&journal, named, fault))?;
        let (name, path_on_compute) = (output.name.clone(), output.path_on_compute.clone());
        fetched.entries.push(Entry { section: output.section, name, seen, path_on_compute, overwrite: output.overwrite, variable: None });
    }
    Ok(fetched)
}

fn failed(journal: &Journal, named: Named<'_>, fault: Fault) -> Cause {
    journal.line(&format!("error: {}: {}", named.what(), fault.message()));
    fault.into_cause(&named.what())
}

async fn read(attempt: &Attempt, (desk, journal): (&Desk<'_>, &Journal), input: &Input, named: Named<'_>) -> Result<Seen, Fault> {
    let (source, access) = desk.source(named)?;
    let what = named.what();
    match (input.mechanism, source) {
        (InputMechanism::Direct, source) => Ok(Seen::Address(source.address())),
        (InputMechanism::Mount, Source::Local(local)) => {
            let path = patiently((journal, PATIENCE), &Reached::default(), async || local.resolve()).await?;
            journal.line(&format!("{what}: `{}` is seen as it is, to be read", path.display()));
            Ok(Seen::Mounted { path, access: DatastoreAccess::Read })
        }
        (InputMechanism::MountWritable, Source::Local(local)) => {
            let open =
                async || if access == DatastoreAccess::ReadWrite { local.resolve().or_else(|_| local.make()) } else { local.resolve() };
            let path = patiently((journal, PATIENCE), &Reached::default(), open).await?;
            journal.line(&format!("{what}: `{}` is seen as it is", path.display()));
            Ok(Seen::Mounted { path, access })
        }
        (InputMechanism::Mount | InputMechanism::MountWritable, source) => {
            Err(Fault::Refused(format!("{} cannot be seen as a folder; say Download", source.shown())))
        }
        (InputMechanism::Download, source) => download(attempt, (desk, journal), source, named).await.map(Seen::Copied),
    }
}

fn written(desk: &Desk<'_>, journal: &Journal, output: &Output, named: Named<'_>) -> Result<Seen, Fault> {
    let (source, access) = desk.source(named)?;
    if access == DatastoreAccess::Read {
        return Err(Fault::Refused(format!("{} may only be read by runs", source.shown())));
    }
    match (output.mechanism, source) {
        (OutputMechanism::Mount, Source::Local(local)) => {
            let path = local.make()?;
            journal.line(&format!("{}: what is written goes to `{}` at once", named.what(), path.display()));
            Ok(Seen::Mounted { path, access })
        }
        (OutputMechanism::Mount, source) => Err(Fault::Refused(format!("{} cannot be seen as a folder; say Upload", source.shown()))),
        (OutputMechanism::Upload, source) => {
            journal.line(&format!("{}: what is written goes to {} when the code has ended", named.what(), source.shown()));
            Ok(Seen::Collected(desk.folder(named)))
        }
    }
}

/// What is known about a copy, in a file beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// What it is a copy of.
    source: String,
    /// Which life of the machine it was begun in: after another one, files may be there without their content.
    boot_id: Option<String>,
    /// Where it is, relative to the folder of data, once it is whole.
    done: Option<PathBuf>,
}

/// A copy that is being made.
struct Copy<'a> {
    root: &'a Path,
    note: PathBuf,
    content: PathBuf,
    partial: PathBuf,
    meter: Meter<'a>,
    journal: &'a Journal,
}

async fn download(attempt: &Attempt, (desk, journal): (&Desk<'_>, &Journal), source: Source, named: Named<'_>) -> Result<PathBuf, Fault> {
    let (what, shown) = (named.what(), source.shown());
    let aside = |folder: &str| desk.root().join(folder).join(format!("{}-{}", named.section.folder(), named.name));
    let copy = Copy {
        root: desk.root(),
        note: aside(".notes"),
        content: desk.folder(named),
        partial: aside(".partial"),
        meter: Meter::new(journal, &what),
        journal,
    };
    if let Some(path) = copy.begin(&shown).map_err(|error| Fault::disk("the folder for data cannot be used", &error))? {
        return Ok(path);
    }
    journal.line(&format!("{what}: copying {shown}"));
    let (path, number) = match source {
        Source::Web { address, shown } => (copy.web(&address, &shown).await?, 1),
        Source::Local(local) => copy.node(attempt, (&what, local)).await?,
        Source::Bucket(bucket) => copy.bucket(attempt, (&what, &bucket)).await?,
    };
    copy.end(&shown, &path).map_err(|error| Fault::disk("the note about the copy cannot be written", &error))?;
    let (bytes, seconds) = (size(copy.meter.bytes()), copy.meter.elapsed().as_secs_f64());
    journal.line(&format!("{what}: ready, {}, {bytes}, after {seconds:.1} s", count(number)));
    Ok(path)
}

impl Copy<'_> {
    /// The copy, if it is whole. What is there of another source, or from before the machine was restarted, is thrown away.
    fn begin(&self, source: &str) -> io::Result<Option<PathBuf>> {
        let note: Option<Note> = fs::read(&self.note).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let boot_id = boot_id();
        match note {
            Some(Note { source: before, done: Some(path), .. }) if before == source && self.root.join(&path).exists() => {
                return Ok(Some(self.root.join(path)));
            }
            Some(Note { source: before, boot_id: life, done: None }) if before == source && life == boot_id => {}
            _ => {
                for folder in [&self.content, &self.partial] {
                    match fs::remove_dir_all(folder) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        for folder in [self.note.parent(), Some(self.content.as_path()), Some(self.partial.as_path())].into_iter().flatten() {
            fs::create_dir_all(folder)?;
        }
        self.write(&Note { source: source.to_owned(), boot_id, done: None }).map(|()| None)
    }

    /// Notes that the copy is whole: on disk, too.
    fn end(&self, source: &str, path: &Path) -> io::Result<()> {
        trainyard_store::fail_point!("agent.data_copied", io)?;
        rustix::fs::syncfs(fs::File::open(&self.content)?)?;
        let done = path.strip_prefix(self.root).map_err(io::Error::other)?.to_owned();
        self.write(&Note { source: source.to_owned(), boot_id: boot_id(), done: Some(done) })?;
        // Nothing in it is needed any more; if it stays it goes with the attempt's folder.
        let _ = fs::remove_dir_all(&self.partial);
        Ok(())
    }

    fn write(&self, note: &Note) -> io::Result<()> {
        let text = serde_json::to_vec(note)?;
        replace_file(&self.note, &text, Access::Owner).map_err(|error| match error.kind() {
            trainyard_core::ErrorKind::StorageFull => io::Error::new(io::ErrorKind::StorageFull, error),
            _ => io::Error::other(error),
        })
    }

    async fn web(&self, address: &str, shown: &str) -> Result<PathBuf, Fault> {
        let name = web::file_name(address);
        let path = self.content.join(&name);
        if path.exists() {
            return Ok(path);
        }
        let (client, partial, reached) = (web::client()?, Partial::new(&self.partial, &name), Reached::default());
        let fetch = async || web::fetch((&client, address, shown), &partial, (&self.meter, &reached)).await;
        patiently((self.journal, PATIENCE), &reached, fetch).await?;
        partial.finish(&path)?;
        Ok(path)
    }

    async fn node(&self, attempt: &Attempt, (what, local): (&str, Local)) -> Result<(PathBuf, usize), Fault> {
        let look = async || {
            let local = local.clone();
            tokio::task::spawn_blocking(move || local.content()).await.map_err(|_| Fault::Machine("looking at it broke off".into()))?
        };
        let content = patiently((self.journal, PATIENCE), &Reached::default(), look).await?;
        let (path, found) = match content {
            Content::File(found) => (self.content.join(&found.path), vec![found]),
            Content::Folder(listing) => {
                self.left_out(attempt, (what, &listing.left_out));
                (self.content.clone(), listing.files)
            }
        };
        self.expect(found.iter().map(|found| (found.path.as_str(), found.stamp.length)))?;
        for found in &found {
            self.copy_one(found).await?;
        }
        Ok((path, found.len()))
    }

    async fn copy_one(&self, found: &Found) -> Result<(), Fault> {
        let to = self.content.join(&found.path);
        if self.is_there(&found.path, found.stamp.length) {
            self.meter.add(found.stamp.length);
            return Ok(());
        }
        let partial = Partial::new(&self.partial, &found.path);
        let copy = async || files::copy_in(found, &to, partial.clone(), &self.meter).await;
        patiently((self.journal, PATIENCE), &Reached::default(), copy).await
    }

    async fn bucket(&self, attempt: &Attempt, (what, bucket): (&str, &Bucket)) -> Result<(PathBuf, usize), Fault> {
        let (path, objects) = match patiently((self.journal, PATIENCE), &Reached::default(), async || bucket.list().await).await? {
            Listing::Object(object) => {
                let name = object.location.filename().unwrap_or("object").to_owned();
                (self.content.join(&name), vec![(name, object)])
            }
            Listing::Below { objects, left_out } => {
                self.left_out(attempt, (what, &left_out));
                (self.content.clone(), objects)
            }
        };
        self.expect(objects.iter().map(|(name, object)| (name.as_str(), object.size)))?;
        let copies = objects.iter().map(|(name, object)| self.fetch_one(bucket, (name, object)));
        futures_util::stream::iter(copies).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        Ok((path, objects.len()))
    }

    async fn fetch_one(&self, bucket: &Bucket, (name, object): (&str, &ObjectMeta)) -> Result<(), Fault> {
        if self.is_there(name, object.size) {
            self.meter.add(object.size);
            return Ok(());
        }
        let (partial, reached) = (Partial::new(&self.partial, name), Reached::default());
        let fetch = async || bucket.fetch(object, &partial, (&self.meter, &reached)).await;
        patiently((self.journal, PATIENCE), &reached, fetch).await?;
        partial.finish(&self.content.join(name))
    }

    /// Whether a former try of this life of the machine has finished a file: it has its name only since it is whole.
    fn is_there(&self, name: &str, length: u64) -> bool {
        fs::metadata(self.content.join(name)).is_ok_and(|meta| meta.is_file() && meta.len() == length)
    }

    /// Says what is coming, and refuses what the disk has no room for.
    fn expect<'f>(&self, files: impl Iterator<Item = (&'f str, u64)>) -> Result<(), Fault> {
        let (mut all, mut missing) = (0, 0);
        for (name, length) in files {
            all += length;
            missing += if self.is_there(name, length) { 0 } else { length };
        }
        self.meter.expect(all);
        make_sure_of_room(&self.content, missing)
    }

    fn left_out(&self, attempt: &Attempt, (what, sentences): (&str, &[String])) {
        for sentence in sentences {
            self.journal.line(&format!("{what}: {sentence}"));
        }
        for sentence in sentences.iter().take(MAX_LEFT_OUT) {
            attempt.warn(format!("{what}: {sentence}"));
        }
        if sentences.len() > MAX_LEFT_OUT {
            attempt.warn(format!("{what}: … and {} more; azureml-logs/65_job_prep.txt names them", sentences.len() - MAX_LEFT_OUT));
        }
    }
}
