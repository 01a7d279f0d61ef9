//! Limits of a face: what one client, and all of them together, may take.

use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Headers of one request.
pub const HEADERS_MAX: usize = 64;
/// Bytes of all headers of one request, names and values.
pub const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// Files and sockets of a gateway: the connections of both faces are a tenth, and there is room to spare. Not simply
/// all that is allowed: a program that closes every possible descriptor would close a thousand million in a container.
const OPEN_FILES_WANTED: u64 = 65_536;
/// What is kept for all that is no connection of a client: ~30 of the log, the store and the runtimes, four to each of 26
/// other gateways, and one for each task that runs here.
const OWN_FILES: u64 = 192;
/// However few there are, a face has this part of them.
const LEAST_SHARE: u64 = 8;
/// No address has more of anything than one in so many.
const ADDRESS_SHARE: usize = 4;

/// What a face allows. Counts are for the whole face, times for one connection or request.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections, handshakes included. ~31 KiB each when idle, with the buffers of TLS and HTTP/2: 4,096 take 124 MiB.
    /// Newer ones take the place of unused ones.
    pub connections: usize,
    /// Connections of one address (one /64 of IPv6), so that one client cannot take them all. Where fewer connections fit
    /// than the face would have, it is a quarter of those at most.
    pub connections_per_address: usize,
    /// Connections that have not finished their handshake. Who never finishes one takes no place of those who do.
    pub handshakes: usize,
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
            // A handshake takes a round trip and 1 ms: 1,024 of them in 100 ms are more than two cores can do.
            handshakes: 1_024,
            // Too tight a number costs more than it saves: most requests take milliseconds.
            requests: 1_024,
            // 1,024 requests x 4 MiB would be 4 GiB.
            body_bytes: 256 * 1_024 * 1_024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            // 4 MiB in a minute: 70 KiB/s.
            body: Duration::from_secs(60),
            // With the next look it is cut within 30 s, also on a busy machine.
            untaken: Duration::from_secs(20),
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
            handshakes: 512,
            requests: 2_048,
            // Pieces of snapshots are 16 MiB at most: 32 at a time.
            body_bytes: 512 * 1_024 * 1_024,
            // What a researcher does not take of a relayed answer is cut with his own connection, and not with the one that the
            // gateway has here.
            untaken: Duration::from_secs(40),
            idle: Duration::from_secs(600),
            streams: 256,
            // 1 MiB per round trip of 50 ms is 20 MiB/s on one stream.
            stream_window_bytes: 1_024 * 1_024,
            connection_window_bytes: 4 * 1_024 * 1_024,
            ..Limits::public()
        }
    }

    /// How many more connections than there are could begin at once: below that, unused ones give way.
    pub(super) fn connections_kept_free(&self) -> usize {
        (self.connections / 32).max(1)
    }

    /// The same with another grace time.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Limits {
        self.grace = grace;
        self
    }

    /// What of this fits into what the process may open: all connections together are a third of that at most, because
    /// there are files and the other face, and fewer where that would not leave enough files.
    #[must_use]
    pub(super) fn that_fit(mut self, open_files: u64) -> Limits {
        let half_of_the_rest = open_files.saturating_sub(OWN_FILES) / 2;
        let fit = (open_files / 3).min(half_of_the_rest.max(open_files / LEAST_SHARE));
        let fit = usize::try_from(fit).unwrap_or(usize::MAX).max(1);
        if fit < self.connections {
            self.connections = fit;
            // Some are always without a request, and can give way.
            self.requests = self.requests.min(fit.div_ceil(2));
        }
        self.connections_per_address = self.connections_per_address.min(share(self.connections));
        // Half of the connections are kept for those that have shown who they are.
        self.handshakes = self.handshakes.min(self.connections.div_ceil(2));
        self
    }

    /// Requests of one address: three quarters. Many who ask for something may come by one proxy, and more of them than callers
    /// are held to their shares at; one who takes no answers is not to have every place.
    pub(super) fn requests_per_address(&self) -> usize {
        (3 * self.requests).div_ceil(4)
    }

    /// Unfinished handshakes of one address.
    pub(super) fn handshakes_per_address(&self) -> usize {
        share(self.handshakes)
    }

    /// How often a connection's clocks are looked at: a quarter of the shortest of them.
    pub(super) fn look_every(&self) -> Duration {
        let shortest = self.untaken.min(self.silent).min(self.idle).min(self.grace);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
    }
}

fn share(of: usize) -> usize {
    of.div_ceil(ADDRESS_SHARE)
}

/// How many files and sockets this process may have open.
pub fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft)
}

/// Raises that as far as it is allowed and of use. A shell's 1,024 are for programs that still use `select`.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = OPEN_FILES_WANTED.min(hard);
    if wanted > soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(wanted.max(soft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_never_has_more_than_its_share() {
        for (open_files, connections, per_address, handshakes) in [
            (65_536, 4_096, 512, 1_024),
            // What a shell gives by default, where nothing more is allowed.
            (1_024, 341, 86, 171),
            (512, 160, 40, 80),
            (256, 32, 8, 16),
            (30, 3, 1, 2),
            (1, 1, 1, 1),
        ] {
            let limits = Limits::public().that_fit(open_files);
            assert_eq!(limits.connections, connections, "{open_files}");
            assert_eq!(limits.connections_per_address, per_address, "{open_files}");
            assert_eq!(limits.handshakes, handshakes, "{open_files}");
            assert!(limits.requests <= limits.connections.div_ceil(2), "{open_files}: some are without a request");
            assert!(limits.handshakes_per_address() <= limits.connections_per_address, "{open_files}");
        }
    }

    #[test]
    fn open_files_are_raised_as_far_as_allowed() {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!(raise_open_files().expect("raised"), before.max(OPEN_FILES_WANTED.min(hard)));
        assert_eq!(open_files(), before.max(OPEN_FILES_WANTED.min(hard)));
    }
}
