//! A Kubernetes made of one process: an API server that keeps what it is given and says what a real one says (statuses, versions, watches that break),
//! a Job controller, and a kubelet that starts a real process for every pod.
//!
//! Its documents are those that a 1.36 cluster shows. A test changes what it answers ([`Fault`]), or what a pod shows.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use self::machine::work;

#[path = "machine.rs"]
pub(crate) mod machine;

/// How the API server answers the next requests that fit.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// E.g. `POST jobs`.
    pub(crate) what: &'static str,
    /// How often.
    pub(crate) times: usize,
    pub(crate) how: How,
}

/// What is wrong with an answer.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// This status, with these words, and nothing is done.
    Answers(u16, &'static str, &'static str),
    /// Come again after so many seconds.
    Busy(u64),
    /// It is done, and the answer gets lost.
    Lost,
}

/// What the kubelet does with new pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kubelet {
    /// Starts them.
    #[default]
    Works,
    /// Leaves them alone: no node has room, or a test says what they show.
    Idle,
}

/// A pod's process.
struct Running {
    child: Child,
    /// When it is killed.
    killed_at: Option<Instant>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    /// All that is new, for watches.
    news: Vec<(u64, String, Value)>,
    /// Watches that begin before are told that they are too late.
    forgotten: u64,
    /// Watches that were opened before this number of theirs are closed.
    closed_watches: u64,
    opened_watches: u64,
    requests: Vec<String>,
    faults: VecDeque<Fault>,
    down: bool,
    is_old: bool,
    makes_no_pods: bool,
    kubelet: Kubelet,
    running: BTreeMap<String, Running>,
    ids: u64,
}

/// The cluster.
pub(crate) struct Cluster {
    inner: Arc<Mutex<Inner>>,
    dir: tempfile::TempDir,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// Where the kubelet starts processes.
#[derive(Clone)]
pub(crate) struct Machine {
    /// Stands for `/opt/trainyard/bin/trainyard`.
    pub(crate) program: PathBuf,
    /// Stands for `/opt/trainyard/attempts`.
    pub(crate) attempts: PathBuf,
    /// Stands for `/opt/trainyard/cache`.
    pub(crate) cache: PathBuf,
}

const NAMESPACE: &str = "runs";

impl Cluster {
    /// Must be called in a runtime, which is what it lives in.
    pub(crate) fn start(machine: Machine) -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let serve = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let dir = tempfile::tempdir().unwrap();
        let work = tokio::spawn(work(Arc::clone(&inner), machine, dir.path().join("notes")));
        let cluster = Self { inner, dir, tasks: vec![serve, work] };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{ "name": "double", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "double", "user": {} }],
            "contexts": [{ "name": "double", "context": { "cluster": "double", "user": "double", "namespace": NAMESPACE } }],
        });
        fs::write(cluster.kubeconfig(), config.to_string()).unwrap();
        cluster
    }

    /// The file that says where it is.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub(crate) fn fault(&self, what: &'static str, times: usize, how: How) {
        self.lock().faults.push_back(Fault { what, times, how });
    }

    pub(crate) fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// From now on it is a cluster that has never heard of `completionMode`.
    pub(crate) fn drop_completion_mode(&self) {
        self.lock().is_old = true;
    }

    /// From now on the controller makes no pods, as when a quota forbids it.
    pub(crate) fn make_no_pods(&self) {
        self.lock().makes_no_pods = true;
    }

    /// Nothing answers from now on, or again.
    pub(crate) fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    pub(crate) fn set_kubelet(&self, kubelet: Kubelet) {
        self.lock().kubelet = kubelet;
    }

    /// Closes every watch that is open.
    pub(crate) fn break_watches(&self) {
        let mut inner = self.lock();
        inner.closed_watches = inner.opened_watches;
    }

    /// Forgets what was new up to now: watches that begin there are answered with 410.
    pub(crate) fn forget_history(&self) {
        let mut inner = self.lock();
        inner.forgotten = inner.version + 1;
        inner.version += 1;
        inner.closed_watches = inner.opened_watches;
    }

    /// How many requests began like this, e.g. `GET jobs`.
    pub(crate) fn requests(&self, what: &str) -> usize {
        self.lock().requests.iter().filter(|request| request.starts_with(what)).count()
    }

    pub(crate) fn objects(&self, plural: &str) -> Vec<Value> {
        self.lock().objects.iter().filter(|((kind, _), _)| kind == plural).map(|(_, object)| object.clone()).collect()
    }

    /// The only one of its kind.
    pub(crate) fn only(&self, plural: &str) -> Option<Value> {
        let objects = self.objects(plural);
        assert!(objects.len() < 2, "{objects:?}");
        objects.into_iter().next()
    }

    /// Lays `change` over an object, or makes it.
    pub(crate) fn change(&self, plural: &str, name: &str, change: &Value) {
        self.lock().change(plural, name, change);
    }

    /// The same for every pod there is.
    pub(crate) fn change_pods(&self, change: &Value) {
        for pod in self.objects("pods") {
            self.change("pods", pod["metadata"]["name"].as_str().unwrap(), change);
        }
    }

    /// As `kubectl delete job` does.
    pub(crate) fn delete_job(&self, name: &str) {
        self.lock().delete("jobs", name, &Value::Null);
    }

    /// As the eviction API does.
    pub(crate) fn delete_pods(&self) {
        for pod in self.objects("pods") {
            self.lock().delete("pods", pod["metadata"]["name"].as_str().unwrap(), &Value::Null);
        }
    }

    /// Stops every pod's processes without ending them, as a machine that freezes does.
    pub(crate) fn freeze_pods(&self) {
        self.lock().running.values().for_each(|running| signal_group(&running.child, Signal::STOP));
    }

    /// What the agent of the only pod finds among its notes.
    pub(crate) fn note(&self, name: &str) -> String {
        let folders = fs::read_dir(self.dir.path().join("notes")).into_iter().flatten().flatten();
        folders.map(|folder| fs::read_to_string(folder.path().join(name)).unwrap_or_default()).next().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        if let Ok(mut inner) = self.inner.lock() {
            for running in inner.running.values_mut() {
                signal_group(&running.child, Signal::KILL);
                let _ = running.child.wait();
            }
        }
    }
}

fn signal_group(child: &Child, signal: Signal) {
    let _ = kill_process_group(Pid::from_child(child), signal);
}

impl Inner {
    fn put(&mut self, plural: &str, mut object: Value, kind: &str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if kind == "DELETED" {
            self.objects.remove(&(plural.to_owned(), name));
        } else {
            self.objects.insert((plural.to_owned(), name), object.clone());
        }
        self.news.push((self.version, plural.to_owned(), json!({ "type": kind, "object": object.clone() })));
        object
    }

    fn change(&mut self, plural: &str, name: &str, change: &Value) {
        let mut object =
            self.objects.get(&(plural.to_owned(), name.to_owned())).cloned().unwrap_or_else(|| json!({ "metadata": { "name": name } }));
        merge(&mut object, change);
        self.put(plural, object, "MODIFIED");
    }

    fn new_uid(&mut self) -> String {
        self.ids += 1;
        format!("00000000-0000-4000-8000-{:012}", self.ids)
    }

    fn create(&mut self, plural: &str, mut object: Value) -> Value {
        object["metadata"]["uid"] = json!(self.new_uid());
        object["metadata"]["creationTimestamp"] = json!(format!("2026-11-23T10:00:{:02}Z", self.ids % 60));
        let created = self.put(plural, object, "ADDED");
        let owners = created["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        // As the garbage collector does with what comes after its owner was deleted.
        if owners.iter().any(|owner| !self.objects.values().any(|object| object["metadata"]["uid"] == owner["uid"])) {
            self.put(plural, created.clone(), "DELETED");
        }
        created
    }

    /// What a real one does: a Job goes at once (its pods and Secrets are the garbage collector's), a pod when its kubelet says so.
    fn delete(&mut self, plural: &str, name: &str, options: &Value) -> Option<Value> {
        let object = self.objects.get(&(plural.to_owned(), name.to_owned()))?.clone();
        if plural != "pods" {
            let object = self.put(plural, object, "DELETED");
            let uid = object["metadata"]["uid"].clone();
            let is_owned =
                |owned: &Value| owned["metadata"]["ownerReferences"].as_array().is_some_and(|all| all.iter().any(|one| one["uid"] == uid));
            let owned: Vec<(String, String)> =
                self.objects.iter().filter(|(_, object)| is_owned(object)).map(|(key, _)| key.clone()).collect();
            for (plural, name) in owned {
                self.delete(&plural, &name, &Value::Null);
            }
            return Some(object);
        }
        let grace = options["gracePeriodSeconds"].as_u64().or(object["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30);
        if let Some(running) = self.running.get_mut(name) {
            let at = Instant::now() + Duration::from_secs(grace);
            running.killed_at = Some(running.killed_at.map_or(at, |before| before.min(at)));
            // As the kubelet does: to the first process of the container, and to nobody else.
            let _ = kill_process(Pid::from_child(&running.child), Signal::TERM);
            self.change(
                "pods",
                name,
                &json!({ "metadata": { "deletionTimestamp": "2026-11-23T11:00:00Z", "deletionGracePeriodSeconds": grace } }),
            );
        } else {
            self.remove_pod(object.clone());
        }
        Some(object)
    }

    /// A pod that was removed has failed, as its Job sees it; unless it was removed for that Job to stop for a while.
    fn remove_pod(&mut self, pod: Value) {
        let job = pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap_or_default().to_owned();
        self.put("pods", pod, "DELETED");
        if self.objects.get(&("jobs".to_owned(), job.clone())).is_some_and(|job| job["spec"]["suspend"] != true) {
            self.change("jobs", &job, &json!({ "status": { "failed": 1 } }));
        }
    }

    /// The fault that this request meets.
    fn fault(&mut self, what: &str) -> Option<How> {
        let fault = self.faults.iter_mut().find(|fault| fault.times > 0 && what.starts_with(fault.what))?;
        fault.times -= 1;
        Some(fault.how.clone())
    }
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code });
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn document(code: StatusCode, object: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let text = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
    Some(text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/"))
}

fn selected(object: &Value, selector: &str) -> bool {
    selector.split(',').filter_map(|pair| pair.split_once('=')).all(|(key, value)| object["metadata"]["labels"][key] == value)
}

async fn answer(State(inner): State<Arc<Mutex<Inner>>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path: Vec<String> = uri.path().trim_start_matches('/').split('/').map(str::to_owned).collect();
    // /api/v1/namespaces/N/pods/X, /apis/batch/v1/namespaces/N/jobs/X, /api/v1/nodes/X
    let from = if path[0] == "apis" { 3 } else { 2 };
    let rest: Vec<&str> = path[from..].iter().map(String::as_str).collect();
    let (plural, name) = match rest.as_slice() {
        ["namespaces", NAMESPACE, plural] => (*plural, None),
        ["namespaces", NAMESPACE, plural, name] => (*plural, Some(*name)),
        ["nodes"] => ("nodes", None),
        ["nodes", name] => ("nodes", Some(*name)),
        other => return status(404, "NotFound", &format!("the server could not find the requested resource {other:?}")),
    };
    let watches = parameter(&uri, "watch").is_some();
    let verb = if watches { "WATCH".to_owned() } else { method.to_string() };
    let what = format!("{verb} {plural}");
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (down, fault) = {
        let mut locked = inner.lock().unwrap();
        locked.requests.push(what.clone());
        (locked.down, locked.fault(&what))
    };
    if down {
        return status(500, "InternalError", "etcdserver: request timed out");
    }
    match fault {
        Some(How::Answers(code, reason, message)) => return status(code, reason, message),
        Some(How::Busy(seconds)) => {
            let mut response =
                status(429, "TooManyRequests", "the server has received too many requests and has asked us to try again later");
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            return response;
        }
        Some(How::Lost) => {
            drop(perform(&inner, (&method, plural, name), &uri, sent));
            return status(504, "Timeout", "request did not complete within requested timeout - context deadline exceeded");
        }
        None => {}
    }
    if watches { watch(inner, plural.to_owned(), &uri) } else { perform(&inner, (&method, plural, name), &uri, sent) }
}

fn perform(inner: &Mutex<Inner>, (method, plural, name): (&Method, &str, Option<&str>), uri: &Uri, sent: Value) -> Response {
    let mut inner = inner.lock().unwrap();
    let key = |name: &str| (plural.to_owned(), name.to_owned());
    let missing = |name: &str| status(404, "NotFound", &format!("{plural} \"{name}\" not found"));
    match (method.as_str(), name) {
        ("GET", None) => {
            let selector = parameter(uri, "labelSelector").unwrap_or_default();
            let items: Vec<Value> = inner
                .objects
                .iter()
                .filter(|((kind, _), object)| kind == plural && selected(object, &selector))
                .map(|(_, object)| object.clone())
                .collect();
            document(
                StatusCode::OK,
                &json!({ "kind": "List", "metadata": { "resourceVersion": inner.version.to_string() }, "items": items }),
            )
        }
        ("GET", Some(name)) => inner.objects.get(&key(name)).map_or_else(|| missing(name), |object| document(StatusCode::OK, object)),
        ("POST", _) => {
            let name = sent["metadata"]["name"].as_str().unwrap().to_owned();
            if inner.objects.contains_key(&key(&name)) {
                return status(409, "AlreadyExists", &format!("{plural} \"{name}\" already exists"));
            }
            if let Some(words) = machine::refused_pod(&inner, &sent).filter(|_| plural == "pods") {
                return status(403, "Forbidden", &format!("pods \"{name}\" is forbidden: {words}"));
            }
            if parameter(uri, "dryRun").is_some() {
                return document(StatusCode::CREATED, &sent);
            }
            let mut sent = sent;
            if let Some(spec) = sent["spec"].as_object_mut().filter(|_| inner.is_old) {
                spec.remove("completionMode");
            }
            let made = inner.create(plural, sent);
            document(StatusCode::CREATED, &made)
        }
        ("PATCH", Some(name)) => {
            if !inner.objects.contains_key(&key(name)) {
                return missing(name);
            }
            let mut change = sent;
            // What is written in the clear is kept encoded.
            if let Some(Value::Object(clear)) = change.as_object_mut().and_then(|change| change.remove("stringData")) {
                for (key, value) in clear {
                    change["data"][key] = json!(STANDARD.encode(value.as_str().unwrap()));
                }
            }
            inner.change(plural, name, &change);
            document(StatusCode::OK, &inner.objects[&key(name)])
        }
        ("DELETE", Some(name)) => {
            inner.delete(plural, name, &sent).map_or_else(|| missing(name), |object| document(StatusCode::OK, &object))
        }
        _ => status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource"),
    }
}

fn watch(inner: Arc<Mutex<Inner>>, plural: String, uri: &Uri) -> Response {
    let from: u64 = parameter(uri, "resourceVersion").unwrap_or_default().parse().unwrap_or_default();
    let selector = parameter(uri, "labelSelector").unwrap_or_default();
    let number = {
        let mut locked = inner.lock().unwrap();
        locked.opened_watches += 1;
        if from < locked.forgotten {
            let error = json!({ "type": "ERROR", "object": { "kind": "Status", "code": 410, "reason": "Expired", "message": format!("too old resource version: {from}") } });
            return document(StatusCode::OK, &Value::String(String::new())).map(|_| Body::from(format!("{error}\n")));
        }
        locked.opened_watches
    };
    let stream = futures_util::stream::unfold((inner, from), move |(inner, from)| {
        let (plural, selector) = (plural.clone(), selector.clone());
        async move {
            loop {
                {
                    let locked = inner.lock().unwrap();
                    if number <= locked.closed_watches || locked.down {
                        return None;
                    }
                    let next = locked
                        .news
                        .iter()
                        .find(|(version, kind, news)| *version > from && *kind == plural && selected(&news["object"], &selector));
                    if let Some((version, _, news)) = next {
                        let (version, line) = (*version, format!("{news}\n"));
                        drop(locked);
                        return Some((Ok::<_, std::io::Error>(Bytes::from(line)), (inner, version)));
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
}
