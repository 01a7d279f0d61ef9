//! Limits of a face: what one client, and all of them together, may take.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

/// Headers of one request.
pub const HEADERS_MAX: usize = 64;
/// Bytes of all headers of one request, names and values.
pub const HEAD_BYTES_MAX: usize = 16 * 1_024;

/// What a face allows. Counts are for the whole face, times for one connection or request.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections, handshakes included. ~100 KiB each with TLS buffers: 4,096 take 0.4 GiB.
    pub connections: usize,
    /// Connections of one address (one /64 of IPv6), so that one client cannot take them all.
    pub connections_per_address: usize,
    /// Requests that are being answered, until the last byte of the answer is taken.
    pub requests: usize,
    /// Bytes of request bodies held for those requests, in all.
    pub body_bytes: usize,
    /// From the first byte to a finished TLS handshake.
    pub handshake: Duration,
    /// For the head of an HTTP/1 request, and for how long a connection may wait for one.
    pub head: Duration,
    /// For a whole request body.
    pub body: Duration,
    /// How long a client may leave an answer untaken.
    pub untaken: Duration,
    /// How long an HTTP/2 connection may be silent; live ones answer pings.
    pub silent: Duration,
    /// How long a connection without requests is kept.
    pub idle: Duration,
    /// How long requests in flight may take to end when the face closes.
    pub grace: Duration,
    /// Between HTTP/2 pings on a silent connection. Two of them fit into `silent`.
    pub ping_every: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Bytes that a client may send on one stream before it is read.
    pub stream_window_bytes: u32,
    /// Bytes that a client may send on one connection before they are read.
    pub connection_window_bytes: u32,
}

impl Limits {
    /// For researchers and everybody else.
    pub fn public() -> Limits {
        Limits {
            connections: 4_096,
            connections_per_address: 512,
            // Too tight a number costs more than it saves: most requests take milliseconds.
            requests: 1_024,
            // 1,024 requests x 4 MiB would be 4 GiB.
            body_bytes: 256 * 1_024 * 1_024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            // 4 MiB in a minute: 70 KiB/s.
            body: Duration::from_secs(60),
            untaken: Duration::from_secs(30),
            silent: Duration::from_secs(45),
            idle: Duration::from_secs(120),
            grace: Duration::from_secs(10),
            ping_every: Duration::from_secs(15),
            streams: 100,
            stream_window_bytes: 64 * 1_024,
            connection_window_bytes: 1_024 * 1_024,
        }
    }

    /// For other gateways: fewer of them, larger messages, connections that are kept.
    pub fn peer() -> Limits {
        Limits {
            // 512 gateways, each with a few lanes; a stranger gets no further than the handshake.
            connections: 2_048,
            connections_per_address: 256,
            requests: 2_048,
            // Pieces of snapshots are 16 MiB at most: 32 at a time.
            body_bytes: 512 * 1_024 * 1_024,
            idle: Duration::from_secs(600),
            streams: 256,
            // 1 MiB per round trip of 50 ms is 20 MiB/s on one stream.
            stream_window_bytes: 1_024 * 1_024,
            connection_window_bytes: 4 * 1_024 * 1_024,
            ..Limits::public()
        }
    }

    /// The same with another grace time.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Limits {
        self.grace = grace;
        self
    }

    /// Connections that leave room for files and the other face: at most a third of what this
    /// process may open.
    pub(super) fn connections_that_fit(&self) -> usize {
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
        let third = usize::try_from(open_files / 3).unwrap_or(usize::MAX);
        self.connections.min(third.max(1))
    }

    /// How often a connection's clocks are looked at: a quarter of the shortest of them.
    pub(super) fn look_every(&self) -> Duration {
        let shortest = self.untaken.min(self.silent).min(self.idle).min(self.grace);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
    }
}
