//! From the data that a run configuration names (azureml-wire D.5) to what an agent makes ready and delivers.
//!
//! Everything that can be told without opening anything is told here: datastores that are not configured, mounts of what is no folder, places outside
//! the working directory, datasets of a service that is not this one. Addresses with a secret in them are sealed before they leave this file, and are
//! kept for display without it.

use trainyard_core::{
    Error, ErrorKind, Result,
    data::{
        DEFAULT_DATASTORE, DataSpec, Input, InputMechanism, Location, Medium, Output, OutputMechanism, Section, check_name, relative_path,
        without_secrets,
    },
};
use trainyard_engine::data::{DatastoreAccess, Datastores, Found};
use trainyard_wire::azureml::{
    data_bindings::{self as wire, Data, DataLocation, DataReference, OutputData, ReferenceMode},
    definition::RunConfiguration,
};

use super::{
    container::{Rules, TargetRule},
    definition::Places,
};

/// Where an output goes that says nothing about it, as in the v1 service; the agent puts in the names.
const DEFAULT_OUTPUT: &str = "dataset/{run-id}/{output-name}";

/// `azureml://datastores/NAME/paths/PATH`
const ASSET_SCHEME: &str = "azureml://datastores/";

/// The data of a run on `target`. Sentences for the run's warnings are added to `warnings`.
pub(crate) fn to_data(
    asked: &RunConfiguration,
    (rules, target): (Rules<'_>, &TargetRule),
    places: Places<'_>,
    warnings: &mut Vec<String>,
) -> Result<DataSpec> {
    let mut spec = DataSpec::default();
    let mut binder = Binder { rules, target, places, warnings };
    for (name, reference) in &asked.data_references {
        binder.at(Section::References, name)?.reference(reference, &mut spec)?;
    }
    for (name, data) in &asked.data {
        let input = binder.at(Section::Inputs, name)?.input(data)?;
        spec.inputs.push(input);
    }
    for (name, data) in &asked.output_data {
        let output = binder.at(Section::Outputs, name)?.output(data)?;
        spec.outputs.push(output);
    }
    apart(&spec, places)?;
    Ok(spec)
}

/// Takes secrets out of the addresses of a configuration that is about to be shown.
pub(crate) fn hide_secrets(asked: &mut RunConfiguration) {
    let inputs = asked.data.values_mut().filter_map(|data| data.data_location.as_mut());
    let outputs = asked.output_data.values_mut().filter_map(|data| data.output_location.as_mut());
    for uri in inputs.chain(outputs).filter_map(|location| location.uri.as_mut()) {
        uri.path = uri.path.as_deref().map(|path| without_secrets(path).0);
    }
}

/// Fails if two of them are to be at, or within, the same place of the working directory.
fn apart(spec: &DataSpec, places: Places<'_>) -> Result<()> {
    let inputs = spec.inputs.iter().map(|input| (input.section, &input.name, &input.path_on_compute));
    let outputs = spec.outputs.iter().map(|output| (output.section, &output.name, &output.path_on_compute));
    let all: Vec<(String, &String)> = inputs
        .chain(outputs)
        .filter_map(|(section, name, path)| Some((format!("{}.{name}", section.property()), path.as_ref()?)))
        .collect();
    let within = |one: &str, other: &str| one == other || one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    for (index, (property, path)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..index].iter().find(|(_, there)| within(path, there) || within(there, path)) {
            let other = places.path(other);
            return Err(places.invalid(property, format!(" is to be at `{path}`, where {other} is: give each a place of its own")));
        }
    }
    Ok(())
}

/// Knows the surroundings.
struct Binder<'a> {
    rules: Rules<'a>,
    target: &'a TargetRule,
    places: Places<'a>,
    warnings: &'a mut Vec<String>,
}

impl<'a> Binder<'a> {
    fn at<'b>(&'b mut self, section: Section, name: &'b str) -> Result<Binding<'a, 'b>> {
        let property = format!("{}.{name}", section.property());
        check_name(name).map_err(|why| {
            let shown: String = name.chars().take(80).collect();
            self.places.invalid(section.property(), format!(": `{}` {why}", shown.escape_debug()))
        })?;
        Ok(Binding { binder: self, section, name, property })
    }
}

/// One entry of one of the three maps.
struct Binding<'a, 'b> {
    binder: &'b mut Binder<'a>,
    section: Section,
    name: &'b str,
    property: String,
}

/// A location with what is behind it.
struct Resolved {
    location: Location,
    medium: Medium,
    access: DatastoreAccess,
    /// For sentences.
    shown: String,
}

fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

impl Binding<'_, '_> {
    fn invalid(&self, property: &str, rest: impl AsRef<str>) -> Error {
        self.binder.places.invalid(&self.below(property), rest)
    }

    fn unsupported(&self, property: &str, rest: impl AsRef<str>) -> Error {
        let path = self.binder.places.path(&self.below(property));
        Error::new(ErrorKind::Unsupported, format!("{path}{}", rest.as_ref())).with_target(path)
    }

    fn below(&self, property: &str) -> String {
        if property.is_empty() { self.property.clone() } else { format!("{}.{property}", self.property) }
    }

    fn datastores(&self) -> &Datastores {
        self.binder.rules.datastores
    }

    fn reference(self, asked: &DataReference, spec: &mut DataSpec) -> Result<()> {
        let Some(store) = given(asked.data_store_name.as_ref()) else {
            return Err(self.invalid("DataStoreName", " is missing: it names the datastore"));
        };
        let resolved = self.on_datastore(("DataStoreName", store), ("PathOnDataStore", asked.path_on_data_store.as_ref()))?;
        let path_on_compute = self.path_on_compute("PathOnCompute", asked.path_on_compute.as_ref())?;
        let (section, name, overwrite) = (self.section, self.name.to_owned(), asked.overwrite);
        let mechanism = match asked.mode {
            ReferenceMode::Upload => {
                self.must_be_writable("Mode", &resolved)?;
                let location = resolved.location;
                let mechanism = OutputMechanism::Upload;
                spec.outputs.push(Output { name, section, location, mechanism, path_on_compute, overwrite, globs: Vec::new() });
                return Ok(());
            }
            ReferenceMode::Download => {
                self.must_name_a_file("PathOnDataStore", &resolved)?;
                InputMechanism::Download
            }
            ReferenceMode::Mount => {
                self.must_be_a_folder("Mode", &resolved, "Download")?;
                // Scripts of the v1 service write to what they mount.
                match resolved.access {
                    DatastoreAccess::ReadWrite => InputMechanism::MountWritable,
                    DatastoreAccess::Read => InputMechanism::Mount,
                }
            }
        };
        spec.inputs.push(Input { name, section, location: resolved.location, mechanism, path_on_compute, overwrite, variable: None });
        Ok(())
    }

    fn input(self, asked: &Data) -> Result<Input> {
        let Some(location) = &asked.data_location else {
            return Err(self.invalid("DataLocation", " is missing: it says where the data is"));
        };
        let mechanism = match asked.mechanism.unwrap_or(wire::InputMechanism::Direct) {
            wire::InputMechanism::Direct => InputMechanism::Direct,
            wire::InputMechanism::Mount => InputMechanism::Mount,
            wire::InputMechanism::Download => InputMechanism::Download,
            wire::InputMechanism::Hdfs => {
                return Err(self.unsupported("Mechanism", " = Hdfs is not possible: there is no HDFS; say Download or Mount"));
            }
        };
        let Some(resolved) = self.location("DataLocation", location)? else {
            return Err(self.invalid("DataLocation", " is empty: it has DataPath or Uri"));
        };
        match mechanism {
            InputMechanism::Mount => self.must_be_a_folder("Mechanism", &resolved, "Download")?,
            InputMechanism::Download => self.must_name_a_file("DataLocation", &resolved)?,
            InputMechanism::Direct | InputMechanism::MountWritable => {}
        }
        let variable = given(asked.environment_variable_name.as_ref()).map(str::to_owned);
        if variable.as_ref().is_some_and(|variable| variable.contains(['=', '\0'])) {
            return Err(self.invalid("EnvironmentVariableName", " is not a variable: a name holds neither `=` nor NUL"));
        }
        let unused = [("Options", !asked.options.is_empty()), ("CreateOutputDirectories", asked.create_output_directories)];
        for (property, _) in unused.iter().filter(|(_, given)| *given) {
            let path = self.binder.places.path(&self.below(property));
            self.binder.warnings.push(format!("{path} is not used: nothing here needs it"));
        }
        Ok(Input {
            name: self.name.to_owned(),
            section: self.section,
            location: resolved.location,
            mechanism,
            path_on_compute: self.path_on_compute("PathOnCompute", asked.path_on_compute.as_ref())?,
            overwrite: asked.overwrite,
            variable,
        })
    }

    fn output(self, asked: &OutputData) -> Result<Output> {
        let options = asked.additional_options.clone().unwrap_or_default();
        let registers = options.registration_options.is_some_and(|registration| {
            let transforms = registration.dataset_registration_options.and_then(|options| options.additional_transformation);
            given(registration.name.as_ref()).is_some() || given(transforms.as_ref()).is_some()
        });
        if registers {
            let why = " asks for a dataset, and this server registers none; leave it out and name the place of the output where it is read";
            return Err(self.unsupported("AdditionalOptions.RegistrationOptions", why));
        }
        let mechanism = match asked.mechanism.unwrap_or(wire::OutputMechanism::Upload) {
            wire::OutputMechanism::Upload => OutputMechanism::Upload,
            wire::OutputMechanism::Mount => OutputMechanism::Mount,
            other @ (wire::OutputMechanism::Hdfs | wire::OutputMechanism::Link) => {
                return Err(self.unsupported("Mechanism", format!(" = {} is not possible; say Upload or Mount", other.as_str())));
            }
        };
        let resolved = match asked.output_location.as_ref().map(|location| self.location("OutputLocation", location)).transpose()?.flatten()
        {
            Some(resolved) => resolved,
            None => self.on_datastore(("OutputLocation", DEFAULT_DATASTORE), ("OutputLocation", None))?,
        };
        let resolved = self.with_default_path(resolved);
        self.must_be_writable("OutputLocation", &resolved)?;
        if mechanism == OutputMechanism::Mount {
            self.must_be_a_folder("Mechanism", &resolved, "Upload")?;
        }
        let upload = options.upload_options.unwrap_or_default();
        Ok(Output {
            name: self.name.to_owned(),
            section: self.section,
            location: resolved.location,
            mechanism,
            path_on_compute: self.path_on_compute("AdditionalOptions.PathOnCompute", options.path_on_compute.as_ref())?,
            overwrite: upload.overwrite,
            globs: upload.source_globs.map(|globs| [globs.glob_patterns, globs.patterns].concat()).unwrap_or_default(),
        })
    }

    /// The root of a datastore is nobody's place for an output.
    fn with_default_path(&self, mut resolved: Resolved) -> Resolved {
        if let Location::Datastore { path, .. } = &mut resolved.location
            && path.is_empty()
        {
            DEFAULT_OUTPUT.clone_into(path);
        }
        resolved
    }

    /// `None`: nothing is given.
    fn location(&self, property: &str, location: &DataLocation) -> Result<Option<Resolved>> {
        let below = |name: &str| format!("{property}.{name}");
        let dataset = location.dataset.as_ref().filter(|dataset| given(dataset.id.as_ref()).or(given(dataset.name.as_ref())).is_some());
        if dataset.is_some() {
            let why = " names a dataset, and none are registered on this server; give the data itself, in DataPath or Uri";
            return Err(self.unsupported(&below("Dataset"), why));
        }
        let path = location.data_path.as_ref().filter(|path| given(path.datastore_name.as_ref()).is_some());
        let uri = location.uri.as_ref().and_then(|uri| given(uri.path.as_ref()));
        match (path, uri) {
            (Some(_), Some(_)) => Err(self.invalid(property, " has DataPath and Uri: give one of them")),
            (Some(path), None) => {
                let store = given(path.datastore_name.as_ref()).unwrap_or_default();
                let names = (below("DataPath.DatastoreName"), below("DataPath.RelativePath"));
                self.on_datastore((&names.0, store), (&names.1, path.relative_path.as_ref())).map(Some)
            }
            (None, Some(uri)) => self.at_address(&below("Uri.Path"), uri).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn on_datastore(&self, (property, name): (&str, &str), (path_property, path): (&str, Option<&String>)) -> Result<Resolved> {
        let path = relative_path(path.map(String::as_str).unwrap_or_default());
        let path = path.map_err(|why| self.invalid(path_property, format!(" {why}")))?;
        let Some(found) = self.datastores().find(name) else {
            let known: Vec<&str> = self.datastores().all().into_iter().map(|found| found.name).collect();
            let shown: String = name.chars().take(80).collect();
            return Err(self.invalid(property, format!(" = `{shown}` is not configured; known datastores: {}", known.join(", "))));
        };
        self.in_datastore(property, found, path)
    }

    fn in_datastore(&self, property: &str, found: Found<'_>, path: String) -> Result<Resolved> {
        let target = self.binder.target;
        if found.configured.is_none() && target.engine != "local" {
            let name = found.name;
            let why = format!(
                " = `{name}` is a folder of the server's machine, and runs of target `{}` are on other machines; the operator can say where it is \
                 for all, with `url` in [datastore.{name}]",
                target.name
            );
            return Err(self.invalid(property, why));
        }
        let shown = format!("datastore `{}`", found.name);
        let location = Location::Datastore { name: found.name.to_owned(), path };
        Ok(Resolved { location, medium: found.medium(), access: found.access(), shown })
    }

    fn at_address(&self, property: &str, address: &str) -> Result<Resolved> {
        if let Some(rest) = address.strip_prefix(ASSET_SCHEME) {
            let (name, path) = rest.split_once("/paths/").unwrap_or((rest, ""));
            return self.on_datastore((property, name), (property, Some(&path.to_owned())));
        }
        let (shown, has_secret) = without_secrets(address);
        let brief: String = shown.chars().take(200).collect();
        let medium = match Medium::of(address) {
            Some(Medium::S3) => {
                let Some((found, path)) = self.datastores().covering(address) else {
                    let why = format!(" = `{brief}` lies in no datastore of this server; a datastore with that bucket has the keys for it");
                    return Err(self.invalid(property, why));
                };
                let path = relative_path(&path).map_err(|why| self.invalid(property, format!(" {why}")))?;
                return self.in_datastore(property, found, path);
            }
            Some(medium) => medium,
            None => {
                let why = "cannot be reached: it must be an absolute path, or begin with file:///, http://, https://, s3:// or azureml://datastores/";
                let brief = if address.contains("://") { without_query(&brief) } else { brief };
                return Err(self.invalid(property, format!(" = `{brief}` {why}")));
            }
        };
        if address.contains('\0') || address.split(['/', '\\']).any(|part| part == "..") {
            return Err(self.invalid(property, format!(" = `{}` holds `..` or a NUL character", brief.escape_debug())));
        }
        let sealed = has_secret.then(|| self.binder.rules.sealer.seal(address)).transpose()?;
        let access = if medium == Medium::Web { DatastoreAccess::Read } else { DatastoreAccess::ReadWrite };
        Ok(Resolved { shown: format!("`{brief}`"), location: Location::Url { shown, sealed }, medium, access })
    }

    fn path_on_compute(&self, property: &str, path: Option<&String>) -> Result<Option<String>> {
        let Some(path) = given(path) else { return Ok(None) };
        let shown: String = path.chars().take(200).collect();
        let has_drive = path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic();
        if path.starts_with(['/', '\\', '~']) || has_drive {
            let why = "is not below the working directory: give a relative path, or leave it out and read the place from the variable or the argument";
            return Err(self.invalid(property, format!(" = `{}` {why}", shown.escape_debug())));
        }
        let path = relative_path(path).map_err(|why| self.invalid(property, format!(" = `{}` {why}", shown.escape_debug())))?;
        Ok(Some(path).filter(|path| !path.is_empty()))
    }

    fn must_be_a_folder(&self, property: &str, resolved: &Resolved, instead: &str) -> Result<()> {
        if resolved.medium == Medium::Path {
            return Ok(());
        }
        let why = format!(" = Mount is not possible: {} is not a folder that machines see; say {instead}", resolved.shown);
        Err(self.invalid(property, why))
    }

    fn must_be_writable(&self, property: &str, resolved: &Resolved) -> Result<()> {
        if resolved.access == DatastoreAccess::ReadWrite && resolved.medium != Medium::Web {
            return Ok(());
        }
        Err(self.invalid(property, format!(": nothing can be written to {}; name another datastore", resolved.shown)))
    }

    /// A web server does not list what it has.
    fn must_name_a_file(&self, property: &str, resolved: &Resolved) -> Result<()> {
        let names_none = match &resolved.location {
            Location::Datastore { path, .. } => path.is_empty(),
            Location::Url { shown, .. } => shown.ends_with('/'),
        };
        if resolved.medium == Medium::Web && names_none {
            return Err(
                self.invalid(property, format!(" names no file of {}: from the web one file is fetched, not a folder", resolved.shown))
            );
        }
        Ok(())
    }
}

/// What may be shown of an address whose scheme is not known.
fn without_query(address: &str) -> String {
    let place = address.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = place.split_once("://").unwrap_or(("", place));
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests;
