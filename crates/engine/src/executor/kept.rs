//! Which variables of the server agents get, on whatever engine. Everything else, above all secrets, stays with the server.

/// What finds programs and homes, and the way out to the network.
const VARIABLES: [&str; 17] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// Beginnings of names that are kept too: how pip and uv reach their index.
const PREFIXES: [&str; 2] = ["PIP_", "UV_"];

/// Whether agents get the variable; an engine may add names and beginnings of its own.
pub(super) fn is_kept(name: &str, (own, own_prefixes): (&[&str], &[&str])) -> bool {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    VARIABLES.contains(&name) || own.contains(&name) || begins(&PREFIXES) || begins(own_prefixes)
}
