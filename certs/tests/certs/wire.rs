//! The wire: TLS handshakes between two connections in memory, and ends that show what they like.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, Error, OtherError, ServerConfig, ServerConnection,
    SignatureScheme,
};

/// A connection's two ends after their handshake.
#[derive(Debug)]
pub struct Met {
    pub client: ClientConnection,
    pub server: ServerConnection,
}

/// Which end broke off, and what it said.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    ByClient(String),
    ByServer(String),
}

/// Moves bytes until neither end has more to say.
pub fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Met, Refused> {
    let mut client = new_client(client);
    let mut server = new_server(server);
    while client.wants_write() || server.wants_write() {
        deliver(&flush(&mut client), &mut server).map_err(|why| Refused::ByServer(said(why)))?;
        deliver(&flush(&mut server), &mut client).map_err(|why| Refused::ByClient(said(why)))?;
    }
    match (client, server) {
        (Connection::Client(client), Connection::Server(server)) => {
            assert!(!client.is_handshaking() && !server.is_handshaking(), "both ends are silent and not done");
            Ok(Met { client, server })
        }
        _ => unreachable!("one client and one server were made"),
    }
}

/// Our own words where the reason is ours, otherwise the library's.
pub fn said(why: Error) -> String {
    match why {
        Error::InvalidCertificate(CertificateError::Other(OtherError(ours))) => ours.to_string(),
        other => other.to_string(),
    }
}

pub fn new_client(config: &Arc<ClientConfig>) -> Connection {
    let nobody = ServerName::try_from("peer.invalid").unwrap();
    Connection::Client(ClientConnection::new(Arc::clone(config), nobody).unwrap())
}

pub fn new_server(config: &Arc<ServerConfig>) -> Connection {
    Connection::Server(ServerConnection::new(Arc::clone(config)).unwrap())
}

/// All that an end has to say.
pub fn flush(from: &mut Connection) -> Vec<u8> {
    let mut bytes = vec![];
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    bytes
}

pub fn deliver(mut bytes: &[u8], to: &mut Connection) -> Result<(), Error> {
    while !bytes.is_empty() {
        to.read_tls(&mut bytes).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// A clock that stands.
#[derive(Debug)]
struct Standing(u64);

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0)))
    }
}

/// The same config with its clock at this time, and changed as the test wants it.
pub fn client_at(now_s: u64, config: Arc<ClientConfig>, change: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&config);
    config.time_provider = Arc::new(Standing(now_s));
    change(&mut config);
    Arc::new(config)
}

pub fn server_at(now_s: u64, config: Arc<ServerConfig>, change: impl FnOnce(&mut ServerConfig)) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(&config);
    config.time_provider = Arc::new(Standing(now_s));
    change(&mut config);
    Arc::new(config)
}

/// Shows a chain whatever it is, or nothing.
#[derive(Clone, Debug)]
pub struct Shows(pub Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}
