//! Framing: notices an HTTP/1 head that says twice where its body ends.
//!
//! A head with both Content-Length and Transfer-Encoding is how requests are smuggled past a proxy, and so is a
//! Transfer-Encoding that only one of the two understands. hyper removes one of two Content-Lengths before anybody can see
//! it, so the bytes are looked at before hyper gets them. Nothing else is decided here: hyper parses, and refuses what it
//! cannot parse.
//!
//! Invariant: one pass over each byte, and no more than one short line is kept.

/// Enough for `transfer-encoding:` and for any Content-Length that is a number.
const LINE_BYTES_MAX: usize = 128;

/// Where the scan is in a connection's bytes.
#[derive(Debug)]
pub struct Framing {
    state: State,
    line: Vec<u8>,
    line_is_cut: bool,
}

/// What the next byte belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// In a head.
    Head(Head),
    /// In a body of known length, with so many bytes to come.
    Body(u64),
    /// After a head with a Transfer-Encoding: this request is the connection's last.
    Last,
}

/// What a head has said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// It has a line.
    pub begun: bool,
    length: Option<u64>,
    encoded: bool,
}

/// A head that says twice, or in an odd way, where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

impl Default for Framing {
    fn default() -> Framing {
        Framing { state: State::Head(Head::default()), line: Vec::new(), line_is_cut: false }
    }
}

impl Framing {
    /// Looks at the next bytes of the connection.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Result<(), Ambiguous> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Last => return Ok(()),
                State::Body(left) => {
                    let here = (*left).min(bytes.len() as u64);
                    *left -= here;
                    // `here` is at most the number of bytes.
                    bytes = &bytes[here as usize..];
                    if *left == 0 {
                        self.state = State::Head(Head::default());
                    }
                }
                State::Head(_) => bytes = self.scan_line(bytes)?,
            }
        }
        Ok(())
    }

    /// What the next byte belongs to.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes bytes up to the end of a line, or all of them.
    fn scan_line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Ambiguous> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        let room = LINE_BYTES_MAX - self.line.len();
        self.line_is_cut |= piece.len() > room;
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        let Some(end) = end else {
            return Ok(&[]);
        };
        let line = std::mem::take(&mut self.line);
        let is_cut = std::mem::take(&mut self.line_is_cut);
        self.end_line(line.strip_suffix(b"\r").unwrap_or(&line), is_cut)?;
        Ok(&bytes[end + 1..])
    }

    fn end_line(&mut self, line: &[u8], is_cut: bool) -> Result<(), Ambiguous> {
        let State::Head(head) = &mut self.state else {
            return Ok(());
        };
        if line.is_empty() {
            return self.end_head();
        }
        head.begun = true;
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Ok(());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // hyper would leave any coding before the last one to the handler, which then reads what is still coded.
            if head.encoded || is_cut || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous);
            }
            head.encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = number(value).filter(|_| !is_cut).ok_or(Ambiguous)?;
            if head.length.replace(length).is_some() {
                return Err(Ambiguous);
            }
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Ambiguous> {
        let State::Head(head) = &self.state else {
            return Ok(());
        };
        self.state = match (head.begun, head.encoded, head.length) {
            (_, true, Some(_)) => return Err(Ambiguous),
            (_, true, None) => State::Last,
            // An empty line before a request counts for nothing.
            (false, ..) | (true, false, None | Some(0)) => State::Head(Head::default()),
            (true, false, Some(length)) => State::Body(length),
        };
        Ok(())
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| all_digits)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(bytes: &[u8], piece: usize) -> Result<(), Ambiguous> {
        let mut framing = Framing::default();
        bytes.chunks(piece).try_for_each(|piece| framing.scan(piece))
    }

    fn check(text: &str, expected: Result<(), Ambiguous>) {
        for piece in [1, 2, 7, 10_000] {
            assert_eq!(scan(text.as_bytes(), piece), expected, "{text:?} by {piece}");
        }
    }

    #[test]
    fn a_head_that_says_twice_where_its_body_ends_is_noticed() {
        let fine = [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            // What looks like a head inside of a body is body.
            "POST / HTTP/1.1\r\nContent-Length: 47\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nX-Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        for text in fine {
            check(text, Ok(()));
        }
        let ambiguous = [
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\ncontent-length:3\nTRANSFER-ENCODING:\tchunked\n\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        for text in ambiguous {
            check(text, Err(Ambiguous));
        }
        check(&format!("POST / HTTP/1.1\r\nContent-Length: {}3\r\n\r\n", " ".repeat(200)), Err(Ambiguous));
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_into_pieces_does_not_matter(
            bytes in "(POST / HTTP/1\\.1|Content-Length: [0-9]{1,2}|Transfer-Encoding: chunked|[a-c]{0,4}|\r\n|\n){0,20}",
            piece in 1usize..9,
        ) {
            prop_assert_eq!(scan(bytes.as_bytes(), piece), scan(bytes.as_bytes(), usize::MAX));
        }
    }
}
