//! Channels: from what people write to URLs, with the credentials taken out of them.

use rattler_conda_types::{Channel, ChannelUrl};
use url::Url;

use crate::{
    CondaError,
    access::{Credential, Secret},
};

/// What conda means by `defaults`.
const DEFAULTS: [&str; 2] = ["https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r"];

/// Channels in the order of precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Without credentials and with a slash at the end.
    pub urls: Vec<String>,
    /// Those that stood in URLs.
    pub credentials: Vec<Credential>,
}

/// Makes URLs of `channels`: names below `alias` (`https://conda.anaconda.org`), URLs (`https://`, `http://`, `file://`) and absolute
/// paths. `nodefaults` stands for nothing, as `defaults` is never added by itself.
pub fn resolve(channels: &[String], alias: &str) -> Result<Channels, CondaError> {
    let mut resolved = Channels::default();
    for channel in channels {
        match channel.trim() {
            "nodefaults" => {}
            "defaults" => {
                for url in DEFAULTS {
                    resolved.add(url, alias)?;
                }
            }
            other => resolved.add(other, alias)?,
        }
    }
    Ok(resolved)
}

impl Channels {
    fn add(&mut self, channel: &str, alias: &str) -> Result<(), CondaError> {
        let (url, credential) = parse(channel, alias)?;
        self.credentials.extend(credential);
        if !self.urls.contains(&url) {
            self.urls.push(url);
        }
        Ok(())
    }

    /// The channels as the solver knows them.
    pub(crate) fn sources(&self) -> Result<Vec<Channel>, CondaError> {
        self.urls.iter().map(|url| source(url)).collect()
    }
}

/// The channel behind a URL that was resolved.
pub(crate) fn source(url: &str) -> Result<Channel, CondaError> {
    let parsed = Url::parse(url).map_err(|error| CondaError::Request(format!("the channel `{url}` is not a URL: {error}")))?;
    Ok(Channel::from_url(ChannelUrl::from(parsed)))
}

fn parse(channel: &str, alias: &str) -> Result<(String, Option<Credential>), CondaError> {
    let refused = |why: &str| {
        let shown = trainyard_core::environment::requirement::hide_userinfo(channel);
        CondaError::Request(format!("the channel `{shown}` can not be used: {why}"))
    };
    if channel.is_empty() {
        return Err(refused("it is empty; give a name such as `conda-forge`, a URL or an absolute path"));
    }
    let text = if channel.contains("://") {
        channel.to_owned()
    } else if channel.starts_with('/') {
        let url = Url::from_directory_path(channel).map_err(|()| refused("it is not a path"))?;
        url.into()
    } else if channel.starts_with(['.', '~']) {
        return Err(refused("a path must be absolute"));
    } else if channel.contains(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))) || channel.contains("..") {
        return Err(refused("a name has letters, digits, `-`, `_`, `.` and `/`"));
    } else {
        format!("{}/{channel}", alias.trim_end_matches('/'))
    };
    let mut url = Url::parse(&text).map_err(|error| refused(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https" | "file") {
        return Err(refused("only https://, http:// and file:// are understood"));
    }
    let secret = take_secret(&mut url);
    let host = url.host_str().unwrap_or_default().to_owned();
    url.set_query(None);
    url.set_fragment(None);
    let mut text = String::from(url);
    if !text.ends_with('/') {
        text.push('/');
    }
    Ok((text, secret.filter(|_| !host.is_empty()).map(|secret| Credential { host, secret })))
}

/// Takes `user:password@` or `/t/TOKEN/` out of the URL.
fn take_secret(url: &mut Url) -> Option<Secret> {
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut secret = None;
    if !url.username().is_empty() || url.password().is_some() {
        let (username, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
        secret = Some(Secret::Basic { username, password });
        // Only URLs without a host can't have a user, and they had one.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    let path = url.path().to_owned();
    if let Some((token, rest)) = path.strip_prefix("/t/").and_then(|rest| rest.split_once('/')) {
        secret = Some(Secret::CondaToken(token.to_owned()));
        url.set_path(&format!("/{rest}"));
    }
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(channels: &[&str]) -> Vec<String> {
        let channels: Vec<String> = channels.iter().map(|&channel| channel.into()).collect();
        resolve(&channels, "https://mirror.example/conda/").unwrap().urls
    }

    #[test]
    fn names_urls_and_paths_become_urls_and_nodefaults_nothing() {
        assert_eq!(
            urls(&["conda-forge", "https://c.example/x", "/srv/channel", "file:///srv/channel/", "nodefaults", "conda-forge/label/dev"]),
            [
                "https://mirror.example/conda/conda-forge/",
                "https://c.example/x/",
                "file:///srv/channel/",
                "https://mirror.example/conda/conda-forge/label/dev/"
            ]
        );
        assert_eq!(urls(&["defaults"]), ["https://repo.anaconda.com/pkgs/main/", "https://repo.anaconda.com/pkgs/r/"]);
    }

    #[test]
    fn credentials_leave_the_url_and_go_to_its_host() {
        let channels = ["https://jo:s%40fe@c.example/x".to_owned(), "https://t.example/t/tk-1/team".to_owned()];
        let resolved = resolve(&channels, "https://a.example").unwrap();
        assert_eq!(resolved.urls, ["https://c.example/x/", "https://t.example/team/"]);
        let expected = [
            ("c.example", Secret::Basic { username: "jo".into(), password: "s@fe".into() }),
            ("t.example", Secret::CondaToken("tk-1".into())),
        ];
        assert_eq!(resolved.credentials, expected.map(|(host, secret)| Credential { host: host.into(), secret }));
    }

    #[test]
    fn what_is_no_channel_is_refused_without_its_credentials() {
        for (channel, part) in [
            ("", "is empty"),
            ("./here", "absolute"),
            ("a b", "letters"),
            ("s3://bucket", "only https"),
            ("https://u:s3cret@ho st/", "can not be used"),
        ] {
            let error = resolve(&[channel.to_owned()], "https://a.example").unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("s3cret"), "{channel}: {error}");
        }
    }
}
