//! From the container that a run configuration asks for (azureml-wire D.3 `docker`, D.4 `environment.docker`) to what the engine runs.
//!
//! Whether the run goes into a container is decided here, by the definition and the target together, and told: an image that is only named is not used,
//! which the run says in a warning. Passwords of registries are sealed before they leave this file.

use trainyard_core::{
    Error, ErrorKind, Result,
    container::{ContainerPolicy, ContainerSpec, ImageSource, RegistryLogin, check_arguments, check_reference, parse_size, registry_of},
    environment::{EnvironmentSpec, LockedImage},
    ids::ComputeName,
};
use trainyard_engine::data::Datastores;
use trainyard_wire::azureml::{
    definition::RunConfiguration,
    environments::{DockerSection, RegistrySection},
    sections::RunDockerSection,
};

use super::definition::Places;
use crate::sealing::Sealer;

const BASE_IMAGE: &str = "Environment.Docker.BaseImage";

/// A target as conversion sees it.
#[derive(Clone, Debug)]
pub(crate) struct TargetRule {
    /// Its name.
    pub(crate) name: ComputeName,
    /// Whether its runs go into containers.
    pub(crate) containers: ContainerPolicy,
    /// The word for its engine.
    pub(crate) engine: &'static str,
}

/// What conversion knows of this server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    /// The targets.
    pub(crate) targets: &'a [TargetRule],
    /// Seals passwords.
    pub(crate) sealer: &'a Sealer,
    /// Where data is.
    pub(crate) datastores: &'a Datastores,
}

/// The container of a run on `target`; `None`: it goes into none. Sentences for the run's warnings are added to `warnings`.
pub(crate) fn to_container(
    asked: &RunConfiguration,
    (spec, target): (&EnvironmentSpec, &TargetRule),
    sealer: &Sealer,
    places: Places<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<ContainerSpec>> {
    let none = DockerSection::default();
    let docker = asked.environment.as_ref().and_then(|environment| environment.docker.as_ref()).unwrap_or(&none);
    let request = Request { docker, run: &asked.docker, locked: locked_image(spec), target, places };
    if request.names_both() {
        let dockerfile = places.path("Environment.Docker.BaseDockerfile");
        return Err(places.invalid("Environment.Docker.BaseImage", format!(" is given and so is {dockerfile}: give one of them")));
    }
    let enabled = request.enabled_by();
    match (target.containers, enabled) {
        (ContainerPolicy::Never, Some(by)) => Err(request.never(&by)),
        (ContainerPolicy::Never, None) | (ContainerPolicy::WhenAsked, None) => {
            warnings.extend(request.unused());
            Ok(None)
        }
        (ContainerPolicy::Required, by) | (ContainerPolicy::WhenAsked, by @ Some(_)) => request.container(by, sealer, warnings).map(Some),
    }
}

fn locked_image(spec: &EnvironmentSpec) -> Option<&LockedImage> {
    match spec {
        EnvironmentSpec::Locked(lock) => lock.image.as_ref(),
        _ => None,
    }
}

/// What is asked for.
struct Request<'a> {
    docker: &'a DockerSection,
    run: &'a RunDockerSection,
    locked: Option<&'a LockedImage>,
    target: &'a TargetRule,
    places: Places<'a>,
}

fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

impl Request<'_> {
    fn image(&self) -> Option<&str> {
        given(self.docker.base_image.as_ref())
    }

    fn dockerfile(&self) -> Option<&str> {
        self.docker.base_dockerfile.as_deref().filter(|text| !text.trim().is_empty())
    }

    fn names_both(&self) -> bool {
        self.image().is_some() && self.dockerfile().is_some()
    }

    /// What asks for a container, as a clause.
    fn enabled_by(&self) -> Option<String> {
        if self.docker.enabled {
            Some(format!("{} = true", self.places.path("Environment.Docker.Enabled")))
        } else if self.run.use_docker {
            Some(format!("{} = true", self.places.path("Docker.UseDocker")))
        } else {
            self.locked.map(|_| format!("{} was made on an image", self.places.path("Environment.Lock")))
        }
    }

    fn never(&self, by: &str) -> Error {
        let target = &self.target.name;
        let message = format!(
            "{by}, and the target `{target}` runs nothing in containers (containers = \"never\"): leave it out or choose another target"
        );
        Error::new(ErrorKind::Unsupported, message).with_target(self.places.path("Environment.Docker"))
    }

    /// What is said about a container that is only described.
    fn unused(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let reason = match self.target.containers {
            ContainerPolicy::Never => format!("the target `{}` runs nothing in containers", self.target.name),
            _ => "the run does not go into a container".to_owned(),
        };
        if let Some(image) = self.image() {
            warnings.push(format!("{} = `{image}` is not used: {reason}", self.places.path("Environment.Docker.BaseImage")));
        }
        if self.dockerfile().is_some() {
            warnings.push(format!("{} is not used: {reason}", self.places.path("Environment.Docker.BaseDockerfile")));
        }
        if self.docker.base_image_registry.password.as_deref().is_some_and(|password| !password.is_empty()) {
            warnings.push(format!(
                "{} was thrown away and not stored: no image is pulled for the run",
                self.places.path("Environment.Docker.BaseImageRegistry.Password")
            ));
        }
        warnings
    }

    fn container(&self, by: Option<String>, sealer: &Sealer, warnings: &mut Vec<String>) -> Result<ContainerSpec> {
        let Self { docker, run, places, .. } = self;
        let address = self.address()?;
        let image = match self.locked {
            Some(locked) => self.image_of_lock(locked, address.as_deref(), warnings)?,
            None => self.source(by, address.as_deref())?,
        };
        self.check_platform()?;
        // Both sections say the same in clients that write both; the run's own goes first where it says something.
        let default = RunDockerSection::default();
        let shm = if run.shm_size == default.shm_size {
            ("Environment.Docker.ShmSize", &docker.shm_size)
        } else {
            ("Docker.ShmSize", &run.shm_size)
        };
        for (property, arguments) in [("Environment.Docker.Arguments", &docker.arguments), ("Docker.Arguments", &run.arguments)] {
            check_arguments(arguments).map_err(|(index, why)| {
                let shown: String = arguments[index].chars().take(80).filter(|c| !c.is_control()).collect();
                places.invalid(&format!("{property}[{index}]"), format!(" = `{shown}` {why}"))
            })?;
        }
        Ok(ContainerSpec {
            image,
            registry: self.login(address, sealer, warnings)?,
            shm_bytes: self.shm_bytes(shm)?,
            arguments: docker.arguments.iter().chain(&run.arguments).cloned().collect(),
            shared_volumes: docker.shared_volumes && run.shared_volumes,
            gpus: docker.gpu_support,
        })
    }

    fn source(&self, by: Option<String>, address: Option<&str>) -> Result<ImageSource> {
        let places = self.places;
        if let Some(text) = self.dockerfile() {
            return Ok(ImageSource::Dockerfile { text: text.to_owned() });
        }
        let Some(image) = self.image() else {
            let dockerfile = places.path("Environment.Docker.BaseDockerfile");
            let wanted = by.map_or_else(
                || format!("the target `{}` runs everything in containers (containers = \"required\")", self.target.name),
                |by| by.clone(),
            );
            let rest = format!(" is not given, nor is {dockerfile}, and {wanted}: one of them says which image");
            return Err(places.invalid(BASE_IMAGE, rest));
        };
        self.named(image, address)
    }

    /// The image that a lock was made on: exactly it, whatever its name stands for by now. What names another one is refused, or told where it
    /// is only described, as clients do who write every property.
    fn image_of_lock(&self, locked: &LockedImage, address: Option<&str>, warnings: &mut Vec<String>) -> Result<ImageSource> {
        let (places, lock) = (self.places, self.places.path("Environment.Lock"));
        let asked = match (self.dockerfile(), self.image()) {
            (Some(text), _) => Some(("Environment.Docker.BaseDockerfile", ImageSource::Dockerfile { text: text.to_owned() })),
            (None, Some(image)) => Some((BASE_IMAGE, self.named(image, address)?)),
            (None, None) => None,
        };
        if let Some((place, source)) = asked.filter(|(_, source)| !source.means(locked)) {
            let counts = self.docker.enabled || self.run.use_docker || self.target.containers == ContainerPolicy::Required;
            if counts {
                let shown = match &source {
                    ImageSource::Named { reference } => format!(" = `{reference}`"),
                    ImageSource::Dockerfile { .. } => String::new(),
                };
                let rest = format!(
                    "{shown} is not the image of {lock}, which is `{}`: name that one, or leave one of the two out",
                    locked.reference
                );
                return Err(places.invalid(place, rest));
            }
            warnings.push(format!("{} is not used: {lock} was made on the image `{}`", places.path(place), locked.reference));
        }
        Ok(ImageSource::Named { reference: locked.reference.clone() })
    }

    fn named(&self, image: &str, address: Option<&str>) -> Result<ImageSource> {
        let places = self.places;
        check_reference(image).map_err(|why| {
            let shown: String = image.chars().take(120).filter(|c| !c.is_control()).collect();
            places.invalid(BASE_IMAGE, format!(" = `{shown}` {why}"))
        })?;
        let reference = match (address, registry_of(image)) {
            (Some(address), None) => format!("{address}/{image}"),
            (Some(address), Some(host)) if Some(host) != address.split('/').next() => {
                let other = places.path("Environment.Docker.BaseImageRegistry.Address");
                let rest = format!(" = `{image}` names the registry {host}, and {other} names {address}: give one of them");
                return Err(places.invalid(BASE_IMAGE, rest));
            }
            _ => image.to_owned(),
        };
        Ok(ImageSource::Named { reference })
    }

    /// The host of the registry, without a scheme.
    fn address(&self) -> Result<Option<String>> {
        let Some(address) = given(self.docker.base_image_registry.address.as_ref()) else { return Ok(None) };
        let host = address.split_once("://").map_or(address, |(_, host)| host).trim_end_matches('/');
        let is_host =
            !host.is_empty() && !host.starts_with('-') && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-_/".contains(&byte));
        if is_host {
            return Ok(Some(host.to_owned()));
        }
        // Not shown: somebody may have put a password into it.
        Err(self.places.invalid("Environment.Docker.BaseImageRegistry.Address", " is not the address of a registry: `host` or `host:port`"))
    }

    fn login(&self, address: Option<String>, sealer: &Sealer, warnings: &mut Vec<String>) -> Result<Option<RegistryLogin>> {
        const PLACE: &str = "Environment.Docker.BaseImageRegistry";
        let RegistrySection { username, password, registry_identity, .. } = &self.docker.base_image_registry;
        if registry_identity.as_ref().is_some_and(|identity| !identity.is_null()) {
            let path = self.places.path(&format!("{PLACE}.RegistryIdentity"));
            let message = format!("{path} is given, and this server has no identities for registries: give Username and Password");
            return Err(Error::new(ErrorKind::Unsupported, message).with_target(path));
        }
        let password = password.as_deref().filter(|password| !password.is_empty());
        match (given(username.as_ref()), password) {
            (None, None) => Ok(None),
            (Some(username), Some(password)) => {
                if username.contains(':') {
                    return Err(self.places.invalid(&format!("{PLACE}.Username"), " holds a colon, which no user name at a registry does"));
                }
                // A registry may be named with the folder that is meant in it; who logs in does so at the host.
                let address = address.and_then(|address| address.split('/').next().map(str::to_owned));
                Ok(Some(RegistryLogin { address, username: username.to_owned(), sealed_password: sealer.seal(password)? }))
            }
            (Some(_), None) => {
                // As in a definition that was read back from a run: it shows no password.
                let path = self.places.path(&format!("{PLACE}.Password"));
                warnings.push(format!("{path} is missing: the registry is used with the login of the machine or of the configuration"));
                Ok(None)
            }
            (None, Some(_)) => Err(self.places.invalid(&format!("{PLACE}.Username"), " is missing, and a Password is given")),
        }
    }

    fn shm_bytes(&self, (place, size): (&str, &Option<String>)) -> Result<Option<u64>> {
        let Some(size) = given(size.as_ref()) else { return Ok(None) };
        let shown: String = size.chars().take(40).filter(|c| !c.is_control()).collect();
        let refused =
            || self.places.invalid(place, format!(" = `{shown}` is not a size: a number of bytes, or one with k, m or g, e.g. 2g"));
        parse_size(size).map(Some).ok_or_else(refused)
    }

    /// Runs are executed on machines like the server's own.
    fn check_platform(&self) -> Result<()> {
        let (os, architecture) = (&self.docker.platform.os, &self.docker.platform.architecture);
        if !os.eq_ignore_ascii_case("linux") {
            let place = "Environment.Docker.Platform.Os";
            return Err(self
                .places
                .invalid(place, format!(" = `{}`: containers are run on Linux", os.chars().take(40).collect::<String>())));
        }
        let own = docker_architecture(std::env::consts::ARCH);
        if docker_architecture(&architecture.to_ascii_lowercase()) != own {
            let shown: String = architecture.chars().take(40).filter(|c| !c.is_control()).collect();
            let place = "Environment.Docker.Platform.Architecture";
            return Err(self.places.invalid(place, format!(" = `{shown}`: the machines of the target `{}` are {own}", self.target.name)));
        }
        Ok(())
    }
}

/// The word that images use.
fn docker_architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
