//! Wildcards of output paths: `*`, `?` and `[…]` as POSIX has them for file names.
//! Invariant: a match costs at most name x pattern steps, whatever the pattern.

/// Whether a text has a wildcard.
pub(super) fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether a file name fits a pattern of one path component. A leading dot must be written out.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut seen) = (0, 0);
    // Where to go on if the last star has to swallow one character more.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if at < pattern.len() && pattern[at] == '*' {
            retry = Some((at + 1, seen));
            at += 1;
        } else if seen == name.len() {
            return at == pattern.len();
        } else if let Some(next) = one(&pattern, at, name[seen]) {
            (at, seen) = (next, seen + 1);
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            (at, seen) = (after_star, from + 1);
        } else {
            return false;
        }
    }
}

/// Where the pattern goes on after it has matched `c` at `at`; `None` if it doesn't.
fn one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match *pattern.get(at)? {
        '?' => Some(at + 1),
        '[' => match class(&pattern[at..], c) {
            Some((matched, length)) => matched.then_some(at + length),
            // Not closed: an ordinary bracket.
            None => (c == '[').then_some(at + 1),
        },
        '\\' if at + 1 < pattern.len() => (pattern[at + 1] == c).then_some(at + 2),
        literal => (literal == c).then_some(at + 1),
    }
}

/// Whether `c` is in the class that the pattern begins with, and the class's length.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    let (mut at, mut found) = (first, false);
    loop {
        let from = *pattern.get(at)?;
        if from == ']' && at > first {
            return Some((found != negated, at + 1));
        }
        let ranged = pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2) != Some(&']');
        let to = if ranged { *pattern.get(at + 2)? } else { from };
        found |= from <= c && c <= to;
        at += if ranged { 3 } else { 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, fitting, other) in [
            ("*.txt", "a.txt", "a.txt.gz"),
            ("*", "a", ".hidden"),
            (".*", ".hidden", "a"),
            ("a?c", "abc", "ac"),
            ("[a-c]x", "bx", "dx"),
            ("[!a-c]x", "dx", "bx"),
            ("[]a]", "]", "b"),
            ("[a-]", "-", "b"),
            ("[open", "[open", "o"),
            ("*a*b*", "xaxbx", "xbxax"),
            (r"\*", "*", "a"),
            ("é?", "éa", "ea"),
        ] {
            assert!(fits(pattern, fitting), "{pattern} {fitting}");
            assert!(!fits(pattern, other), "{pattern} {other}");
        }
    }

    #[test]
    fn a_hostile_pattern_is_not_slow() {
        assert!(!fits(&"*a".repeat(500), &"a".repeat(400)));
    }
}
