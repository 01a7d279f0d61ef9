//! Requests to slurmrestd: over TCP, TLS or a unix socket, one connection each.
//!
//! The status of an answer is not looked at, since slurmrestd's lies; whoever asks reads the body.
//! Invariant: whether a request may have been carried out is known from the error: what was not sent was not.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::accounts::LocalName;
use super::token::Token;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// slurmrestd itself gives up on slurmctld after 18 s.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// 80,000 jobs of 3.2 KiB.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Where slurmrestd is.
pub(super) struct Rest {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
}

enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Caller {
    pub user: LocalName,
    /// `None` where the socket says who it is.
    pub token: Option<Token>,
}

/// Why an address is none. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BadAddress {
    #[error("{0:?} is not an address of slurmrestd: http://host:port, https://host:port or unix:/path")]
    Form(String),
    #[error("cannot use {path} as roots for https: {cause}")]
    Roots { path: PathBuf, cause: String },
    #[error("an https address needs ca_file")]
    NoRoots,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub body: Bytes,
    /// Not modified: nothing has changed since the time that was asked for.
    pub is_unchanged: bool,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("slurmrestd cannot be reached: {0}")]
    Unsent(String),
    /// It may have done what it was asked for.
    #[error("slurmrestd did not answer: {0}")]
    Lost(String),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Rest {
    pub fn new(url: &str, ca_file: Option<&PathBuf>) -> Result<Rest, BadAddress> {
        let form = || BadAddress::Form(url.to_owned());
        if let Some(path) = url.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            let address = path.is_absolute().then_some(Address::Unix(path)).ok_or_else(form)?;
            return Ok(Rest { address, tls: None });
        }
        let uri: Uri = url.parse().map_err(|_| form())?;
        let (scheme, host, port) = (uri.scheme_str(), uri.host(), uri.port_u16());
        let plain = uri.path().trim_matches('/').is_empty() && uri.query().is_none();
        let (Some(host), Some(port), true) = (host, port, plain) else {
            return Err(form());
        };
        let tls = match scheme {
            Some("http") => None,
            Some("https") => Some(roots(ca_file.ok_or(BadAddress::NoRoots)?)?),
            _ => return Err(form()),
        };
        // An IPv6 address wears brackets in a URL and nowhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Rest { address: Address::Tcp { host, port }, tls })
    }

    pub async fn get(&self, caller: &Caller, path: &str) -> Result<Answer, NoAnswer> {
        self.call(caller, Method::GET, path, Bytes::new()).await
    }

    pub async fn post(&self, caller: &Caller, path: &str, body: Vec<u8>) -> Result<Answer, NoAnswer> {
        self.call(caller, Method::POST, path, body.into()).await
    }

    pub async fn delete(&self, caller: &Caller, path: &str) -> Result<Answer, NoAnswer> {
        self.call(caller, Method::DELETE, path, Bytes::new()).await
    }

    async fn call(&self, caller: &Caller, method: Method, path: &str, body: Bytes) -> Result<Answer, NoAnswer> {
        let request = self.request(caller, method, path, body).map_err(|cause| NoAnswer::Unsent(cause.to_string()))?;
        let connecting = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let stream = connecting
            .map_err(|_| NoAnswer::Unsent(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|cause| NoAnswer::Unsent(cause.to_string()))?;
        let unsent = |cause: hyper::Error| NoAnswer::Unsent(cause.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unsent)?;
        // Ends by itself when the sender and the body are dropped.
        tokio::spawn(connection);
        let answering = async {
            let answer = sender.send_request(request).await.map_err(|cause| NoAnswer::Lost(cause.to_string()))?;
            let is_unchanged = answer.status() == StatusCode::NOT_MODIFIED;
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            let body = body.map_err(|cause| NoAnswer::Lost(cause.to_string()))?.to_bytes();
            Ok(Answer { body, is_unchanged })
        };
        let late = || NoAnswer::Lost(format!("nothing within {} s", ANSWER_TIMEOUT.as_secs()));
        timeout(ANSWER_TIMEOUT, answering).await.map_err(|_| late())?
    }

    fn request(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let host = match &self.address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "entente")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &caller.token {
            let mut token = HeaderValue::from_str(token.as_str())?;
            token.set_sensitive(true);
            request = request.header("x-slurm-user-name", caller.user.as_str()).header("x-slurm-user-token", token);
        }
        request.body(Full::new(body))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match &self.address {
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Address::Tcp { host, port } => (host, *port),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
    }
}

fn roots(path: &PathBuf) -> Result<Arc<ClientConfig>, BadAddress> {
    let bad = |cause: String| BadAddress::Roots { path: path.clone(), cause };
    let pem = std::fs::read_to_string(path).map_err(|cause| bad(cause.to_string()))?;
    let shared = certs::public_client_config(&pem).map_err(|cause| bad(cause.to_string()))?;
    let mut config = (*shared).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn addresses_are_tcp_tls_or_a_socket() {
        for url in
            ["http://127.0.0.1:6820", "http://[::1]:6820/", "http://rest.example:80", "unix:/run/s", "unix:///run/s"]
        {
            assert!(Rest::new(url, None).is_ok(), "{url}");
        }
        for url in
            ["127.0.0.1:6820", "http://host", "ftp://host:1", "unix:run/s", "http://host:1/slurm", "https://host:1", ""]
        {
            assert!(Rest::new(url, None).is_err(), "{url}");
        }
    }

    fn caller() -> Caller {
        Caller { user: LocalName::parse("alice").expect("a name"), token: Token::parse("a.b.c\n") }
    }

    /// A server that hears one request and says `answer`, or hangs up.
    async fn check(answer: Option<&'static str>) -> (String, Result<Answer, NoAnswer>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let rest =
            Rest::new(&format!("http://{}", listener.local_addr().expect("an address")), None).expect("a client");
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut heard = vec![0; 4_096];
            let length = stream.read(&mut heard).await.expect("a request");
            if let Some(answer) = answer {
                stream.write_all(answer.as_bytes()).await.expect("a listener");
            }
            String::from_utf8_lossy(&heard[..length]).into_owned()
        };
        let caller = caller();
        tokio::join!(serving, rest.get(&caller, "/slurm/v0.0.38/jobs?update_time=7"))
    }

    #[tokio::test]
    async fn a_request_says_who_asks() {
        let (heard, answer) = check(Some("HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}")).await;
        assert!(heard.starts_with("GET /slurm/v0.0.38/jobs?update_time=7 HTTP/1.1\r\n"), "{heard}");
        assert!(heard.contains("x-slurm-user-name: alice\r\n") && heard.contains("x-slurm-user-token: a.b.c\r\n"));
        assert_eq!(answer.expect("an answer").body, "{}");
        let (_, answer) = check(Some("HTTP/1.1 304 NOT MODIFIED\r\n\r\n")).await;
        assert!(answer.expect("an answer").is_unchanged);
    }

    #[tokio::test]
    async fn what_was_not_sent_is_told_from_what_was_lost() {
        let (_, answer) = check(None).await;
        assert!(matches!(answer, Err(NoAnswer::Lost(_))), "{answer:?}");
        let (_, answer) = check(Some("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}")).await;
        assert!(matches!(answer, Err(NoAnswer::Lost(_))), "{answer:?}");
        let nobody = Rest::new("http://127.0.0.1:1", None).expect("a client");
        let answer = nobody.get(&caller(), "/").await;
        assert!(matches!(answer, Err(NoAnswer::Unsent(_))), "{answer:?}");
    }
}
