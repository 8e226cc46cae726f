//! Takes what the code has left to its places, whether it ended well or not: what it wrote until then may be what is needed to go on.
//!
//! Delivering again stores nothing twice: the same bytes under the same name are left alone.

use std::{path::PathBuf, time::Duration};

use futures_util::StreamExt as _;
use trainyard_core::data::{Output, OutputMechanism, matches};

use super::{
    bucket::{Replaces, Stored},
    fault::{Fault, Reached, patiently},
    files::{self, listing_below},
    journal::{Journal, Meter, files as count, size},
    source::{Desk, Named, Source},
};
use crate::{
    agent::{
        life::Attempt,
        walk::{Found, Listing, Stamp},
    },
    data::DatastoreAccess,
};

/// For how long a place that does not answer is asked again. The run is not over before.
const PATIENCE: Duration = Duration::from_secs(120);

/// Files that are stored at the same time.
const AT_ONCE: usize = 4;

/// Files of one output that are named in warnings when others stand in their places; the rest is in the log.
const MAX_NAMED: usize = 5;

/// Stores the outputs of `attempt` that are to be uploaded. Gives what could not be, a sentence each.
pub(in crate::agent) async fn deliver(attempt: &Attempt) -> Vec<String> {
    let outputs: Vec<&Output> =
        attempt.definition.data.outputs.iter().filter(|output| output.mechanism == OutputMechanism::Upload).collect();
    let Ok(desk) = Desk::new(attempt) else { return Vec::new() };
    let mut warnings = Vec::new();
    if outputs.is_empty() {
        return warnings;
    }
    let journal = Journal::of(&attempt.folder, "75_job_post");
    for output in outputs {
        let named = Named { section: output.section, name: &output.name, location: &output.location };
        let delivery = Delivery { journal: &journal, what: named.what(), output };
        let result = tokio::select! {
            result = delivery.run(attempt, &desk, named) => result,
            () = attempt.control.abandoned() => return warnings,
        };
        match result {
            Ok(more) => warnings.extend(more),
            Err(fault) => {
                let warning = format!("{} is not stored: {}", delivery.what, fault.message());
                journal.line(&format!("error: {warning}"));
                warnings.push(warning);
            }
        }
    }
    warnings
}

struct Delivery<'a> {
    journal: &'a Journal,
    what: String,
    output: &'a Output,
}

impl Delivery<'_> {
    async fn run(&self, attempt: &Attempt, desk: &Desk<'_>, named: Named<'_>) -> Result<Vec<String>, Fault> {
        let (source, access) = desk.source(named)?;
        if access == DatastoreAccess::Read {
            return Err(Fault::Refused(format!("{} may only be read by runs", source.shown())));
        }
        let from = self.output.path_on_compute.as_ref().map_or_else(|| desk.folder(named), |path| attempt.folder.work().join(path));
        let within = if self.output.path_on_compute.is_some() { attempt.folder.work() } else { from.clone() };
        let task = tokio::task::spawn_blocking(move || left(from, within));
        let Listing { files, left_out: mut warnings } = task.await.map_err(|_| Fault::Machine("looking at it broke off".into()))?;
        for warning in &mut warnings {
            *warning = format!("{}: {warning}", self.what);
        }
        let globs = &self.output.globs;
        let wanted: Vec<Found> =
            files.into_iter().filter(|found| globs.is_empty() || globs.iter().any(|glob| matches(glob, &found.path))).collect();
        let meter = Meter::new(self.journal, &self.what);
        meter.expect(wanted.iter().map(|found| found.stamp.length).sum());
        let others = self.store_all(&source, &wanted, &meter).await?;
        let stored = count(wanted.len() - others.len());
        self.journal.line(&format!("{}: {stored}, {}, are in {}", self.what, size(meter.bytes()), source.shown()));
        warnings.extend(self.about_others(&others, &source));
        Ok(warnings)
    }

    /// Gives the files in whose places others are.
    async fn store_all<'f>(&self, source: &Source, wanted: &'f [Found], meter: &Meter<'_>) -> Result<Vec<&'f str>, Fault> {
        let replaces = if self.output.overwrite { Replaces::Others } else { Replaces::Nothing };
        let target = match source {
            Source::Local(local) => Target::Folder(patiently((self.journal, PATIENCE), &Reached::default(), async || local.make()).await?),
            Source::Bucket(bucket) => Target::Bucket(bucket),
            Source::Web { shown, .. } => return Err(Fault::Refused(format!("nothing can be stored in {shown}"))),
        };
        let store = |found: &'f Found| {
            let target = &target;
            async move {
                let stored = patiently((self.journal, PATIENCE), &Reached::default(), async || target.store(found, replaces).await).await;
                if stored.is_ok() {
                    meter.add(found.stamp.length);
                }
                stored.map(|stored| (found.path.as_str(), stored))
            }
        };
        let mut results = futures_util::stream::iter(wanted.iter().map(store)).buffer_unordered(AT_ONCE);
        let mut others = Vec::new();
        while let Some(result) = results.next().await {
            // The first failure ends it: a place that does not answer would keep every file waiting.
            if let (path, Stored::OtherIsThere) = result? {
                others.push(path);
            }
        }
        others.sort_unstable();
        Ok(others)
    }

    fn about_others(&self, others: &[&str], source: &Source) -> Vec<String> {
        let sentence = |path: &&str| {
            format!(
                "{}: `{path}` is not stored: {} has another file of that name; say Overwrite = true to replace it",
                self.what,
                source.shown()
            )
        };
        for line in others.iter().map(sentence) {
            self.journal.line(&line);
        }
        let mut warnings: Vec<String> = others.iter().take(MAX_NAMED).map(sentence).collect();
        if others.len() > MAX_NAMED {
            warnings.push(format!("{}: … and {} more; azureml-logs/75_job_post.txt names them", self.what, others.len() - MAX_NAMED));
        }
        warnings
    }
}

/// Where files go.
enum Target<'a> {
    Folder(PathBuf),
    Bucket(&'a super::bucket::Bucket),
}

impl Target<'_> {
    async fn store(&self, found: &Found, replaces: Replaces) -> Result<Stored, Fault> {
        match self {
            Self::Bucket(bucket) => bucket.store(&found.file, &found.path, replaces).await,
            Self::Folder(folder) => {
                let (file, folder, path) = (found.file.clone(), folder.clone(), found.path.clone());
                let task = tokio::task::spawn_blocking(move || files::store(&file, (&folder, &path), replaces));
                task.await.map_err(|_| Fault::Machine("copying broke off".into()))?
            }
        }
    }
}

/// What the code has left at `from`: the files of a folder, or one file.
fn left(from: PathBuf, within: PathBuf) -> Listing {
    match std::fs::symlink_metadata(&from) {
        Ok(meta) if meta.is_file() => {
            let path = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Listing { files: vec![Found { path, stamp: Stamp::of(&meta), file: from }], left_out: Vec::new() }
        }
        _ => listing_below(&from, &within),
    }
}
