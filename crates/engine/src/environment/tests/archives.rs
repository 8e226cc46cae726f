//! Environments that travel in a file.

use std::{fs, io::Cursor, path::Path};

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use trainyard_core::{
    ErrorKind,
    environment::{EnvironmentLock, EnvironmentSpec, Progress},
};

use super::{
    Node, builds,
    index::{Index, Manner},
    python, run,
};
use crate::environment::{Form, Imported, Prepared, cached, export, import};

const PACKAGES: [(&str, &str, &str); 2] = [("app", "1.0", "lib"), ("lib", "1.0", "")];

async fn built(node: &Node, pip: &[&str]) -> Prepared {
    let (prepared, log) = node.prepare(&python(None, pip)).await;
    prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")))
}

async fn exported(node: &Node, prepared: &Prepared, form: Form) -> Vec<u8> {
    let mut archive = Vec::new();
    let made = export(&node.settings, prepared.hash.as_ref().unwrap(), form, &mut archive, &mut |_: &Progress| {}).await.unwrap();
    assert!(made.files > 0 && made.bytes > 0);
    archive
}

async fn imported(node: &Node, archive: &[u8]) -> trainyard_core::Result<Imported> {
    import(&node.settings, &mut Cursor::new(archive), &mut |_: &Progress| {}).await
}

#[tokio::test]
async fn an_environment_works_on_a_machine_without_network_and_stays_there() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(here) = Node::with_index("an_environment_works_on_a_machine_without_network", &index).await else { return };
    let original = built(&here, &["app"]).await;
    let archive = exported(&here, &original, Form::Environment).await;
    let mut there = Node::with_index("an_environment_works_on_a_machine_without_network", &index).await.unwrap();
    there.settings.offline = true;
    there.settings.tools_dir = "/does/not/exist".into();
    let first = imported(&there, &archive).await.unwrap();
    assert_eq!((first.form, Some(&first.hash), first.files > 3), (Form::Environment, original.hash.as_ref(), true));
    assert_eq!(imported(&there, &archive).await.unwrap().files, 0, "the second time there is nothing to do");
    assert!(cached(&there.settings)[0].pinned);

    let (prepared, log) = there.prepare(&python(None, &["app"])).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")));
    assert!(prepared.cached && prepared.lock == original.lock && builds(&log) == 0);
    let folder = there.settings.cache_dir.join("envs").join(prepared.hash.as_ref().unwrap().as_str());
    assert_eq!(run(&prepared, "import app, lib, sys; print(lib.version, sys.prefix)"), format!("1.0 {}", folder.display()));
    let script = std::process::Command::new(folder.join("bin/app")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&script.stdout), "app 1.0\n", "its scripts start with the interpreter of the new place");
    let old = here.settings.cache_dir.display().to_string();
    let left = std::process::Command::new("grep").args(["-rlI", &old]).arg(folder.join("bin")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "the old place is named in scripts");
    let by_lock = there.prepare(&EnvironmentSpec::Locked(first.lock)).await.0.unwrap();
    assert_eq!(by_lock.hash, prepared.hash);
}

#[tokio::test]
async fn the_downloads_of_a_lock_build_exactly_it_without_network() {
    // With the real index: the environment needs its pip for this.
    let Some(here) = Node::new("the_downloads_of_a_lock").await else { return };
    let original = built(&here, &["six==1.16.0"]).await;
    let archive = exported(&here, &original, Form::Downloads).await;
    let mut there = Node::new("the_downloads_of_a_lock").await.unwrap();
    let nothing = [("UV_CACHE_DIR", there._folder.path().join("uv").into_os_string())];
    there.host = super::Host::with(there.host.variables().clone().into_iter().chain(nothing.map(|(name, value)| (name.into(), value))));
    there.settings.offline = true;
    let brought = imported(&there, &archive).await.unwrap();
    assert_eq!(brought.form, Form::Downloads);
    assert!(imported(&there, &archive).await.is_ok(), "the second time changes nothing");
    let (prepared, log) = there.prepare(&EnvironmentSpec::Locked(brought.lock.clone())).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}\n{}", log.join("\n")));
    let versions =
        |lock: &EnvironmentLock| lock.packages.iter().map(|package| (package.name.clone(), package.version.clone())).collect::<Vec<_>>();
    assert_eq!(versions(prepared.lock.as_ref().unwrap()), versions(original.lock.as_ref().unwrap()));
    assert_eq!(run(&prepared, "import six; print(six.__version__)"), "1.16.0");
}

/// An archive like those that are exported, whose last member is the one given.
struct Forged {
    manifest: serde_json::Value,
    entries: Vec<(&'static str, EntryType, &'static str)>,
}

impl Forged {
    fn of(prepared: &Prepared) -> Self {
        let manifest = serde_json::json!({
            "format": 1, "form": "environment", "hash": "0123456789abcdef0123456789abcdef", "prefix": "/old/place",
            "interpreter": "/usr/bin/python3", "lock": prepared.lock,
        });
        Self { manifest, entries: vec![("files/lib/x.py", EntryType::Regular, "x = 1\n")] }
    }

    fn archive(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        let mut add = |path: &str, kind, content: &str| {
            let mut header = Header::new_gnu();
            // As nobody but an attacker would write it.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o644);
            if kind == EntryType::Regular {
                header.set_size(content.len() as u64);
            } else {
                header.set_size(0);
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if kind == EntryType::Regular { content.as_bytes() } else { b"" }).unwrap();
        };
        add("manifest.json", EntryType::Regular, &self.manifest.to_string());
        let mut sums = serde_json::Map::new();
        for (path, kind, content) in &self.entries {
            add(path, *kind, content);
            if *kind == EntryType::Regular {
                sums.insert((*path).to_owned(), hex::encode(Sha256::digest(content)).into());
            }
        }
        add("checksums.json", EntryType::Regular, &serde_json::Value::from(sums).to_string());
        builder.into_inner().unwrap()
    }
}

/// The words with which an archive is refused that leaves nothing behind.
async fn refusal(node: &Node, archive: &[u8]) -> String {
    let error = imported(node, archive).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{error:?}");
    assert!(!node.settings.cache_dir.join("envs/0123456789abcdef0123456789abcdef").exists());
    assert!(!Path::new("/tmp/trainyard-escaped").exists());
    error.message().to_owned()
}

#[tokio::test]
async fn archives_that_lead_out_of_their_folder_are_refused() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("archives_that_lead_out", &index).await else { return };
    let prepared = built(&node, &["lib"]).await;
    let hostile = [
        (("files/../../../../../../tmp/trainyard-escaped", EntryType::Regular, "x"), "leads out of its folder"),
        (("/tmp/trainyard-escaped", EntryType::Regular, "x"), "leads out of its folder"),
        (("files/lib/link", EntryType::Symlink, "../../../outside"), "leads out of the environment"),
        (("files/lib/link", EntryType::Symlink, "/etc/passwd"), "leads out of the environment"),
        (("files/bin/python", EntryType::Symlink, "/bin/sh"), "leads out of the environment"),
        (("files/lib/link", EntryType::Link, "/etc/passwd"), "neither a file nor a link"),
        (("files/dev", EntryType::Char, ""), "neither a file nor a link"),
    ];
    for (entry, expected) in hostile {
        let mut forged = Forged::of(&prepared);
        forged.entries.push(entry);
        let words = refusal(&node, &forged.archive()).await;
        assert!(words.contains(expected), "{entry:?}: {words}");
    }
    let mut behind = Forged::of(&prepared);
    behind.entries.push(("files/lib/here", EntryType::Symlink, "."));
    behind.entries.push(("files/lib/here/there", EntryType::Symlink, "x"));
    let words = refusal(&node, &behind.archive()).await;
    assert!(words.contains("stands behind another link"), "{words}");
}

#[tokio::test]
async fn damaged_and_foreign_archives_are_refused_with_the_reason() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("damaged_and_foreign_archives", &index).await else { return };
    let prepared = built(&node, &["lib"]).await;
    let good = Forged::of(&prepared).archive();

    let at = good.windows(5).position(|window| window == b"x = 1").unwrap();
    let mut damaged = good.clone();
    damaged[at] = b'y';
    assert!(refusal(&node, &damaged).await.contains("files/lib/x.py` in the archive is damaged"));
    for end in [good.len() - 4096, at + 2, 700, 100, 0] {
        let words = refusal(&node, &good[..end]).await;
        assert!(words.contains("cut off") || words.contains("empty") || words.contains("not an archive"), "{end}: {words}");
    }
    assert!(refusal(&node, b"PK\x03\x04 this is a zip").await.contains("archive"));

    let with = |change: fn(&mut serde_json::Value)| {
        let mut forged = Forged::of(&prepared);
        change(&mut forged.manifest);
        forged.archive()
    };
    let foreign = with(|manifest| manifest["lock"]["platform"] = "macosx-11.0-arm64".into());
    assert!(refusal(&node, &foreign).await.contains("was built on macosx-11.0-arm64, and this machine is linux-"));
    let python = with(|manifest| manifest["lock"]["python"] = "3.2.1".into());
    assert!(refusal(&node, &python).await.contains("stands on Python 3.2.1, which is not at hand"));
    let newer = with(|manifest| manifest["format"] = 3.into());
    assert!(refusal(&node, &newer).await.contains("of a newer trainyard"));
    let conda = with(|manifest| {
        manifest["lock"]["conda"] = serde_json::json!([{ "name": "x", "version": "1", "build": "0", "url": "https://c.example/x.conda" }]);
        manifest["interpreter"] = serde_json::Value::Null;
    });
    assert!(refusal(&node, &conda).await.contains("work at that very path only"));
    assert!(fs::read_dir(node.settings.cache_dir.join("envs")).unwrap().count() == 1);
}

#[tokio::test]
async fn what_is_not_in_the_cache_can_not_be_exported() {
    let index = Index::start(Manner::Answers, &PACKAGES).await;
    let Some(node) = Node::with_index("what_is_not_in_the_cache", &index).await else { return };
    let unknown = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let error = export(&node.settings, &unknown, Form::Environment, &mut Vec::new(), &mut |_: &Progress| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
