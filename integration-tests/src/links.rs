//! Links between gateways that can be made bad while they are in use: slow, jittery, narrow, cut in one direction or in
//! both, or broken off.
//!
//! A [`Link`] is a TCP proxy with a thread of its own, so that a test that blocks holds nothing up. What a cut holds
//! back arrives when it is healed, as TCP repeats what was lost. Invariant: bytes are never changed, reordered or
//! invented.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Bytes that travel together: a link that is narrow sends at least one such piece.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces under way in one direction of one connection; 256 x 16 KiB = 4 MiB.
const PIECES_MAX: usize = 256;

/// How a link is now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// How long every piece takes at least, each way.
    pub delay: Duration,
    /// How much longer it may take.
    pub jitter: Duration,
    /// Bytes per second and connection, each way; `None`: as many as there are.
    pub bytes_per_s: Option<u32>,
    /// Nothing arrives at the side that was dialled; the connection stays.
    pub forth_is_cut: bool,
    /// Nothing arrives at the side that dialled; the connection stays.
    pub back_is_cut: bool,
}

impl Weather {
    /// Nothing arrives anywhere, and no connection is closed.
    pub fn black_hole() -> Weather {
        Weather { forth_is_cut: true, back_is_cut: true, ..Weather::default() }
    }
}

/// A port of 127.0.0.1 that leads to another address.
pub struct Link {
    port: u16,
    weather: watch::Sender<Weather>,
    resets: watch::Sender<u64>,
    /// Ends with the link, and every connection over it.
    threads: Option<Runtime>,
}

impl Link {
    /// A good link to `host:port`.
    pub fn to(target: &str) -> Link {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket of our own");
        let port = listener.local_addr().expect("a bound socket").port();
        let (weather, resets) = (watch::Sender::new(Weather::default()), watch::Sender::new(0));
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let threads = threads.expect("a thread");
        let (target, now, broken) = (Arc::<str>::from(target), weather.subscribe(), resets.subscribe());
        threads.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, Arc::clone(&target), now.clone(), broken.clone()));
            }
        });
        Link { port, weather, resets, threads: Some(threads) }
    }

    /// Where it is dialled.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on it is like this, also for what is open.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Breaks every open connection off with a reset.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

async fn carry(near: TcpStream, target: Arc<str>, weather: watch::Receiver<Weather>, mut resets: watch::Receiver<u64>) {
    resets.mark_unchanged();
    let Ok(far) = TcpStream::connect(&*target).await else {
        let _reset = near.set_zero_linger();
        return;
    };
    for end in [&near, &far] {
        // Both may be closed already.
        let (_, _) = (end.set_nodelay(true), end.set_zero_linger());
    }
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let both = async {
        tokio::join!(
            pump(from_near, to_far, weather.clone(), |it| it.forth_is_cut),
            pump(from_far, to_near, weather, |it| it.back_is_cut),
        )
    };
    tokio::select! {
        _ended = both => {}
        _reset = resets.changed() => {}
    }
}

/// One direction, until its end has been passed on.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    is_cut: fn(&Weather) -> bool,
) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let seen = weather.clone();
    let reading = async move {
        let mut noise = from.peer_addr().map_or(1, |it| u64::from(it.port()) + 1);
        let mut last = Instant::now();
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(1..) = from.read(&mut piece).await.inspect(|&bytes| piece.truncate(bytes)) {
            let now = *seen.borrow();
            last = last.max(Instant::now() + now.delay + now.jitter.mul_f64(fraction(&mut noise)));
            let piece = std::mem::replace(&mut piece, vec![0; PIECE_BYTES]);
            if under_way.send((last, piece)).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = arriving.recv().await {
            sleep_until(due).await;
            let Ok(now) = weather.wait_for(|it| !is_cut(it)).await.map(|it| *it) else {
                break;
            };
            if let Some(bytes_per_s) = now.bytes_per_s {
                let takes = Duration::from_secs_f64(piece.len() as f64 / f64::from(bytes_per_s));
                tokio::time::sleep(takes).await;
            }
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _closed_already = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// 0 to 1, the same ones for the same connection (Numerical Recipes' generator).
fn fraction(noise: &mut u64) -> f64 {
    *noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*noise >> 33) as f64 / f64::from(u32::MAX >> 1)
}
