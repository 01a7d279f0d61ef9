//! Paths and places in a task: absolute, plain, without a way out.
//! Invariant: a path has no `..`, no control character and one spelling.

use super::mistake::{BadTask, Mistake, Pointer};
use crate::driver::SYSTEM_TOPS;

/// `PATH_MAX` of Linux, without its final NUL.
pub const PATH_BYTES_MAX: usize = 4_095;
/// Presigned URLs carry a signature and a session token of about 2 KiB.
pub const URL_BYTES_MAX: usize = 8_192;

const ABSOLUTE: &str = "begin with `/`";
const NO_PARENT: &str = "write the path without `..`";
const PLAIN: &str = "write it without control characters";
const BELOW_ROOT: &str = "name something below `/`";
const NOT_SYSTEM: &str = "name a folder that is not the machine's own: `/work/…`, and not /bin, /boot, /dev, /etc, \
                          /lib…, /proc, /sbin, /sys or /usr";
const PLAIN_TOP: &str = "write the first folder without wildcards";
const URL: &str = "write a URL such as `s3://bucket/key`, or an absolute path";

/// An absolute path with one spelling: no `//`, no `.`, no final `/`.
pub fn parse(at: &Pointer, text: &str) -> Result<String, BadTask> {
    if !text.starts_with('/') {
        return Err(at.is(Mistake::text(text, ABSOLUTE)));
    }
    if text.chars().any(char::is_control) {
        return Err(at.is(Mistake::text(text, PLAIN)));
    }
    let mut path = String::with_capacity(text.len());
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => return Err(at.is(Mistake::text(text, NO_PARENT))),
            name => {
                path.push('/');
                path.push_str(name);
            }
        }
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok(path)
}

/// The same, but not `/` itself: something is put there.
pub fn parse_below_root(at: &Pointer, text: &str) -> Result<String, BadTask> {
    let path = parse(at, text)?;
    if path == "/" {
        return Err(at.is(Mistake::text(text, BELOW_ROOT)));
    }
    Ok(path)
}

/// A path of the task's own: below a folder of `/` that is not the machine's.
pub fn parse_own(at: &Pointer, text: &str) -> Result<String, BadTask> {
    let path = parse_below_root(at, text)?;
    if SYSTEM_TOPS.contains(&top(&path)) {
        return Err(at.is(Mistake::text(text, NOT_SYSTEM)));
    }
    if has_wildcard(top(&path)) {
        return Err(at.is(Mistake::text(text, PLAIN_TOP)));
    }
    Ok(path)
}

/// The folder of `/` that a parsed path is in: `work` of `/work/a`.
pub fn top(path: &str) -> &str {
    path.split('/').nth(1).unwrap_or_default()
}

/// Where a file comes from or goes to: `scheme://…`, or an absolute path at the host. Which of
/// them a host serves is the host's business.
pub fn parse_url(at: &Pointer, text: &str) -> Result<String, BadTask> {
    let bad = || at.is(Mistake::text(text, URL));
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad());
    }
    if text.starts_with('/') {
        return parse_below_root(at, text);
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let good =
        scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(known) && !rest.is_empty();
    if !good {
        return Err(bad());
    }
    let location = rest.split(['?', '#']).next().unwrap_or_default();
    if climbs(location) {
        return Err(at.is(Mistake::text(text, NO_PARENT)));
    }
    Ok(text.to_owned())
}

/// Whether a path has a segment `..`, also when whoever serves it decodes it once more.
pub fn climbs(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/");
    path.replace("%5c", "\\").split(['/', '\\']).any(|segment| segment == "..")
}

/// Whether a path has a wildcard. Source: IEEE Std 1003.1-2017, 2.13.
pub fn has_wildcard(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Whether `prefix` is a folder above `path`.
pub fn is_above(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix == "/" || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parse: fn(&Pointer, &str) -> Result<String, BadTask>, rows: &[(&str, Option<&str>)]) {
        for (text, expected) in rows {
            let parsed = parse(&Pointer::default(), text).ok();
            assert_eq!(parsed.as_deref(), *expected, "{text:?}");
        }
    }

    #[test]
    fn paths_are_absolute_and_have_one_spelling() {
        check(
            parse,
            &[
                ("/", Some("/")),
                ("/data/file1", Some("/data/file1")),
                ("/data/", Some("/data")),
                ("//data/.//a", Some("/data/a")),
                ("/data/..a/b..", Some("/data/..a/b..")),
                ("/ä ö", Some("/ä ö")),
                ("", None),
                ("data", None),
                ("./data", None),
                ("~/data", None),
                ("/data/..", None),
                ("/data/../../etc/passwd", None),
                ("/..", None),
                ("/a\0b", None),
                ("/a\nb", None),
                ("C:\\data", None),
            ],
        );
        check(parse_below_root, &[("/", None), ("//.", None), ("/a", Some("/a"))]);
    }

    #[test]
    fn urls_have_a_scheme_or_are_absolute_paths() {
        check(
            parse_url,
            &[
                ("s3://my-object-store/file1", Some("s3://my-object-store/file1")),
                ("file:///path/to/my/file", Some("file:///path/to/my/file")),
                ("https://h/a?sig=../x", Some("https://h/a?sig=../x")),
                ("/path/to/my/file", Some("/path/to/my/file")),
                ("", None),
                ("/", None),
                ("file1", None),
                ("s3:/bucket", None),
                ("://bucket", None),
                ("3s://bucket", None),
                ("s3://", None),
                ("s3://bucket/a b", None),
                ("s3://bucket/a\nb", None),
                ("file:///srv/../etc/shadow", None),
                ("file:///srv/%2e%2E/etc/shadow", None),
                ("file:///srv/a%2F..%5cetc/shadow", None),
                ("/srv/../etc/shadow", None),
            ],
        );
    }

    #[test]
    fn a_folder_is_above_what_is_in_it() {
        for (prefix, path, above) in
            [("/", "/a", true), ("/a", "/a/b", true), ("/a", "/ab", false), ("/a", "/a", false), ("/b", "/a/b", false)]
        {
            assert_eq!(is_above(prefix, path), above, "{prefix} {path}");
        }
    }
}
