//! The CLI's side of the public API: one HTTPS connection to one gateway, kept alive.
//!
//! Everything that the CLI, the demo and the benchmark do goes through here, so they use exactly
//! what any other client can use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A gateway that has not answered by then is reported as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read: a full page of tasks.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where to call and as whom; every command that talks to a gateway has these.
#[derive(Args, Clone, Debug)]
pub struct Connect {
    /// The gateway's public address, https://host:port
    #[arg(long, env = "ENTENTE_URL", global = true)]
    pub url: Option<String>,
    /// PEM file with the certificate authority of the gateway's public face
    #[arg(long, env = "ENTENTE_CA", global = true)]
    pub ca: Option<PathBuf>,
    /// File with the access token
    #[arg(long, env = "ENTENTE_TOKEN_FILE", global = true)]
    pub token_file: Option<PathBuf>,
}

impl Connect {
    /// A client from the flags or the environment.
    pub fn client(&self) -> anyhow::Result<Client> {
        let url = self
            .url
            .as_deref()
            .context("no gateway named: set ENTENTE_URL or --url (`entente up` prints one to copy)")?;
        let ca = self.ca.as_ref().context("no CA file: set ENTENTE_CA or --ca (`entente up` prints one to copy)")?;
        let ca = std::fs::read_to_string(ca).with_context(|| format!("cannot read the CA file {}", ca.display()))?;
        let token = match &self.token_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token file {}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
            None => None,
        };
        Client::new(url, &ca, token.as_deref())
    }
}

/// A caller of one gateway.
pub struct Client {
    authority: String,
    host: String,
    tls: Arc<rustls::ClientConfig>,
    authorization: Option<HeaderValue>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Client {
    /// A client for `https://host:port`; dials with its first call.
    pub fn new(url: &str, ca_pem: &str, token: Option<&str>) -> anyhow::Result<Client> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            bail!("{url}: a gateway is called by https://");
        }
        let authority = uri.authority().with_context(|| format!("{url} names no host"))?;
        let mut tls = certs::public_client_config(ca_pem)
            .map(|config| rustls::ClientConfig::clone(&config))
            .context("the CA file holds no usable certificate")?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let authorization = match token {
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .context("the token holds characters that no token has")?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let port = authority.port_u16().unwrap_or(443);
        Ok(Client {
            authority: format!("{}:{port}", authority.host()),
            host: authority.host().to_owned(),
            tls: Arc::new(tls),
            authorization,
            connection: None,
        })
    }

    /// `GET path`, as JSON; an error answer becomes an error with the problem's own words.
    pub async fn read(&mut self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, None, &[]).await?.json()
    }

    /// `POST path` with a JSON body, as JSON.
    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(body)?;
        self.call(Method::POST, path, Some(body), &[]).await?.json()
    }

    /// One request, one answer, whatever its status.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.connection = None;
                Err(error)
            }
            Err(_) => {
                self.connection = None;
                bail!("https://{} did not answer within 30 s", self.authority)
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let mut connection = match self.connection.take().filter(|it| !it.is_closed()) {
            Some(connection) => connection,
            None => self.dial().await?,
        };
        connection.ready().await?;
        let response = connection
            .send_request(request)
            .await
            .with_context(|| format!("https://{} broke the connection", self.authority))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|cause| anyhow::anyhow!("the answer broke off: {cause}"))?
            .to_bytes();
        self.connection = Some(connection);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn dial(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .with_context(|| format!("no gateway answers at https://{}", self.authority))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())
            .with_context(|| format!("{} is neither a name nor an address", self.host))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .with_context(|| format!("https://{} is not the gateway that this CA file vouches for", self.authority))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Answer {
    /// The body as JSON if the request succeeded; else the problem document as an error.
    pub fn json(&self) -> anyhow::Result<Value> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body).context("the answer is not JSON");
        }
        bail!(refusal(self.status, &self.body))
    }
}

/// A problem document in plain words; its extra members (denials, pools) follow as they are.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Value>(body) else {
        return format!("{status}: {}", String::from_utf8_lossy(body));
    };
    let part = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    format!("{} [{}]\n  {}", part("title"), part("code"), part("detail"))
}
