//! pip requirements on top of an image: uv of this machine, run inside the image with the image's own Python.
//!
//! The environment is built like any other, only that every call of uv goes through a script that starts a container. It sees the packages of the
//! image, too. What the cache keeps is small: a stand-in that names the layer, with the list of what is installed; the content is in the image.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use trainyard_core::{
    environment::{EnvironmentLock, HashContext, LockedPackage, PipList, PythonEnvironment},
    ids::EnvironmentHash,
};

use super::{
    super::{
        build::Build,
        cache::{BuilderLock, Cache},
        command::Console,
        downloads::tree_bytes,
        host::Host,
        index::IndexSources,
        interpreter::Interpreter,
        prepare::PrepareError,
        uv::{self, Uv},
    },
    desk::{Desk, quoted},
    inspect::{Image, inspect},
    layer, portable,
};
use crate::container::{Kind, Mount};

/// The version of the way of building on top of images.
const BUILDER: &str = "image-1";

/// Where the machine's certificates may be, for images that have none.
const CERTIFICATES: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// What a build on top of an image is made of.
pub(super) struct OnTop<'a> {
    pub(super) desk: &'a Desk<'a>,
    pub(super) image: &'a Image,
    pub(super) interpreter: &'a Interpreter,
    pub(super) list: &'a PipList,
    /// Exactly these packages, instead of what the list leads to.
    pub(super) exactly: Option<&'a [LockedPackage]>,
    pub(super) hash: EnvironmentHash,
}

/// An environment on top of an image.
pub(super) struct Topped {
    /// What is run: the id of the image with the layer, or the image itself.
    pub(super) image: String,
    /// Its folder inside.
    pub(super) prefix: PathBuf,
    pub(super) lock: EnvironmentLock,
    pub(super) cached: bool,
}

/// The identity of a pip environment on an image.
pub(super) fn identity(
    desk: &Desk<'_>,
    image: &Image,
    interpreter: &Interpreter,
    environment: &PythonEnvironment,
) -> Result<EnvironmentHash, PrepareError> {
    let indexes = IndexSources::resolve(desk.host, desk.settings).for_hash();
    let python = format!("{} {} {} in {}", desk.client.kind.name(), interpreter.version, interpreter.path.display(), image.digest);
    let context = HashContext { interpreter: &python, platform: &interpreter.platform, indexes: &indexes, builder: BUILDER };
    Ok(environment.canonical_hash(&context)?)
}

impl OnTop<'_> {
    /// From the cache, or built.
    pub(super) async fn ensure(&self, console: &mut Console<'_>) -> Result<Topped, PrepareError> {
        if let Some(topped) = self.complete(console).await? {
            return Ok(topped);
        }
        let held = BuilderLock::acquire(&self.desk.cache.lock_file(&self.hash), console).await?;
        if let Some(topped) = self.complete(console).await? {
            return Ok(topped);
        }
        self.build(&held, console).await
    }

    /// The cache that the environment itself is built in: inside of its stand-in, at the path that it has in the image.
    fn inner(&self) -> Result<Cache, PrepareError> {
        Cache::at(&self.desk.cache.environment(&self.hash).join("in-image"))
    }

    fn prefix(&self) -> Result<PathBuf, PrepareError> {
        Ok(self.inner()?.environment(&self.hash))
    }

    fn keeps_folder(&self) -> bool {
        self.desk.client.kind == Kind::Apptainer
    }

    async fn complete(&self, console: &Console<'_>) -> Result<Option<Topped>, PrepareError> {
        let Some(lock) = self.desk.cache.complete(&self.hash) else { return Ok(None) };
        let image = if self.keeps_folder() {
            Some(self.image.id.clone()).filter(|_| self.prefix().is_ok_and(|prefix| prefix.is_dir()))
        } else {
            // Somebody may have pruned the engine's images.
            inspect(self.desk, &layer::tag(self.desk, self.image, (&self.hash, &lock)), console).await?.map(|image| image.id)
        };
        let prefix = self.prefix()?;
        Ok(image.map(|image| Topped { image, prefix, lock, cached: true }))
    }

    async fn build(&self, held: &BuilderLock, console: &mut Console<'_>) -> Result<Topped, PrepareError> {
        let Self { desk, image, interpreter, list, hash, .. } = self;
        let mut place = desk.cache.place(hash).await?;
        let stand_in = desk.cache.environment(hash);
        let failed = |error| PrepareError::disk("the folder of the environment cannot be made", error);
        fs::create_dir_all(stand_in.join("bin")).map_err(failed)?;
        console.line(&format!("building environment {hash} on the image: Python {} ({})", interpreter.version, interpreter.path.display()));
        console.line(&format!("requirements: {}", list.requirements.join(", ")));
        let uv = uv::locate(desk.host, desk.settings, console).await?;
        let index = IndexSources::resolve(desk.host, desk.settings);
        let host = self.host_of_uv();
        let wrapper = desk.scratch.join("uv-in-image");
        let libraries = stand_in.join("in-image/uv");
        let words = portable::words(desk.host, &uv.path, &libraries, console.cancel).await?;
        let text = self.wrapper((&uv, &words), &host, &index)?;
        fs::write(&wrapper, text).and_then(|()| fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700))).map_err(failed)?;
        let inner = self.inner()?;
        let wrapped = Uv { path: wrapper, version: uv.version.clone() };
        let build = Build { host: &host, cache: &inner, hash, interpreter, list, index: &index, uv: &wrapped, lock: held };
        let built = match self.exactly {
            None => build.run(console).await,
            Some(packages) => build.run_exactly(packages, console).await,
        };
        let mut lock = built?;
        lock.image = Some(image.locked());
        let _ = write!(lock.builder, " in {}", desk.engine());
        let prefix = self.prefix()?;
        let made = if self.keeps_folder() {
            image.id.clone()
        } else {
            let tag = layer::tag(desk, image, (hash, &lock));
            let made = layer::ensure(desk, image, (&prefix, &tag), console).await?;
            // The layer goes with the stand-in, so its size counts for what goes when there is no room.
            place.takes_elsewhere(tree_bytes(&prefix));
            fs::remove_dir_all(stand_in.join("in-image")).map_err(failed)?;
            made
        };
        self.write_stand_in(&stand_in, &lock).map_err(failed)?;
        place.finish(&lock).await?;
        Ok(Topped { image: made, prefix, lock, cached: false })
    }

    /// The cache asks of every environment that its `bin/python` can be executed.
    fn write_stand_in(&self, folder: &Path, lock: &EnvironmentLock) -> std::io::Result<()> {
        let python = folder.join("bin/python");
        let where_ = if self.keeps_folder() { "below in-image/".to_owned() } else { layer::tag(self.desk, self.image, (&self.hash, lock)) };
        let text = format!("#!/bin/sh\necho 'this environment is on top of an image: {where_}' >&2\nexit 1\n");
        fs::write(&python, text)?;
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755))
    }

    /// The variables for uv: its downloads are the cache's, certificates are the machine's.
    fn host_of_uv(&self) -> Host {
        let mut variables = self.desk.host.variables().clone();
        variables.entry("UV_CACHE_DIR".into()).or_insert_with(|| self.desk.cache.packages().into());
        if let Some(found) = CERTIFICATES.iter().find(|file| Path::new(file).is_file()) {
            variables.entry("SSL_CERT_FILE".into()).or_insert_with(|| found.into());
        }
        Host::with(variables)
    }

    /// A program that is called like uv, and calls it inside.
    fn wrapper(&self, (uv, words_of_uv): (&Uv, &[PathBuf]), host: &Host, index: &IndexSources) -> Result<String, PrepareError> {
        let mut mounts = vec![Mount::writable(self.desk.cache.root()), Mount::read_only(&uv.path)];
        if let Some(downloads) = host.var("UV_CACHE_DIR").map(PathBuf::from).filter(|path| !path.starts_with(self.desk.cache.root())) {
            fs::create_dir_all(&downloads).map_err(|error| PrepareError::disk("the cache of uv cannot be made", error))?;
            mounts.push(Mount::writable(downloads));
        }
        mounts.extend(host.var("SSL_CERT_FILE").map(PathBuf::from).filter(|file| file.is_file()).map(Mount::read_only));
        let options = self.list.options.iter().map(ToString::to_string);
        let words = index.for_hash().into_iter().chain(options).chain(self.list.requirements.iter().cloned());
        mounts.extend(words.flat_map(|text| local_places(&text)).map(Mount::read_only));
        let words = self.desk.throwaway(&mounts, &[]);
        let mut line = String::new();
        let program = std::iter::once(self.desk.client.program.clone().into_os_string());
        let globals = self.desk.client.globals.iter().map(Into::into);
        for word in program.chain(globals).chain(words) {
            let _ = write!(line, "{} ", quoted(&word.to_string_lossy()));
        }
        // Values stay out of the command line: indexes may hold credentials. Apptainer takes them through variables of its own.
        let pass = if self.keeps_folder() {
            "for name in $names; do eval \"export APPTAINERENV_$name=\\$$name SINGULARITYENV_$name=\\$$name\"; done\noptions=\n"
        } else {
            "options=\nfor name in $names; do options=\"$options --env=$name\"; done\n"
        };
        let image = quoted(&self.image.id);
        let uv = words_of_uv.iter().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
        let call = self.call(&line, &format!("{image} {uv} \"$@\""));
        Ok(format!(
            "#!/bin/sh\n\
             # uv, run inside an image.\n\
             names=$(env | sed -nE 's/^((UV|PIP)_[A-Za-z0-9_]+|SSL_CERT_FILE|NO_COLOR|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy)=.*/\\1/p')\n\
             {pass}\
             if [ \"$1\" = venv ]; then shift; set -- venv --system-site-packages \"$@\"; fi\n\
             {call}"
        ))
    }

    /// The call in the shell. uv is asked two things at once, and two containers cannot have one name: each call takes one of two, and gives it back.
    fn call(&self, before: &str, after: &str) -> String {
        if !self.desk.has_names() {
            return format!("exec {before}$options {after}\n");
        }
        let names = names_beside(self.desk.name).map(|name| quoted(&name));
        let removal = self.desk.removal().map_or_else(String::new, |words| {
            let program = std::iter::once(self.desk.client.program.to_string_lossy().into_owned());
            let words = program.chain(self.desk.client.globals.iter().cloned()).chain(words.map(str::to_owned));
            format!("{} \"$name\" >/dev/null 2>&1\n", words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" "))
        });
        format!(
            "name=\n\
             while [ -z \"$name\" ]; do\n\
             for free in {} {}; do if mkdir \"$0.$free\" 2>/dev/null; then name=$free; break; fi; done\n\
             [ -n \"$name\" ] || sleep 0.1\n\
             done\n\
             {before}$options --name=\"$name\" {after}\n\
             code=$?\n\
             {removal}\
             rmdir \"$0.$name\"\n\
             exit $code\n",
            names[0], names[1]
        )
    }
}

/// The names that containers of a preparation have whose own name is `name`.
pub(crate) fn names_beside(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{name}-2")]
}

/// The folders and files of this machine that a word of a pip list or index names.
fn local_places(text: &str) -> Vec<PathBuf> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',');
    let place = |word: &str| word.find("file://").map_or_else(|| word.to_owned(), |at| word[at + "file://".len()..].to_owned());
    words
        .map(place)
        .map(|word| PathBuf::from(word.split('#').next().unwrap_or_default()))
        .filter(|path| path.is_absolute() && path.exists())
        .collect()
}
