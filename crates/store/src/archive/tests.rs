use std::{
    fs,
    io::{Cursor, Write},
    os::unix::fs::PermissionsExt,
};

use flate2::{Compression, Crc, write::DeflateEncoder};
use proptest::prelude::*;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

/// One entry as it stands in an archive, true or not.
#[derive(Clone)]
struct Raw {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    size: u32,
    packed: Vec<u8>,
    attributes: u32,
    /// Index of an earlier entry whose bytes the directory names instead of its own.
    shares: Option<usize>,
}

impl Raw {
    fn stored(name: &str, content: &[u8]) -> Self {
        let mut crc = Crc::new();
        crc.update(content);
        let name = name.as_bytes().to_vec();
        let attributes = 0o100_644 << 16;
        Self { name, flags: 0, method: 0, crc: crc.sum(), size: content.len() as u32, packed: content.to_vec(), attributes, shares: None }
    }

    fn deflated(name: &str, content: &[u8]) -> Self {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        Self { method: 8, packed: encoder.finish().unwrap(), ..Self::stored(name, content) }
    }
}

/// Lays the entries out as a zip; a flag of 8 puts sizes and checksum behind the data, as streaming writers do.
fn zip_of(entries: &[Raw]) -> Vec<u8> {
    let mut zip = Vec::new();
    let mut starts = Vec::new();
    for entry in entries {
        starts.push(zip.len() as u32);
        let behind = entry.flags & 8 != 0;
        let known = if behind { [0; 3] } else { [entry.crc, entry.packed.len() as u32, entry.size] };
        zip.extend(b"PK\x03\x04\x14\x00");
        zip.extend([entry.flags.to_le_bytes(), entry.method.to_le_bytes(), [0; 2], [0x21, 0]].concat());
        zip.extend(known.iter().flat_map(|n| n.to_le_bytes()));
        zip.extend([(entry.name.len() as u16).to_le_bytes(), [0; 2]].concat());
        zip.extend(&entry.name);
        zip.extend(&entry.packed);
        if behind {
            zip.extend(b"PK\x07\x08");
            zip.extend([entry.crc, entry.packed.len() as u32, entry.size].iter().flat_map(|n| n.to_le_bytes()));
        }
    }
    let directory = zip.len() as u32;
    for (index, entry) in entries.iter().enumerate() {
        zip.extend(b"PK\x01\x02\x14\x03\x14\x00");
        zip.extend([entry.flags.to_le_bytes(), entry.method.to_le_bytes(), [0; 2], [0x21, 0]].concat());
        zip.extend([entry.crc, entry.packed.len() as u32, entry.size].iter().flat_map(|n| n.to_le_bytes()));
        zip.extend([(entry.name.len() as u16).to_le_bytes(), [0; 2], [0; 2], [0; 2], [0; 2]].concat());
        zip.extend([entry.attributes, starts[entry.shares.unwrap_or(index)]].iter().flat_map(|n| n.to_le_bytes()));
        zip.extend(&entry.name);
    }
    let count = (entries.len() as u16).to_le_bytes();
    let size = zip.len() as u32 - directory;
    zip.extend(b"PK\x05\x06\x00\x00\x00\x00");
    zip.extend([count, count].concat());
    zip.extend([size, directory].iter().flat_map(|n| n.to_le_bytes()));
    zip.extend([0; 2]);
    zip
}

/// What a usual tool makes of a usual project.
fn project() -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    writer.start_file("hello.py", deflated.unix_permissions(0o664)).unwrap();
    writer.write_all(b"print('Hello!')\n").unwrap();
    writer.add_directory("outputs/", stored).unwrap();
    writer.start_file("src/deep/run.sh", stored.unix_permissions(0o4777)).unwrap();
    writer.write_all(b"#!/bin/sh\n").unwrap();
    writer.start_file("data/\u{e9}.csv", deflated).unwrap();
    writer.write_all(&lines()).unwrap();
    writer.start_file("empty", deflated).unwrap();
    writer.set_comment("made by a test").unwrap();
    writer.finish().unwrap().into_inner()
}

/// 300 kB that deflate to less, over several buffers.
fn lines() -> Vec<u8> {
    (0..30_000u32).flat_map(|n| format!("{:09}\n", n.wrapping_mul(2_654_435_761) % 1_000_000_000).into_bytes()).collect()
}

fn inspect_all(bytes: &[u8]) -> Result<ArchivePlan> {
    inspect_bytes(bytes, &ArchiveLimits::default())
}

fn refusal(entries: &[Raw]) -> Error {
    inspect_all(&zip_of(entries)).expect_err("the archive is refused")
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn unpack_all(bytes: &[u8], destination: &Path) -> Result<()> {
    unpack(file_of(bytes), &ArchiveLimits::default(), destination)
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_usual_project_is_inspected_and_unpacks_to_what_was_packed() {
    let zip = project();
    let plan = inspect_all(&zip).unwrap();
    let paths: Vec<_> = plan.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["hello.py", "src/deep/run.sh", "data/\u{e9}.csv", "empty"]);
    let folder = tempfile::tempdir().unwrap();
    let on_disk = folder.path().join("project.zip");
    fs::write(&on_disk, &zip).unwrap();
    assert_eq!(inspect(&on_disk, &ArchiveLimits::default()).unwrap(), plan);

    let code = folder.path().join("code");
    unpack(File::open(&on_disk).unwrap(), &ArchiveLimits::default(), &code).unwrap();
    assert_eq!(names_in(folder.path()), ["code", "project.zip"]);
    assert_eq!(names_in(&code), ["data", "empty", "hello.py", "outputs", "src"]);
    assert_eq!(fs::read(code.join("hello.py")).unwrap(), b"print('Hello!')\n");
    assert_eq!(fs::read(code.join("data/\u{e9}.csv")).unwrap(), lines());
    assert_eq!(fs::read(code.join("empty")).unwrap(), b"");
    assert!(code.join("outputs").is_dir());
    let mode = |path: &str| code.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("src/deep/run.sh") & !0o022, 0o755);
    assert_eq!(mode("hello.py") & !0o022, 0o644);
}

#[tokio::test]
async fn a_staged_upload_is_inspected_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = crate::blobs::Blobs::open("file", folder.path()).unwrap();
    let incompressible: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    for zip in [
        zip_of(&[Raw::stored("small", b"x")]),
        zip_of(&[Raw::deflated("text", &lines().repeat(3))]),
        zip_of(&[Raw::stored("large", &incompressible)]),
    ] {
        let damaged = [&zip[..zip.len() - 30], &zip[zip.len() - 29..]].concat();
        for (bytes, fine) in [(zip, true), (damaged, false)] {
            let mut writer = blobs.stage(u64::MAX).await.unwrap();
            writer.write(bytes.clone().into()).await.unwrap();
            let staged = writer.finish().await.unwrap();
            let answer = inspect_staged(&staged, ArchiveLimits::default()).await;
            assert_eq!(answer.is_ok(), fine);
            assert_eq!(answer.ok(), inspect_all(&bytes).ok());
        }
    }
}

#[test]
fn what_is_not_a_zip_is_called_so() {
    for bytes in [&b"hello"[..], b"PK", b"\x1f\x8b tar.gz", &[0; 100_000]] {
        let error = inspect_all(bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().starts_with("this is not a zip archive"), "{error}");
    }
    assert!(inspect_all(b"").unwrap_err().message().contains("is empty"));
}

#[test]
fn a_zip_cut_off_anywhere_is_refused() {
    let zip = zip_of(&[Raw::deflated("hello.py", b"print('Hello!')"), Raw::stored("x", b"y")]);
    assert!(inspect_all(&zip).is_ok());
    for length in 0..zip.len() {
        let error = inspect_all(&zip[..length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "at {length}: {error}");
        if length >= 4 {
            assert!(error.message().contains("truncated"), "at {length}: {error}");
        }
    }
    // The front is missing.
    assert_eq!(inspect_all(&zip[20..]).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_flipped_bit_in_the_content_is_refused_at_the_upload() {
    let entries = [Raw::deflated("a.py", b"print('Hello!', 'Hello!')"), Raw::stored("b.txt", b"some text")];
    let zip = zip_of(&entries);
    for entry in &entries {
        let start = zip.windows(entry.packed.len()).position(|window| window == entry.packed).unwrap();
        for bit in 0..entry.packed.len() * 8 {
            let mut damaged = zip.clone();
            damaged[start + bit / 8] ^= 1 << (bit % 8);
            // Bits that fill up the last byte of a deflate stream mean nothing.
            if bit / 8 + 1 == entry.packed.len() && entry.method == 8 {
                continue;
            }
            let error = inspect_all(&damaged).expect_err(&format!("bit {bit}"));
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }
}

#[test]
fn a_bomb_is_refused_whether_it_declares_its_size_or_lies() {
    let zeros = vec![0; 20 << 20];
    let honest = refusal(&[Raw::deflated("zeros", &zeros)]);
    assert_eq!(honest.kind(), ErrorKind::TooLarge);
    assert!(honest.message().contains("more than 200 times"), "{honest}");
    let lying = refusal(&[Raw::stored("ok", b"ok"), Raw { size: 100, ..Raw::deflated("zeros", &zeros) }]);
    assert_eq!(lying.kind(), ErrorKind::Invalid);
    assert_eq!(lying.message(), "entry 2 of the zip (`zeros`) unpacks to more than the 100 bytes that it declares");
    let boasting = refusal(&[Raw { size: 100, ..Raw::deflated("x", b"abc") }]);
    assert!(boasting.message().contains("unpacks to 3 bytes where it declares 100"), "{boasting}");
    let limits = ArchiveLimits { max_unpacked_bytes: 1000, max_files: 2, ..ArchiveLimits::default() };
    let large = inspect_bytes(&zip_of(&[Raw::stored("x", &[1; 1001])]), &limits).unwrap_err();
    assert!(large.message().contains("more than 1000 bytes"), "{large}");
    let many = inspect_bytes(&zip_of(&["a", "b", "c"].map(|name| Raw::stored(name, b""))), &limits).unwrap_err();
    assert!(many.message().contains("more than 2 files"), "{many}");
}

#[test]
fn entries_that_share_bytes_are_refused() {
    let shared = Raw { shares: Some(0), ..Raw::stored("b", b"abc") };
    let error = refusal(&[Raw::stored("a", b"abc"), shared]);
    assert_eq!(error.message(), "entries 1 and 2 of the zip overlap");
    let mut reaching = Raw::stored("a", b"abc");
    let mut zip = zip_of(&[reaching.clone()]);
    reaching.packed = vec![0; 60];
    reaching.size = 60;
    // The directory of the second layout behind the data of the first: 60 bytes are declared where 3 are.
    let other = zip_of(&[reaching]);
    let (at, from) = (zip.len() - 22 - 47, other.len() - 22 - 47);
    zip[at..at + 47].copy_from_slice(&other[from..from + 47]);
    let error = inspect_all(&zip).unwrap_err();
    assert!(error.message().contains("reaches into the directory"), "{error}");
}

#[test]
fn what_the_core_refuses_is_refused_with_the_entry_and_nothing_is_unpacked() {
    let link = |system_attributes: u32| Raw { attributes: system_attributes, ..Raw::stored("link", b"/etc/passwd") };
    let table = [
        (Raw::stored("../evil", b"x"), "entry 2 of the zip (`../evil`) has `..`"),
        (Raw::stored("/etc/cron.d/evil", b"x"), "is an absolute path"),
        (Raw::stored("C:/evil", b"x"), "drive letter"),
        (Raw::stored("a\\..\\evil", b"x"), "backslash"),
        (Raw::stored("evil\0.py", b"x"), "NUL character"),
        (Raw { name: b"caf\xe9".to_vec(), ..Raw::stored("", b"x") }, "not UTF-8"),
        (link(0o120_777 << 16), "entry 2 of the zip (`link`) is a symbolic link"),
        (Raw { attributes: 0o020_666 << 16, ..Raw::stored("tty", b"") }, "is a device"),
        (Raw { flags: 1, ..Raw::stored("secret", b"x") }, "is encrypted"),
        (Raw { method: 14, ..Raw::stored("lzma", b"x") }, "uses compression method 14"),
        (Raw::stored("first", b"x"), "entry 2 of the zip (`first`) is in the zip twice"),
        (Raw::stored("FIRST", b"x"), "only in case"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (entry, rule) in table {
        let zip = zip_of(&[Raw::stored("first", b"1"), entry]);
        let error = inspect_all(&zip).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.message().contains(rule), "{error}");
        assert_eq!(unpack_all(&zip, &folder.path().join("code")).unwrap_err().message(), error.message());
        assert!(names_in(folder.path()).is_empty());
    }
}

#[test]
fn an_entry_with_its_sizes_behind_its_data_is_taken() {
    let plan = inspect_all(&zip_of(&[Raw { flags: 8, ..Raw::deflated("a.py", b"print(1)") }, Raw::stored("b", b"")])).unwrap();
    assert_eq!(plan.files[0].size_bytes, 8);
}

#[test]
fn a_zip64_end_that_claims_countless_entries_is_refused_before_memory_is_taken() {
    let zip = zip_of(&[Raw::stored("a", b"x")]);
    let (body, end) = zip.split_at(zip.len() - 22);
    let mut evil = body.to_vec();
    evil.extend(b"PK\x06\x06");
    evil.extend([44u64.to_le_bytes(), [45, 0, 45, 0, 0, 0, 0, 0], [0; 8]].concat()[..20].iter());
    for field in [u64::MAX >> 8, u64::MAX >> 8, u64::MAX >> 8, 32] {
        evil.extend(field.to_le_bytes());
    }
    evil.extend(b"PK\x06\x07\x00\x00\x00\x00");
    evil.extend((body.len() as u64).to_le_bytes());
    evil.extend([1, 0, 0, 0]);
    evil.extend(&end[..8]);
    evil.extend([0xff; 12]);
    evil.extend([0; 2]);
    let error = inspect_all(&evil).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.message().contains("zip64"), "{error}");
}

#[test]
fn a_damaged_zip_leaves_no_folder_and_an_existing_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let code = folder.path().join("code");
    let damaged = zip_of(&[Raw::stored("fine", b"fine"), Raw { crc: 7, ..Raw::stored("broken", b"x") }]);
    let error = unpack_all(&damaged, &code).unwrap_err();
    assert!(error.message().contains("`broken`) does not have the checksum"), "{error}");
    assert!(names_in(folder.path()).is_empty());

    fs::create_dir(&code).unwrap();
    unpack_all(&project(), &code).expect("an empty folder is taken");
    fs::write(code.join("mine"), "mine").unwrap();
    assert_eq!(unpack_all(&project(), &code).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(code.join("mine")).unwrap(), b"mine");
    assert_eq!(names_in(folder.path()), ["code"]);
}

#[test]
fn what_a_killed_unpacking_left_is_not_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".code.0.unpacking")).unwrap();
    unpack_all(&project(), &folder.path().join("code")).unwrap();
    assert!(folder.path().join("code/hello.py").is_file());
}

#[test]
fn a_full_disk_while_unpacking_is_told_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a_full_disk_while_unpacking_is_told_and_leaves_nothing";
    let Some(_mounted) = crate::blobs::tests::TinyDisk::mount(folder.path(), "64k", name) else { return };
    let error = unpack_all(&zip_of(&[Raw::deflated("large", &lines())]), &folder.path().join("code")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(error.message().contains("is full"), "{error}");
    assert!(names_in(folder.path()).is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = inspect_all(&bytes);
    }

    #[test]
    fn what_is_taken_unpacks_to_exactly_the_plan(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut zip = zip_of(&[
            Raw::deflated("a/b.py", b"print('Hello!')"),
            Raw { attributes: 0o040_755 << 16, ..Raw::stored("c/", b"") },
            Raw::stored("d.txt", b"text"),
        ]);
        for (index, byte) in edits {
            let at = index.index(zip.len());
            zip[at] = byte;
        }
        if let Ok(plan) = inspect_all(&zip) {
            let folder = tempfile::tempdir().unwrap();
            unpack_all(&zip, &folder.path().join("code")).unwrap();
            prop_assert_eq!(names_in(folder.path()), ["code"]);
            for file in &plan.files {
                let written = folder.path().join("code").join(&file.path).symlink_metadata().unwrap();
                prop_assert!(written.is_file() && written.len() == file.size_bytes);
            }
            for path in &plan.folders {
                prop_assert!(folder.path().join("code").join(path).is_dir());
            }
        }
    }
}
