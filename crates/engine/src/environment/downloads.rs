//! What environments are made of, kept so that the next one need not fetch it again: how much room it takes, and what of it goes.
//!
//! Beyond `max_bytes` the longest unused goes first: a conda package, the indexes of channels, an image file, or all that uv keeps, whose
//! cache cannot be taken apart from outside. What an archive brought is counted and stays: where it came from there is no network. Nothing
//! goes while anybody builds with it or, of images, runs in it. Built environments do not notice: their files are their own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use trainyard_conda::{indexes_in, kept_packages};

use super::{
    cache::{BuilderLock, Cache},
    evict::{modified, remove},
    measure::bytes_of,
    usage::Unused,
};

/// How often the size of the downloads is looked at: it takes a walk through all of them.
const MEASURE_PAUSE: Duration = Duration::from_secs(3600);

/// What downloads take on the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downloads {
    /// What uv keeps: wheels, unpacked, and what it knows of indexes.
    pub pip: u64,
    /// Unpacked conda packages.
    pub conda: u64,
    /// The indexes of conda channels.
    pub indexes: u64,
    /// Images as files, for Apptainer. What Podman and Docker keep is theirs.
    pub images: u64,
    /// What archives brought. It is not removed to make room.
    pub imported: u64,
}

impl Downloads {
    /// What may be removed to make room.
    pub fn removable(&self) -> u64 {
        self.pip + self.conda + self.indexes + self.images
    }

    /// Without what is gone.
    pub(super) fn subtract(&mut self, gone: &Self) {
        for kind in [Kind::Pip, Kind::Conda, Kind::Indexes, Kind::Image] {
            let mut gone = *gone;
            *self.of(kind) = self.of(kind).saturating_sub(*gone.of(kind));
        }
    }

    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Pip => &mut self.pip,
            Kind::Conda => &mut self.conda,
            Kind::Indexes => &mut self.indexes,
            Kind::Image => &mut self.images,
        }
    }
}

/// What can be fetched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// All that uv keeps.
    Pip,
    /// A conda package.
    Conda,
    /// The indexes of conda channels.
    Indexes,
    /// An image as a file.
    Image,
}

/// Notes that what can only go as a whole was used; conda packages and images have times of their own.
pub(super) fn note_use(cache: &Cache, kind: Kind) {
    cache.note("downloads", note_name(kind), &());
}

fn note_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Pip => "pip",
        Kind::Conda => "conda",
        Kind::Indexes => "indexes",
        Kind::Image => "images",
    }
}

/// The lock that keeps an image file from being removed, and whose time is its last use.
pub(super) fn image_use_file(cache: &Cache, name: &str) -> PathBuf {
    cache.root().join("uses").join(format!("image-{name}.lock"))
}

/// The lock of whoever fetches an image.
pub(super) fn image_lock_file(cache: &Cache, name: &str) -> PathBuf {
    cache.root().join("locks").join(format!("pull-{name}.lock"))
}

/// Something that goes as a whole.
struct Item {
    kind: Kind,
    /// What takes the room.
    place: PathBuf,
    /// Notes that are worth nothing without it.
    notes: Vec<PathBuf>,
    last_used: SystemTime,
    bytes: u64,
}

fn items(cache: &Cache) -> Vec<Item> {
    let downloads = cache.conda_packages();
    let whole = |kind, place: PathBuf| {
        let used = modified(&cache.download_note(note_name(kind))).into_iter().chain(modified(&place)).max();
        Item { kind, bytes: tree_bytes(&place), place, notes: Vec::new(), last_used: used.unwrap_or(SystemTime::UNIX_EPOCH) }
    };
    let mut items = vec![whole(Kind::Pip, cache.packages()), whole(Kind::Indexes, indexes_in(&downloads))];
    for package in kept_packages(&downloads) {
        let bytes = tree_bytes(&package.folder);
        items.push(Item { kind: Kind::Conda, place: package.folder, notes: vec![package.note], last_used: package.last_used, bytes });
    }
    for (name, place) in images(cache) {
        let used = modified(&image_use_file(cache, &name)).into_iter().chain(modified(&place)).max();
        let (bytes, notes) = (tree_bytes(&place), vec![place.with_extension("json")]);
        items.push(Item { kind: Kind::Image, place, notes, last_used: used.unwrap_or(SystemTime::UNIX_EPOCH), bytes });
    }
    items.retain(|item| item.bytes > 0);
    items.sort_by_key(|item| item.last_used);
    items
}

/// The image files, each with the name of its locks.
fn images(cache: &Cache) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(cache.images()) else { return Vec::new() };
    let files = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "sif"));
    files.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))).collect()
}

/// What downloads take.
pub(super) fn measure(cache: &Cache) -> Downloads {
    let mut found = Downloads { imported: tree_bytes(&cache.wheels()) + tree_bytes(&cache.brought()), ..Downloads::default() };
    for item in items(cache) {
        *found.of(item.kind) += item.bytes;
    }
    found
}

/// Removes the longest unused downloads until the rest takes no more than `max_bytes`; gives what went, or with `dry_run` would go.
pub(super) fn make_room(cache: &Cache, max_bytes: u64, how: How) -> io::Result<Downloads> {
    let items = items(cache);
    let mut bytes: u64 = items.iter().map(|item| item.bytes).sum();
    let mut gone = Downloads::default();
    if bytes <= max_bytes {
        return Ok(gone);
    }
    // Held until everything was renamed: whoever builds waits that long.
    let alone = Unused::claim(&cache.downloads_lock())?;
    let mut trash = Vec::new();
    for item in items {
        if bytes <= max_bytes {
            break;
        }
        let _image = match item.kind {
            Kind::Image => match claim_image(cache, &item)? {
                Some(locks) => Some(locks),
                None => continue,
            },
            _ if alone.is_none() => continue,
            _ => None,
        };
        if how == How::Really {
            trash.extend(discard(cache, &item)?);
        }
        bytes -= item.bytes;
        *gone.of(item.kind) += item.bytes;
    }
    drop(alone);
    trash.iter().for_each(|place| remove(place));
    Ok(gone)
}

/// Removes what archives brought; gives what it took. Nothing goes while anybody installs.
pub(super) fn clear_imported(cache: &Cache, how: How) -> io::Result<u64> {
    let Some(alone) = Unused::claim(&cache.downloads_lock())? else { return Ok(0) };
    let mut bytes = 0;
    let mut trash = Vec::new();
    for place in [cache.wheels(), cache.brought()] {
        bytes += tree_bytes(&place);
        if how == How::Really {
            trash.extend(take_away(cache, &place)?);
        }
    }
    drop(alone);
    trash.iter().for_each(|place| remove(place));
    Ok(bytes)
}

/// Whether things go, or are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// They go.
    Really,
    /// They stay.
    Dry,
}

/// [`make_room`], if nobody has looked for a while.
pub(super) fn make_room_sometimes(cache: &Cache, max_bytes: u64) {
    if !is_due(cache) {
        return;
    }
    match make_room(cache, max_bytes, How::Really) {
        Ok(gone) if gone == Downloads::default() => {}
        Ok(gone) => tracing::info!(max_bytes, freed_bytes = gone.removable(), "downloads of environments were removed to make room"),
        Err(error) => tracing::warn!(%error, "downloads of environments could not be removed"),
    }
}

/// Whether the downloads were not measured for a while; they are from now on.
fn is_due(cache: &Cache) -> bool {
    let measured = modified(&cache.download_note("measured"));
    let fresh = measured.and_then(|measured| measured.elapsed().ok()).is_some_and(|age| age < MEASURE_PAUSE);
    if !fresh {
        cache.note("downloads", "measured", &());
    }
    !fresh
}

/// The right to remove an image: nobody fetches it, nobody runs in it.
fn claim_image(cache: &Cache, item: &Item) -> io::Result<Option<(BuilderLock, Unused)>> {
    let name = item.place.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(fetching) = BuilderLock::try_acquire(&image_lock_file(cache, name))? else { return Ok(None) };
    Ok(Unused::claim(&image_use_file(cache, name))?.map(|unused| (fetching, unused)))
}

fn discard(cache: &Cache, item: &Item) -> io::Result<Option<PathBuf>> {
    let trash = take_away(cache, &item.place)?;
    for note in &item.notes {
        match fs::remove_file(note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(trash)
}

/// Takes something out of its place at one stroke. `None`: it was not there.
pub(super) fn take_away(cache: &Cache, place: &Path) -> io::Result<Option<PathBuf>> {
    let trash = cache.new_trash("download")?;
    match fs::rename(place, &trash) {
        Ok(()) => Ok(Some(trash)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a file, or the files below a folder, take.
pub(super) fn tree_bytes(place: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(place) else { return 0 };
    if !metadata.is_dir() {
        return bytes_of(&metadata);
    }
    let (mut bytes, mut folders) = (0, vec![place.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += bytes_of(&metadata);
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::{super::usage::InUse, *};

    /// A cache with one thing of each kind, written so many days ago.
    fn filled() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        for (place, days) in [
            ("uv/archive-v0/a/one.py", 3),
            ("conda/indexes/c.json", 5),
            ("conda/pkgs/greet-1.0-0/info/index.json", 4),
            ("conda/pkgs/greet-1.0-0.lock", 4),
            ("images/old.sif", 9),
            ("images/new.sif", 1),
            ("wheels/one.whl", 90),
            ("packages/aa/greet.conda", 90),
        ] {
            let place = folder.path().join(place);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, vec![b'x'; 50_000]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(days * 86_400);
            for place in place.ancestors().take_while(|place| *place != folder.path()) {
                fs::File::open(place).unwrap().set_modified(then).unwrap();
            }
        }
        (folder, cache)
    }

    #[test]
    fn everything_is_counted_under_its_kind() {
        let (_folder, cache) = filled();
        let Downloads { pip, conda, indexes, images, imported } = measure(&cache);
        for bytes in [pip, conda, indexes, images / 2, imported / 2] {
            assert!((50_000..150_000).contains(&bytes), "{bytes}");
        }
    }

    #[tokio::test]
    async fn the_longest_unused_goes_first_and_an_image_only_while_no_run_is_in_it() {
        let (_folder, cache) = filled();
        let all = measure(&cache).removable();
        let in_use = InUse::share(image_use_file(&cache, "old"), &CancellationToken::new()).await.unwrap();
        // Of what is left the indexes were not used for the longest time.
        let gone = make_room(&cache, all - 1, How::Really).unwrap();
        assert!(gone.indexes > 0 && gone.removable() == gone.indexes, "{gone:?}");
        drop(in_use);
        let gone = make_room(&cache, 0, How::Dry).unwrap();
        assert_eq!(gone.removable(), measure(&cache).removable());
        let gone = make_room(&cache, 0, How::Really).unwrap();
        assert!(gone.pip > 0 && gone.conda > 0 && gone.images > 0, "{gone:?}");
        let left = measure(&cache);
        assert!(left.removable() == 0 && left.imported > 0, "what archives brought stays: {left:?}");
        assert!(!cache.conda_packages().join("pkgs/greet-1.0-0.lock").exists());
        assert_eq!(clear_imported(&cache, How::Really).unwrap(), left.imported);
        assert_eq!((measure(&cache), fs::read_dir(cache.trash_folder()).unwrap().count()), (Downloads::default(), 0));
    }

    #[tokio::test]
    async fn nothing_goes_while_somebody_builds_and_a_use_counts() {
        let (_folder, cache) = filled();
        let building = InUse::share(cache.downloads_lock(), &CancellationToken::new()).await.unwrap();
        let gone = make_room(&cache, 0, How::Really).unwrap();
        assert_eq!((gone.pip, gone.conda, gone.indexes, clear_imported(&cache, How::Really).unwrap()), (0, 0, 0, 0));
        assert!(gone.images > 0, "an image is of no use to a build of packages");
        drop(building);
        note_use(&cache, Kind::Indexes);
        let all = measure(&cache).removable();
        let gone = make_room(&cache, all - 1, How::Really).unwrap();
        assert!(gone.conda > 0 && gone.indexes == 0, "the indexes were just used: {gone:?}");
    }
}
