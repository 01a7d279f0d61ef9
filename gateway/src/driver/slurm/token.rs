//! Tokens: what tells slurmrestd for which user the gateway speaks.
//!
//! The gateway holds no key that makes them. A program of the operator's, or files that he keeps fresh, give one user's
//! token at a time, and it is forgotten shortly before it ends.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::accounts::LocalName;
use super::settings::TokenSource;
use crate::driver::now_ms;

const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_BYTES_MAX: u64 = 16 * 1024;
/// A token whose end is not known is asked for again after this.
const LIFE_DEFAULT_MS: u64 = 60_000;
/// A request takes up to 20 s, and clocks differ.
const MARGIN_MS: u64 = 30_000;
/// A program that failed is left alone for this long.
const FAILED_MS: u64 = 5_000;
/// Slurm answers the same to a wrong token and for a controller that is down. Programs are not run for that every second.
const NEW_MS: u64 = 30_000;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A token. It is in no log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

/// All users' tokens.
pub(super) struct Tokens {
    source: TokenSource,
    known: Mutex<HashMap<LocalName, Known>>,
}

#[derive(Clone)]
struct Known {
    token: Result<Token, NoToken>,
    given_ms: u64,
    until_ms: u64,
}

/// Why there is no token. It names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoToken {
    #[error("the token command for {user} failed: {reason}")]
    Command { user: LocalName, reason: String },
    #[error("the token file of {user} cannot be read: {reason}")]
    File { user: LocalName, reason: String },
    #[error("what is given as the token of {0} is not one")]
    Form(LocalName),
}

impl Tokens {
    pub fn new(source: TokenSource) -> Tokens {
        Tokens { source, known: Mutex::default() }
    }

    /// A user's token; `None` where none is needed.
    pub async fn of(&self, user: &LocalName) -> Result<Option<Token>, NoToken> {
        if self.source == TokenSource::Socket {
            return Ok(None);
        }
        let now = now_ms();
        let known = self.lock().get(user).filter(|it| now < it.until_ms).cloned();
        if let Some(known) = known {
            return known.token.map(Some);
        }
        let token = self.fetch(user).await;
        let until_ms = match &token {
            Ok(token) => token.use_until_ms(now),
            Err(_) => now + FAILED_MS,
        };
        self.lock().insert(user.clone(), Known { token: token.clone(), given_ms: now, until_ms });
        token.map(Some)
    }

    /// A token that was not accepted is not used again, unless it is new: then it is not the token.
    pub fn forget(&self, user: &LocalName) {
        let mut known = self.lock();
        if known.get(user).is_some_and(|it| now_ms() > it.given_ms + NEW_MS) {
            known.remove(user);
        }
    }

    async fn fetch(&self, user: &LocalName) -> Result<Token, NoToken> {
        let text = match &self.source {
            TokenSource::Socket => String::new(),
            TokenSource::Command(words) => {
                run(words, user).await.map_err(|reason| NoToken::Command { user: user.clone(), reason })?
            }
            TokenSource::File(path) => {
                let path = path.replace("{user}", user.as_str());
                let read = tokio::task::spawn_blocking(move || read(&path)).await.map_err(io::Error::other);
                let read = read.flatten();
                read.map_err(|cause| NoToken::File { user: user.clone(), reason: cause.to_string() })?
            }
        };
        Token::parse(&text).ok_or_else(|| NoToken::Form(user.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<LocalName, Known>> {
        self.known.lock().expect("invariant: nothing panics while it holds the tokens")
    }
}

async fn run(words: &[String], user: &LocalName) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or("there is none")?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg(user.as_str())
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Its complaints are for the operator: they go where the gateway's own go.
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| cause.to_string())?;
    let stdout = child.stdout.take();
    let running = async {
        let mut text = String::new();
        if let Some(stdout) = stdout {
            stdout.take(TOKEN_BYTES_MAX).read_to_string(&mut text).await.map_err(|cause| cause.to_string())?;
        }
        let status = child.wait().await.map_err(|cause| cause.to_string())?;
        if status.success() { Ok(text) } else { Err(status.to_string()) }
    };
    let late = || format!("no token within {} s", COMMAND_TIMEOUT.as_secs());
    timeout(COMMAND_TIMEOUT, running).await.map_err(|_| late())?
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(std::fs::File::open(path)?, TOKEN_BYTES_MAX), &mut text)?;
    Ok(text)
}

impl Token {
    /// A token alone, or as `scontrol token` prints it.
    pub fn parse(text: &str) -> Option<Token> {
        let text = text.trim();
        let text = text.strip_prefix("SLURM_JWT=").unwrap_or(text);
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
        (!text.is_empty() && text.chars().all(known)).then(|| Token(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A token says itself when it ends. Nothing else of it is read, and nothing is believed.
    fn use_until_ms(&self, now_ms: u64) -> u64 {
        #[derive(Deserialize)]
        struct Claims {
            exp: u64,
        }
        let claims = self.0.split('.').nth(1).and_then(|it| URL_SAFE_NO_PAD.decode(it.trim_end_matches('=')).ok());
        let claims: Option<Claims> = claims.and_then(|it| serde_json::from_slice(&it).ok());
        let Some(claims) = claims else {
            return now_ms + LIFE_DEFAULT_MS;
        };
        let left = claims.exp.saturating_mul(1_000).saturating_sub(now_ms);
        // Of a very short life, half is used.
        now_ms + left.saturating_sub(MARGIN_MS).max(left / 2)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> LocalName {
        LocalName::parse("alice").expect("a name")
    }

    fn jwt(exp_ms: u64) -> String {
        let claims = format!(r#"{{"exp":{},"iat":1,"sun":"alice"}}"#, exp_ms / 1_000);
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_is_used_until_shortly_before_it_ends() {
        let check = |text: &str| Token::parse(text).expect("a token").use_until_ms(1_000_000);
        assert_eq!(check(&jwt(1_600_000)), 1_570_000);
        assert_eq!(check(&jwt(1_020_000)), 1_010_000);
        assert_eq!(check(&jwt(500_000)), 1_000_000, "it has ended");
        assert_eq!(check("opaque"), 1_060_000);
        assert_eq!(Token::parse("SLURM_JWT=a.b.c\n").expect("a token").as_str(), "a.b.c");
        for text in ["", "\n", "a b", "error: no such user", "a\r\nX: y"] {
            assert_eq!(Token::parse(text), None, "{text:?}");
        }
        assert!(!format!("{:?}", Token::parse("secret")).contains("secret"));
    }

    #[tokio::test]
    async fn a_program_is_asked_once_as_long_as_its_token_lives() {
        let folder = tempfile::tempdir().expect("a folder");
        let (calls, token) = (folder.path().join("calls"), jwt(now_ms() + 600_000));
        let script = format!("echo \"$0\" >>{}; echo SLURM_JWT={token}", calls.display());
        let tokens = Tokens::new(TokenSource::Command(vec!["/bin/sh".into(), "-c".into(), script]));
        for _ in 0..3 {
            let given = tokens.of(&user()).await.expect("a token").expect("one is needed");
            assert_eq!(given.as_str(), token);
        }
        assert_eq!(std::fs::read_to_string(&calls).expect("a file"), "alice\n");
        tokens.forget(&user());
        tokens.of(&user()).await.expect("the same, since it is new");
        tokens.lock().get_mut(&user()).expect("it is known").given_ms -= NEW_MS + 1;
        tokens.forget(&user());
        tokens.of(&user()).await.expect("a token");
        assert_eq!(std::fs::read_to_string(&calls).expect("a file"), "alice\nalice\n");
    }

    #[tokio::test]
    async fn what_fails_says_so_without_its_output() {
        for words in [&["/bin/sh", "-c", "echo secret; exit 3"][..], &["/nowhere"], &[]] {
            let words = words.iter().map(|it| (*it).to_owned()).collect();
            let failed = Tokens::new(TokenSource::Command(words)).of(&user()).await.expect_err("no token").to_string();
            assert!(failed.contains("alice") && !failed.contains("secret"), "{failed}");
        }
        let failed = Tokens::new(TokenSource::File("/nowhere/{user}".into())).of(&user()).await;
        assert!(matches!(failed, Err(NoToken::File { .. })));
        assert_eq!(Tokens::new(TokenSource::Socket).of(&user()).await, Ok(None));
    }
}
