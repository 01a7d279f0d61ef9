//! Places: where inputs come from and outputs go to.
//! Invariant: a place is below a folder, or at a host, that the factory allows.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::order::Rules;

const URL_BYTES_MAX: usize = 8_192;

/// Why a URL cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadUrl {
    #[error("only file, http and https")]
    Scheme,
    #[error("this factory has no certificate authorities for https")]
    Https,
    #[error("it does not parse")]
    Malformed,
    #[error("it names a user")]
    User,
    #[error("this factory does not allow its host")]
    Host,
    #[error("it is not below a folder that this factory allows")]
    Folder,
    #[error("a directory has no http address")]
    HttpDirectory,
}

/// Where bytes come from or go to, as far as the factory allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// `below` an allowed folder; the kernel sees to it that it stays below.
    File {
        root: PathBuf,
        below: PathBuf,
    },
    Http {
        url: String,
    },
}

impl Place {
    pub fn parse(url: &str, rules: &Rules) -> Result<Place, BadUrl> {
        if url.len() > URL_BYTES_MAX {
            return Err(BadUrl::Malformed);
        }
        match url.split_once("://").ok_or(BadUrl::Scheme)? {
            ("file", rest) => rules.file(rest),
            ("http", rest) => rules.http(url, rest, 80),
            ("https", _) if rules.https_ca_file.is_none() => Err(BadUrl::Https),
            ("https", rest) => rules.http(url, rest, 443),
            _ => Err(BadUrl::Scheme),
        }
    }

    /// The place of something below this one, as outputs of a folder or of wildcards need it.
    pub fn join(&self, below: &Path) -> Place {
        match self {
            Place::File { root, below: above } => Place::File { root: root.clone(), below: above.join(below) },
            Place::Http { url } => {
                let (address, query) = url.split_at(url.find('?').unwrap_or(url.len()));
                let mut address = address.trim_end_matches('/').to_owned();
                for component in below.components() {
                    address.push('/');
                    address.push_str(&percent_encoded(&component.as_os_str().to_string_lossy()));
                }
                Place::Http { url: address + query }
            }
        }
    }
}

impl Rules {
    fn file(&self, rest: &str) -> Result<Place, BadUrl> {
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        let path = percent_decoded(path).ok_or(BadUrl::Malformed)?;
        let path = Path::new(&path);
        if !path.is_absolute() {
            return Err(BadUrl::Malformed);
        }
        if path.components().any(|it| it == Component::ParentDir) {
            return Err(BadUrl::Folder);
        }
        let roots = self.file_roots.iter().filter(|root| path.starts_with(root));
        let root = roots.max_by_key(|root| root.as_os_str().len()).ok_or(BadUrl::Folder)?;
        let below = path.strip_prefix(root).map_err(|_| BadUrl::Folder)?;
        Ok(Place::File { root: root.clone(), below: below.components().collect() })
    }

    fn http(&self, url: &str, rest: &str, port: u16) -> Result<Place, BadUrl> {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(BadUrl::User);
        }
        let url = url.split('#').next().unwrap_or_default();
        let parsed: http::Uri = url.parse().map_err(|_| BadUrl::Malformed)?;
        let host = parsed.host().ok_or(BadUrl::Malformed)?.to_ascii_lowercase();
        let named = parsed.port_u16().unwrap_or(port);
        let allowed = self.http_hosts.iter().any(|it| {
            let it = it.to_ascii_lowercase();
            it == format!("{host}:{named}") || (it == host && named == port)
        });
        if !allowed {
            return Err(BadUrl::Host);
        }
        Ok(Place::Http { url: url.to_owned() })
    }
}

/// A URL without its query and user, which may hold a secret.
pub(super) fn redacted(url: &str) -> String {
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    match shown.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => shown.to_owned(),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            u8::from_str_radix(digits, 16).ok()?
        } else {
            byte
        };
        if decoded == 0 {
            return None;
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes).ok()
}

fn percent_encoded(text: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match byte {
            byte if kept(byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sandbox::Sandbox;
    use super::*;

    fn rules() -> Rules {
        Rules {
            sandbox: Sandbox::Process,
            network: false,
            run_as: None,
            file_roots: vec!["/srv/data".into(), "/srv/data/deep".into()],
            http_hosts: vec!["data.example".into(), "127.0.0.1:8080".into()],
            https_ca_file: None,
            disk_reserve: 0,
            launcher: None,
        }
    }

    #[test]
    fn urls_lead_only_where_the_factory_allows() {
        let check = |url: &str| Place::parse(url, &rules());
        for (url, root, below) in [
            ("file:///srv/data/a", "/srv/data", "a"),
            ("file://localhost/srv/data/a%20b", "/srv/data", "a b"),
            ("file:///srv/data/deep//a", "/srv/data/deep", "a"),
        ] {
            let (root, below) = (root.into(), below.into());
            assert_eq!(check(url), Ok(Place::File { root, below }), "{url}");
        }
        for (url, reason) in [
            ("file:///etc/passwd", BadUrl::Folder),
            ("file:///srv/data/../x", BadUrl::Folder),
            ("file:///srv/data/%2e%2e/x", BadUrl::Folder),
            ("file:///srv/database", BadUrl::Folder),
            ("file:///srv/data/%00", BadUrl::Malformed),
            ("file://host/srv/data/a", BadUrl::Malformed),
            ("/srv/data/a", BadUrl::Scheme),
            ("ftp://data.example/a", BadUrl::Scheme),
            ("https://data.example/a", BadUrl::Https),
            ("http://data.example:8080/a", BadUrl::Host),
            ("http://127.0.0.1/a", BadUrl::Host),
            ("http://data.example.evil/a", BadUrl::Host),
            ("http://data.example@evil/a", BadUrl::User),
            ("http://evil#@data.example/a", BadUrl::Host),
            ("http://evil\\@data.example/a", BadUrl::User),
        ] {
            assert_eq!(check(url), Err(reason), "{url}");
        }
        assert!(check("http://DATA.example/a?b").is_ok());
        assert!(check("http://127.0.0.1:8080/a").is_ok());
    }

    #[test]
    fn places_are_joined_by_components() {
        let url = "http://data.example/d/?sign=1".to_owned();
        let joined = Place::Http { url }.join(Path::new("a b/ü"));
        let url = "http://data.example/d/a%20b/%C3%BC?sign=1".to_owned();
        assert_eq!(joined, Place::Http { url });
    }

    #[test]
    fn secrets_in_urls_are_not_shown() {
        assert_eq!(redacted("https://u:p@h/a?sig=1#x"), "https://h/a");
        assert_eq!(redacted("file:///srv/a"), "file:///srv/a");
    }
}
