//! Transfers over HTTP and HTTPS: to a host that the factory allows, one request each, or a few if the server is unwell.
//!
//! Redirects are not followed: where a server sends us is not where the operator allowed us to go.
//! Every wait has an end, and a body larger than the attempt's disk is refused while it arrives.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

/// Name, connection and handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of a body, and until the answer begins: object stores assemble large uploads first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// An upload slower than this is given up: 64 KiB/s.
const UPLOAD_BYTES_PER_S_MIN: u64 = 64 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;
/// Between the tries of one transfer: a server that restarts is back after these.
const RETRY_PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadTransfer {
    #[error("the address does not parse")]
    Address,
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no {0} in time")]
    Late(&'static str),
    #[error("the connection failed: {0}")]
    Connection(#[from] hyper::Error),
    #[error("the server answers {0}")]
    Status(StatusCode),
    #[error("the server answers {0}, and redirects are not followed")]
    Redirect(StatusCode),
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("{0}")]
    File(#[from] io::Error),
}

/// What is needed to reach the allowed hosts.
#[derive(Clone, Default)]
pub(super) struct Remote {
    tls: Option<Arc<ClientConfig>>,
}

impl Remote {
    /// With roots from a PEM text for `https`.
    pub fn new(ca_pem: Option<&str>) -> Result<Remote, String> {
        let Some(ca_pem) = ca_pem else {
            return Ok(Remote::default());
        };
        let shared = certs::public_client_config(ca_pem).map_err(|bad| bad.to_string())?;
        let mut config = (*shared).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Remote { tls: Some(Arc::new(config)) })
    }

    /// Writes the body of a GET into a file, in place of what is in it; at most `limit` bytes. Returns how many.
    pub async fn fetch(&self, url: &str, into: &mut File, limit: u64) -> Result<u64, BadTransfer> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            into.set_len(0)?;
            into.rewind()?;
            let done = self.fetch_once(url, into, limit).await;
            if !pause_before_retry(&done, &mut pauses).await {
                return done;
            }
        }
    }

    /// Sends a file's first `size` bytes as the body of a PUT.
    pub async fn put(&self, url: &str, from: &File, size: u64) -> Result<(), BadTransfer> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let done = self.put_once(url, from.try_clone()?, size).await;
            if !pause_before_retry(&done, &mut pauses).await {
                return done;
            }
        }
    }

    async fn fetch_once(&self, url: &str, into: &mut File, limit: u64) -> Result<u64, BadTransfer> {
        let request = request(Method::GET, url)?.body(empty())?;
        let answer = self.send(url, request, IDLE_TIMEOUT).await?;
        accept(answer.status(), &[StatusCode::OK])?;
        let mut body = answer.into_body();
        if body.size_hint().lower() > limit {
            return Err(BadTransfer::TooLarge { limit });
        }
        let mut written = 0;
        while let Some(frame) = timeout(IDLE_TIMEOUT, body.frame()).await.map_err(|_| BadTransfer::Late("data"))? {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            written += data.len() as u64;
            if written > limit {
                return Err(BadTransfer::TooLarge { limit });
            }
            into.write_all(&data)?;
        }
        Ok(written)
    }

    async fn put_once(&self, url: &str, from: File, size: u64) -> Result<(), BadTransfer> {
        let request = request(Method::PUT, url)?
            .header(header::CONTENT_LENGTH, size)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(file_body(from, size))?;
        let slowest = Duration::from_secs(size / UPLOAD_BYTES_PER_S_MIN);
        let answer = self.send(url, request, IDLE_TIMEOUT + slowest).await?;
        let written = [StatusCode::OK, StatusCode::CREATED, StatusCode::NO_CONTENT];
        accept(answer.status(), &written)
    }

    async fn send(
        &self,
        url: &str,
        request: Request<BoxBody<Bytes, io::Error>>,
        patience: Duration,
    ) -> Result<http::Response<Incoming>, BadTransfer> {
        let stream =
            timeout(CONNECT_TIMEOUT, self.connect(url)).await.map_err(|_| BadTransfer::Late("connection"))??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the sender and the body are dropped.
        tokio::spawn(connection);
        timeout(patience, sender.send_request(request))
            .await
            .map_err(|_| BadTransfer::Late("answer"))?
            .map_err(BadTransfer::from)
    }

    async fn connect(&self, url: &str) -> Result<Box<dyn Stream>, BadTransfer> {
        let uri: Uri = url.parse().map_err(|_| BadTransfer::Address)?;
        let host = uri.host().ok_or(BadTransfer::Address)?;
        // An IPv6 address wears brackets in a URL and nowhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(BadTransfer::Connect)?;
        if !secure {
            return Ok(Box::new(stream));
        }
        let config = self.tls.clone().ok_or(BadTransfer::Address)?;
        let name = ServerName::try_from(host).map_err(|_| BadTransfer::Address)?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(BadTransfer::Connect)?;
        Ok(Box::new(stream))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A request without its body: a target without fragment, and the host as the URL says.
fn request(method: Method, url: &str) -> Result<http::request::Builder, BadTransfer> {
    let uri: Uri = url.parse().map_err(|_| BadTransfer::Address)?;
    let host = uri.authority().ok_or(BadTransfer::Address)?.to_string();
    let target = uri.path_and_query().map_or("/", |it| it.as_str());
    Ok(Request::builder().method(method).uri(target).header(header::HOST, host).header(header::USER_AGENT, "entente"))
}

fn accept(status: StatusCode, good: &[StatusCode]) -> Result<(), BadTransfer> {
    if good.contains(&status) {
        Ok(())
    } else if status.is_redirection() {
        Err(BadTransfer::Redirect(status))
    } else {
        Err(BadTransfer::Status(status))
    }
}

fn empty() -> BoxBody<Bytes, io::Error> {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

/// The file in pieces. One that has shrunk meanwhile is an error, not a short body.
///
/// Read by position: a request that was given up may still be reading the same file.
fn file_body(file: File, size: u64) -> BoxBody<Bytes, io::Error> {
    let pieces = futures_util::stream::try_unfold((file, 0), move |(file, at)| async move {
        if at == size {
            return Ok(None);
        }
        let mut piece = vec![0; CHUNK_BYTES.min((size - at).try_into().unwrap_or(usize::MAX))];
        file.read_exact_at(&mut piece, at)?;
        let next = at + piece.len() as u64;
        Ok(Some((Frame::data(Bytes::from(piece)), (file, next))))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(pieces)))
}

impl BadTransfer {
    /// Whether it may go well if it is tried again: the server or the way to it was unwell, not the request.
    fn may_pass(&self) -> bool {
        match self {
            BadTransfer::Connect(cause) => cause.kind() != io::ErrorKind::InvalidData,
            BadTransfer::Late(_) => true,
            // The file itself could not be read.
            BadTransfer::Connection(cause) => !cause.is_user(),
            BadTransfer::Status(status) => {
                let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                status.is_server_error() || passing.contains(status)
            }
            BadTransfer::Address | BadTransfer::Redirect(_) | BadTransfer::TooLarge { .. } | BadTransfer::File(_) => {
                false
            }
        }
    }
}

/// Waits if there is reason to try again.
async fn pause_before_retry<T>(done: &Result<T, BadTransfer>, pauses: &mut impl Iterator<Item = Duration>) -> bool {
    let passing = done.as_ref().is_err_and(BadTransfer::may_pass);
    match pauses.next().filter(|_| passing) {
        Some(pause) => {
            sleep(pause).await;
            true
        }
        None => false,
    }
}

impl From<http::Error> for BadTransfer {
    fn from(_: http::Error) -> BadTransfer {
        BadTransfer::Address
    }
}
