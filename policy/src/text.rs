//! Pack text before a parser sees it: how long it may be, which characters it may have, how deep
//! its expressions may go.
//!
//! A parser, a type checker and an evaluator recurse as deep as an expression does, and three
//! hundred nested brackets are enough to abort a process whose stack is small. So the depth of what
//! will be parsed is bounded here from above, by a scanner that does not recurse. It reads strings
//! and comments as Cedar's lexer does; where the two could differ (a carriage return, a line break
//! within a string) the text is refused.
//!
//! Invariant: the syntax tree of a text that passes is at most [`DEPTH_MAX`] deep.

/// 200 rules of 330 bytes; the three shipped packs have 4 to 6 KiB each.
pub(crate) const PACK_BYTES_MAX: usize = 64 * 1_024;
/// Depth of one policy's syntax tree, from above. Every bracket, and every operator of a chain such
/// as `a || b || c`, is a level. The deepest shipped rule has 11, and long lists belong into sets.
/// The evaluator takes up to 60 KiB of stack a level in a debug build: 24 x 60 KiB = 1.4 MiB of the
/// 2 MiB that worker threads have. Where a stack is short all the same, the rule fails, which denies.
pub(crate) const DEPTH_MAX: u32 = 24;
/// Bytes of a string literal as it is written, escapes and all. Titles and laws are the longest, with
/// at most 200 bytes of text. Cedar's `like` takes pattern x text steps, and a rule may bring both:
/// 64 KiB / (256 + 256) x 256 x 256 = 8 million steps for a whole pack, instead of 32 KiB x 32 KiB =
/// a thousand million for one rule.
pub(crate) const STRING_BYTES_MAX: usize = 256;

/// Why a text goes to no parser. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// More bytes than a pack may have.
    #[error("the text has {bytes} bytes; a pack has at most {PACK_BYTES_MAX}")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// A control, bidirectional or invisible character, or one beyond ASCII in the code itself.
    #[error("line {line}: the character U+{code:04X} may not stand here")]
    Character {
        /// Where.
        line: u32,
        /// Which.
        code: u32,
    },
    /// A string that does not end on its line.
    #[error("line {line}: the string does not end on this line")]
    OpenString {
        /// Where it starts.
        line: u32,
    },
    /// A string that is longer than any line for people.
    #[error("line {line}: the string has more than {STRING_BYTES_MAX} bytes")]
    LongString {
        /// Where.
        line: u32,
    },
    /// A bracket without its partner.
    #[error("line {line}: a bracket has no partner")]
    Unbalanced {
        /// Where.
        line: u32,
    },
    /// Brackets or chains of operators go deeper than a pack may.
    #[error("line {line}: nested brackets and chained operators go deeper than {DEPTH_MAX} levels")]
    TooDeep {
        /// Where.
        line: u32,
    },
}

/// Refuses a text that no parser should see.
pub(crate) fn scan(text: &str) -> Result<(), BadText> {
    if text.len() > PACK_BYTES_MAX {
        return Err(BadText::TooLong { bytes: text.len() });
    }
    check_characters(text)?;
    let mut tokens = Tokens { rest: text, line: 1 };
    let mut open = vec![Group::opened_by(None)];
    while let Some((line, token)) = tokens.next()? {
        measure(&mut open, line, token)?;
    }
    let line = tokens.line;
    let last = open.pop().expect("invariant: the outermost group is never closed");
    if !open.is_empty() {
        return Err(BadText::Unbalanced { line });
    }
    last.depth_at(line).map(|_| ())
}

/// Is it a character that could show a reader something else than is there?
pub(crate) fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Line breaks and tabs aside, nothing deceptive anywhere. A carriage return only before a line
/// feed: alone it would end a comment for Cedar and for nobody else.
fn check_characters(text: &str) -> Result<(), BadText> {
    let mut line = 1;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let good = match character {
            '\n' | '\t' => true,
            '\r' => characters.peek() == Some(&'\n'),
            other => !is_deceptive(other),
        };
        if !good {
            return Err(BadText::Character { line, code: character.into() });
        }
        line += u32::from(character == '\n');
    }
    Ok(())
}

/// What matters of a token for the depth of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Open(char),
    Close(char),
    /// `,` and `;`: the next expression starts from nothing.
    Next,
    /// `||`, and `if`: one level over everything to the left.
    Or,
    /// `then` and `else`: another branch of the same `if`.
    Branch,
    /// `&&`
    And,
    /// Every other operator, prefix or infix.
    Operator,
    /// Names, numbers, strings and what no expression is made of.
    Leaf,
}

/// Cuts a text whose characters are checked into tokens, as Cedar's lexer does.
struct Tokens<'a> {
    rest: &'a str,
    line: u32,
}

impl Tokens<'_> {
    /// The next token with its line; `None` at the end.
    fn next(&mut self) -> Result<Option<(u32, Token)>, BadText> {
        self.skip_blank();
        let line = self.line;
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        if !first.is_ascii() {
            return Err(BadText::Character { line, code: first.into() });
        }
        let token = match first {
            '"' => self.string()?,
            '0'..='9' => self.number(),
            'a'..='z' | 'A'..='Z' | '_' => self.word(),
            _ => self.symbol(first),
        };
        Ok(Some((line, token)))
    }

    fn skip_blank(&mut self) {
        loop {
            let blank = self.rest.find(|it| !matches!(it, ' ' | '\t' | '\r' | '\n')).unwrap_or(self.rest.len());
            self.advance(blank);
            if !self.rest.starts_with("//") {
                return;
            }
            self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    fn string(&mut self) -> Result<Token, BadText> {
        let mut escaped = false;
        for (index, byte) in self.rest.bytes().enumerate().skip(1) {
            match byte {
                b'\n' => break,
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.advance(index + 1);
                    return Ok(Token::Leaf);
                }
                _ => {}
            }
            if index > STRING_BYTES_MAX {
                return Err(BadText::LongString { line: self.line });
            }
        }
        Err(BadText::OpenString { line: self.line })
    }

    /// Digits only: what stands right behind them is a word of its own, as in `1in`.
    fn number(&mut self) -> Token {
        let end = self.rest.find(|it: char| !it.is_ascii_digit());
        self.advance(end.unwrap_or(self.rest.len()));
        Token::Leaf
    }

    fn word(&mut self) -> Token {
        let inner = |it: char| it.is_ascii_alphanumeric() || it == '_';
        let end = self.rest.find(|it| !inner(it)).unwrap_or(self.rest.len());
        let token = match &self.rest[..end] {
            "if" => Token::Or,
            "then" | "else" => Token::Branch,
            "in" | "has" | "like" | "is" => Token::Operator,
            _ => Token::Leaf,
        };
        self.advance(end);
        token
    }

    fn symbol(&mut self, first: char) -> Token {
        let (length, token) = match self.rest.as_bytes() {
            [b'|', b'|', ..] => (2, Token::Or),
            [b'&', b'&', ..] => (2, Token::And),
            [b':', b':', ..] => (2, Token::Leaf),
            [b'=' | b'!' | b'<' | b'>', b'=', ..] => (2, Token::Operator),
            [b'(' | b'[' | b'{', ..] => (1, Token::Open(first)),
            [b')' | b']' | b'}', ..] => (1, Token::Close(first)),
            [b',' | b';', ..] => (1, Token::Next),
            [b'!' | b'-' | b'+' | b'*' | b'/' | b'%' | b'.' | b'<' | b'>' | b'=', ..] => (1, Token::Operator),
            _ => (1, Token::Leaf),
        };
        self.advance(length);
        token
    }

    fn advance(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.bytes().fold(0, |lines, byte| lines + u32::from(byte == b'\n'));
        self.rest = rest;
    }
}

/// What stands between two brackets, as far as it has been read: a list of expressions, each an
/// `||` chain of terms, each an `&&` chain of factors. A chain of n operators becomes a tree n deep.
#[derive(Default)]
struct Group {
    opener: Option<char>,
    operators: u32,
    inside: u32,
    ands: u32,
    factor: u32,
    ors: u32,
    term: u32,
    expression: u32,
}

impl Group {
    fn opened_by(opener: Option<char>) -> Group {
        Group { opener, ..Group::default() }
    }

    fn end_factor(&mut self) {
        self.factor = self.factor.max(self.operators + self.inside);
        (self.operators, self.inside) = (0, 0);
    }

    fn end_term(&mut self) {
        self.end_factor();
        self.term = self.term.max(self.ands + self.factor);
        (self.ands, self.factor) = (0, 0);
    }

    fn end_expression(&mut self) {
        self.end_term();
        self.expression = self.expression.max(self.ors + self.term);
        (self.ors, self.term) = (0, 0);
    }

    /// The depth of the deepest expression, if that is deep enough for anyone.
    fn depth_at(mut self, line: u32) -> Result<u32, BadText> {
        self.end_expression();
        if self.expression > DEPTH_MAX { Err(BadText::TooDeep { line }) } else { Ok(self.expression) }
    }
}

/// Takes one more token into account.
fn measure(open: &mut Vec<Group>, line: u32, token: Token) -> Result<(), BadText> {
    let nested = open.len() as u32;
    let group = open.last_mut().expect("invariant: the outermost group is never closed");
    match token {
        Token::Leaf => {}
        Token::Operator => group.operators += 1,
        Token::And => {
            group.end_factor();
            group.ands += 1;
        }
        Token::Or => {
            group.end_term();
            group.ors += 1;
        }
        Token::Branch => group.end_term(),
        Token::Next => group.end_expression(),
        Token::Open(_) if nested > DEPTH_MAX => return Err(BadText::TooDeep { line }),
        Token::Open(opener) => {
            // A bracket may also be an operator, as in `a[0][1]` or `f(x)`. Outside of all brackets
            // only conditions chain; annotations and the scope do not.
            group.operators += u32::from(nested > 1 || opener == '{');
            open.push(Group::opened_by(Some(opener)));
        }
        Token::Close(closer) => {
            let partner = match closer {
                ')' => '(',
                ']' => '[',
                _ => '{',
            };
            if group.opener != Some(partner) {
                return Err(BadText::Unbalanced { line });
            }
            let closed = open.pop().expect("invariant: a group with an opener is not the outermost");
            let depth = closed.depth_at(line)? + 1;
            let outer = open.last_mut().expect("invariant: the outermost group is never closed");
            outer.inside = outer.inside.max(depth);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), BadText>) {
        let shown: String = text.chars().take(60).collect();
        assert_eq!(scan(text), expected, "{shown}");
    }

    #[test]
    fn what_people_write_passes() {
        check("", Ok(()));
        check("permit (principal, action, resource) when { a.b == \"é (((\" && !c }; // ]] é", Ok(()));
        check("forbid (principal, action, resource)\r\n\twhen { if a then b else c };", Ok(()));
        check("@title(\"a \\\" b\") permit (principal, action, resource);", Ok(()));
        check(&"permit (principal, action, resource) when { a };\n".repeat(500), Ok(()));
        let wide = format!("permit (a) when {{ b in [{}] }};", "\"x\", ".repeat(2_000));
        check(&wide, Ok(()));
    }

    #[test]
    fn deep_texts_are_refused() {
        let too_deep = Err(BadText::TooDeep { line: 1 });
        for opener in ["(", "[", "{", "f(", "a[", "!(", "{a:[("] {
            check(&opener.repeat(300 / opener.len()), too_deep.clone());
            check(&opener.repeat(60 * 1_024 / opener.len()), too_deep.clone());
        }
        for link in ["!", "-", "a || ", "a && ", "a.", "a + ", "a * ", "[0]", "(x)", "a == ", "a in ", "1in "] {
            for links in [DEPTH_MAX as usize + 1, 60 * 1_024 / link.len()] {
                check(&format!("permit (p) when {{ {} }};", link.repeat(links)), too_deep.clone());
            }
        }
        check(&"if a then b else ".repeat(100), too_deep.clone());
        check(&format!("permit (p) {};", "when { a } ".repeat(100)), too_deep);
    }

    #[test]
    fn chains_of_different_operators_do_not_add_up() {
        let term = "a.b == c && d.e != f && !g".to_owned();
        let text = format!("permit (p) when {{ {} }};", vec![term; 15].join(" || "));
        check(&text, Ok(()));
    }

    #[test]
    fn strings_and_comments_hide_nothing() {
        let deep = "(".repeat(200);
        check(&format!("// {deep}\n"), Ok(()));
        check(&format!("\"{deep}\""), Ok(()));
        check(&format!("// \n{deep}"), Err(BadText::TooDeep { line: 2 }));
        check(&format!("// \r{deep}"), Err(BadText::Character { line: 1, code: 0x0d }));
        check(&format!("\"\\\\\"{deep}"), Err(BadText::TooDeep { line: 1 }));
        check(&format!("\"//\"{deep}"), Err(BadText::TooDeep { line: 1 }));
        check(&format!("\"{deep}"), Err(BadText::OpenString { line: 1 }));
        check("\"a\nb\"", Err(BadText::OpenString { line: 1 }));
        check("\"a\\\nb\"", Err(BadText::OpenString { line: 1 }));
    }

    /// Cedar's `like` is quadratic: without a limit one rule of a pack could keep a gateway busy for minutes.
    #[test]
    fn strings_are_short() {
        let literal = |text: &str| format!("\n\"{text}\"");
        let too_long = Err(BadText::LongString { line: 2 });
        for (unit, bytes) in [("a", 1), ("*a", 2), ("é", 2), ("\\\"", 2), ("\\u{61}", 6)] {
            assert_eq!(unit.len(), bytes);
            check(&literal(&unit.repeat(STRING_BYTES_MAX / bytes)), Ok(()));
            check(&literal(&unit.repeat(STRING_BYTES_MAX / bytes + 1)), too_long.clone());
        }
        check(&format!("\n\"{}", "a".repeat(PACK_BYTES_MAX - 2)), too_long);
        check(&format!("\n\"{}", "a".repeat(STRING_BYTES_MAX)), Err(BadText::OpenString { line: 2 }));
        check(&format!("// {}", "a".repeat(STRING_BYTES_MAX + 1)), Ok(()));
    }

    #[test]
    fn characters_that_deceive_are_refused_everywhere() {
        for code in [0x00, 0x07, 0x0b, 0x1b, 0x7f, 0x85, 0xad, 0x200b, 0x2028, 0x202e, 0x2066, 0xfeff, 0xe0041] {
            let character = char::from_u32(code).unwrap();
            for text in [format!("\n\"{character}\""), format!("\n//{character}"), format!("\n{character}")] {
                check(&text, Err(BadText::Character { line: 2, code }));
            }
        }
        check("pérmit (a);", Err(BadText::Character { line: 1, code: 0xe9 }));
        check("permit\u{a0}(a);", Err(BadText::Character { line: 1, code: 0xa0 }));
    }

    #[test]
    fn brackets_pair_up_and_texts_end() {
        for text in [")", "(]", "([)]", "(", "}{"] {
            check(text, Err(BadText::Unbalanced { line: 1 }));
        }
        let long = " ".repeat(PACK_BYTES_MAX + 1);
        check(&long, Err(BadText::TooLong { bytes: long.len() }));
        check(&long[1..], Ok(()));
    }
}
