use std::{fs::OpenOptions, io::Write as _, path::PathBuf};

use proptest::prelude::*;

use super::*;
use crate::agent::{
    client::LogAnswer,
    tail::{Next, Tail},
};

const PATH: &str = "azureml-logs/70_driver_log.txt";

/// A folder in memory where there is one: notes are synced again and again.
fn folder() -> (tempfile::TempDir, AttemptFolder) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let folder = AttemptFolder::new(dir.path());
    fs::create_dir_all(folder.logs()).unwrap();
    (dir, folder)
}

fn write(folder: &AttemptFolder, bytes: &[u8]) {
    OpenOptions::new().create(true).append(true).open(folder.driver_log()).unwrap().write_all(bytes).unwrap();
}

fn found(file: PathBuf) -> Found {
    let stamp = Stamp::of(&fs::metadata(&file).unwrap());
    Found { path: PATH.into(), file, stamp }
}

/// The log as the shipper would find it.
async fn shown(spool: &Spool) -> Found {
    let mut files = [found(spool.folder.driver_log())];
    spool.show(&mut files).await;
    let [found] = files;
    found
}

/// All of what is shown.
async fn text(spool: &Spool) -> String {
    let found = shown(spool).await;
    String::from_utf8(spool.read(&found, 0, found.stamp.length).await.unwrap().to_vec()).unwrap()
}

fn numbered(lines: std::ops::Range<usize>) -> String {
    lines.map(|line| format!("line {line:06}\n")).collect()
}

#[tokio::test]
async fn a_log_within_its_limit_is_left_alone() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 1200);
    write(&folder, numbered(0..100).as_bytes());
    spool.trim().await;
    assert_eq!(text(&spool).await, numbered(0..100));
    assert_eq!((folder.cuts().unwrap(), spool.warnings().await), (None, Vec::new()));
}

#[tokio::test]
async fn the_middle_goes_at_the_ends_of_lines_and_the_disk_gets_it_back() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 120_000);
    write(&folder, numbered(0..100_000).as_bytes());
    let blocks = || fs::metadata(folder.driver_log()).unwrap().blocks() * 512;
    let before = blocks();
    spool.trim().await;
    assert!(blocks() < 200_000 && before >= 1_200_000, "{before} bytes on disk before, {} after", blocks());
    assert_eq!(fs::metadata(folder.driver_log()).unwrap().len(), 1_200_000, "what writes to it does not notice");

    let kept = text(&spool).await;
    let lines: Vec<&str> = kept.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("[trainyard: ")).unwrap();
    assert!((4900..=5000).contains(&at), "about half of the limit before it: {at} lines");
    assert_eq!(lines[..at].join("\n") + "\n", numbered(0..at));
    let after = lines.len() - at - 1;
    assert!((4600..=5100).contains(&after), "about half of the limit behind it: {after} lines");
    assert_eq!(lines[at + 1..].join("\n") + "\n", numbered(100_000 - after..100_000));
    let missing = (100_000 - at - after) * 12;
    assert_eq!(
        lines[at],
        format!(
            "[trainyard: {missing} bytes of this log were cut here: the server could not be reached and spool_limit_bytes = 120000 was exceeded]"
        )
    );
    let warnings = spool.warnings().await;
    assert!(
        warnings.len() == 1 && warnings[0].starts_with(&format!("{missing} bytes of `{PATH}` were cut out in 1 place(s)")),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn a_cut_grows_while_nothing_of_it_was_sent_and_is_frozen_then() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 1200);
    let cuts = async || spool.logs.lock().await.by_path[PATH].cuts.clone();
    write(&folder, numbered(0..200).as_bytes());
    spool.trim().await;
    write(&folder, numbered(200..300).as_bytes());
    spool.trim().await;
    let first = cuts().await;
    assert_eq!((first.all().len(), first.end()), (1, (300 - 50) * 12));
    let found = shown(&spool).await;
    let sent = spool.read(&found, 0, found.stamp.length).await.unwrap();
    spool.answered(PATH, found.stamp.length).await;
    write(&folder, numbered(300..600).as_bytes());
    spool.trim().await;
    let second = cuts().await;
    assert_eq!((second.all().len(), second.all()[0]), (2, first.all()[0]));
    assert!(text(&spool).await.as_bytes().starts_with(&sent), "what was sent is still what is shown");
}

#[tokio::test]
async fn an_agent_that_comes_after_shows_the_same_and_cuts_nothing_of_what_it_does_not_know() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 1200);
    write(&folder, numbered(0..300).as_bytes());
    spool.trim().await;
    let (before, warnings) = (text(&spool).await, spool.warnings().await);
    drop(spool);
    let spool = Spool::open(folder.clone(), 100);
    assert_eq!(text(&spool).await, before);
    spool.trim().await;
    assert_eq!(text(&spool).await, before);
    assert_eq!(spool.warnings().await.len(), warnings.len());
}

#[tokio::test]
async fn a_hole_that_was_noted_and_not_made_is_made_by_the_next_agent() {
    let (_dir, folder) = folder();
    write(&folder, numbered(0..1000).as_bytes());
    let cuts = Cuts::default().with(Cut { start: 120, end: 11_880, limit: 240, breaks_line: false });
    let noted = NotedLog { inode: fs::metadata(folder.driver_log()).unwrap().ino(), cuts };
    folder.write_cuts(&[(PATH.to_owned(), noted)].into()).unwrap();
    let spool = Spool::open(folder.clone(), 240);
    assert_eq!(fs::read(folder.driver_log()).unwrap()[120..11_880], [0; 11_760]);
    let kept = text(&spool).await;
    assert!(kept.starts_with(&numbered(0..10)) && kept.ends_with(&numbered(990..1000)) && !kept.contains('\0'), "{kept}");
}

#[tokio::test]
async fn a_file_that_took_the_place_of_one_that_was_cut_is_shown_whole() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 1200);
    write(&folder, numbered(0..300).as_bytes());
    spool.trim().await;
    fs::remove_file(folder.driver_log()).unwrap();
    write(&folder, b"other\n");
    assert_eq!(text(&spool).await, "other\n");
    assert_eq!(folder.cuts().unwrap(), Some(NotedCuts::new()));
}

#[tokio::test]
async fn what_is_not_only_a_log_is_never_cut() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder.clone(), 1200);
    write(&folder, numbered(0..300).as_bytes());
    fs::hard_link(folder.driver_log(), folder.path().join("model")).unwrap();
    std::os::unix::fs::symlink("70_driver_log.txt", folder.logs().join("link.txt")).unwrap();
    spool.trim().await;
    assert_eq!(fs::read_to_string(folder.path().join("model")).unwrap(), numbered(0..300));
    assert_eq!(folder.cuts().unwrap(), None);
}

#[tokio::test]
async fn where_holes_cannot_be_punched_a_log_is_kept_whole_with_a_word_about_it() {
    let (_dir, folder) = folder();
    assert_eq!(try_holes(&folder).unwrap(), Holes::Possible, "the tests need a file system that can");
    let spool = Spool::open(folder.clone(), 1200);
    spool.logs.lock().await.know_holes(Holes::Impossible, 1200);
    write(&folder, numbered(0..300).as_bytes());
    spool.trim().await;
    assert_eq!(text(&spool).await, numbered(0..300));
    assert_eq!(folder.cuts().unwrap(), None);
    let warnings = spool.warnings().await;
    assert!(warnings.len() == 1 && warnings[0].contains("cannot take a part out of a file"), "{warnings:?}");
}

#[tokio::test]
async fn only_a_server_that_does_not_answer_has_logs_cut() {
    let (_dir, folder) = folder();
    let spool = Spool::open(folder, 1200);
    assert!(!spool.is_stalled());
    spool
        .during(async {
            assert!(!spool.is_stalled(), "an answer takes a while");
            let mut since = spool.waiting.lock().unwrap();
            *since = since.unwrap().checked_sub(STALL);
            drop(since);
            assert!(spool.is_stalled());
        })
        .await;
    assert!(!spool.is_stalled());
}

/// What happens to a log and to the way to the server.
#[derive(Clone, Debug)]
enum Step {
    /// The code writes lines of these lengths.
    Write(Vec<u8>),
    /// The shipper sends up to so many bytes, and this becomes of them.
    Send(u64, Fate),
    /// The server has been silent for long enough.
    Trim,
    /// The server lost what it had beyond so many bytes: it was restored.
    Lose(usize),
    /// The agent is killed, and the code with it; another one comes.
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    IsLost,
    /// It arrives, and the answer is lost.
    AnswerIsLost,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![3 => Just(Fate::Arrives), 2 => Just(Fate::IsLost), 1 => Just(Fate::AnswerIsLost)];
    prop_oneof![
        4 => proptest::collection::vec(0u8..90, 1..60).prop_map(Step::Write),
        4 => (1u64..900, fate).prop_map(|(most, fate)| Step::Send(most, fate)),
        3 => Just(Step::Trim),
        1 => (0usize..4000).prop_map(Step::Lose),
        1 => Just(Step::Restart),
    ]
}

/// An agent with its log, and the server's copy.
struct Model {
    folder: AttemptFolder,
    limit: u64,
    spool: Spool,
    tail: Option<Tail>,
    server: Vec<u8>,
    /// Everything that was written.
    written: Vec<u8>,
    code_is_dead: bool,
}

impl Model {
    async fn apply(&mut self, step: Step) {
        match step {
            Step::Write(lines) if !self.code_is_dead => {
                for length in lines {
                    let number = self.written.len();
                    self.written.extend(format!("{number}:{}\n", "x".repeat(length.into())).bytes());
                }
                let from = fs::metadata(self.folder.driver_log()).unwrap().len() as usize;
                write(&self.folder, &self.written[from..]);
            }
            Step::Write(_) => {}
            Step::Send(most, fate) => self.send(most, fate).await,
            Step::Trim => self.spool.trim().await,
            Step::Lose(beyond) => self.server.truncate(beyond),
            Step::Restart => {
                self.code_is_dead = true;
                self.spool = Spool::open(self.folder.clone(), self.limit);
                self.tail = None;
            }
        }
    }

    async fn send(&mut self, most: u64, fate: Fate) {
        let found = shown(&self.spool).await;
        let mut tail = self.tail.unwrap_or_else(|| Tail::new(&found.stamp));
        if let Next::Send { offset, length } = tail.look(&found.stamp) {
            let length = length.min(most);
            let bytes = self.spool.read(&found, offset, length).await.unwrap();
            let arrives = !matches!(fate, Fate::IsLost);
            let answer = if offset as usize <= self.server.len() {
                let known = (self.server.len() - offset as usize).min(bytes.len());
                assert_eq!(self.server[offset as usize..][..known], bytes[..known], "sent again is sent the same");
                if arrives {
                    self.server.extend(&bytes[known..]);
                }
                LogAnswer::Done(Some(self.server.len() as u64))
            } else {
                LogAnswer::Holds(self.server.len() as u64)
            };
            if matches!(fate, Fate::Arrives) {
                tail.answered(offset + length, answer);
                self.spool.answered(PATH, tail.offset()).await;
            }
        }
        assert!(!tail.is_rewritten());
        self.tail = Some(tail);
    }

    async fn check(&self, trimmed: bool) {
        let kept = text_of(&self.spool, &self.folder).await;
        assert!(kept.starts_with(&self.server), "what the server has is the beginning of what is shown");
        let logs = self.spool.logs.lock().await;
        let Some(log) = logs.by_path.get(PATH) else { return };
        if let (true, Some(acked)) = (trimmed, log.acked) {
            // What is on its way stays, and a line's end is looked for.
            let waiting = kept.len() as u64 - acked;
            let lines: u64 = log.cuts.all().len() as u64 * 160;
            assert!(waiting <= (log.sent - acked) + self.limit + lines, "{waiting} bytes wait of a limit of {}", self.limit);
        }
    }
}

/// What is shown, without saying that it was sent.
async fn text_of(spool: &Spool, folder: &AttemptFolder) -> Vec<u8> {
    let found = shown(spool).await;
    let logs = spool.logs.lock().await;
    let length = fs::metadata(folder.driver_log()).unwrap().len();
    let cuts = &logs.by_path[&found.path].cuts;
    read_pieces(&File::open(folder.driver_log()).unwrap(), cuts.pieces(length)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever is written, lost, cut and killed: in the end the server has what is shown, which is what was written without the cuts, and
    /// the first and the newest part of everything are there.
    #[test]
    fn the_servers_copy_is_the_shown_log(steps in proptest::collection::vec(step(), 1..60), limit in 200u64..3000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, folder) = folder();
            let spool = Spool::open(folder.clone(), limit);
            write(&folder, b"");
            let mut model = Model { folder, limit, spool, tail: None, server: Vec::new(), written: Vec::new(), code_is_dead: false };
            for step in steps {
                let trimmed = matches!(step, Step::Trim);
                model.apply(step).await;
                model.check(trimmed).await;
            }
            // The server is back, and what is left is sent; what it lost after it had it, the seal tells.
            model.tail = None;
            while text_of(&model.spool, &model.folder).await != model.server {
                model.send(u64::MAX, Fate::Arrives).await;
            }
            let found = shown(&model.spool).await;
            let content = model.spool.digest(&found).await.unwrap();
            assert_eq!((content.stamp.length, content.sha256), (model.server.len() as u64, hex::encode(Sha256::digest(&model.server))));

            let logs = model.spool.logs.lock().await;
            let cuts = &logs.by_path[PATH].cuts;
            let mut expected: Vec<u8> = Vec::new();
            for piece in cuts.pieces(model.written.len() as u64) {
                match piece {
                    Piece::File { offset, length } => expected.extend(&model.written[offset as usize..(offset + length) as usize]),
                    Piece::Line(text) => {
                        expected.extend(&text);
                        let text = String::from_utf8(text).unwrap();
                        assert!(text.ends_with("was exceeded]\n"));
                    }
                }
            }
            assert_eq!(expected, model.server);
            for line in model.server.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"[trainyard")) {
                assert!(line.ends_with(b"was exceeded]"), "a cut is a line of its own");
            }
            let least = (limit / 2 - limit / 8 - 1).min(model.written.len() as u64) as usize;
            assert!(cuts.all().first().is_none_or(|cut| cut.start as usize >= least), "the first half stays");
            assert!(model.written.len() - cuts.end() as usize >= least || cuts.all().is_empty(), "the newest half stays");
        });
    }
}
