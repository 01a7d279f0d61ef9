//! Watched IO: a socket that notes when bytes move, and a stream whose HTTP/1 heads or HTTP/2 frames are looked at.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frames::Frames;
use super::framing::Framing;
use super::pulse::Pulse;

/// A socket under TLS. Progress is what the kernel takes, not what a buffer above takes.
#[derive(Debug)]
pub struct WatchedSocket {
    socket: TcpStream,
    pulse: Arc<Pulse>,
}

impl WatchedSocket {
    /// Watches this socket.
    pub fn new(socket: TcpStream, pulse: Arc<Pulse>) -> WatchedSocket {
        WatchedSocket { socket, pulse }
    }

    fn note<T>(&self, progress: &Poll<io::Result<T>>) {
        match progress {
            Poll::Ready(_) => self.pulse.wrote(),
            Poll::Pending => self.pulse.write_blocked(Instant::now()),
        }
    }
}

impl Drop for WatchedSocket {
    /// A cut connection leaves nothing in the kernel for a client that does not read.
    fn drop(&mut self) {
        if self.pulse.was_cut() {
            let _the_socket_may_be_gone = self.socket.set_zero_linger();
        }
    }
}

impl AsyncRead for WatchedSocket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.socket).poll_read(context, buffer);
        if read.is_ready() {
            this.pulse.read(Instant::now());
        }
        read
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.note(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(context, pieces);
        this.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// A decrypted stream. Tells the pulse when a head is ambiguous, and breaks when frames come in a flood.
#[derive(Debug)]
pub struct WatchedStream<S> {
    stream: S,
    watch: Watch,
    pulse: Arc<Pulse>,
}

#[derive(Debug)]
enum Watch {
    Http1(Framing),
    Http2(Frames),
}

impl<S> WatchedStream<S> {
    /// Watches this HTTP/1 stream from its first byte.
    pub fn http1(stream: S, pulse: Arc<Pulse>) -> WatchedStream<S> {
        WatchedStream { stream, watch: Watch::Http1(Framing::default()), pulse }
    }

    /// Watches this HTTP/2 stream from its first byte.
    pub fn http2(stream: S, is_gateway: bool, pulse: Arc<Pulse>) -> WatchedStream<S> {
        let now = Instant::now();
        let frames = if is_gateway { Frames::of_gateway(now) } else { Frames::new(now) };
        WatchedStream { stream, watch: Watch::Http2(frames), pulse }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let new = &buffer.filled()[before..];
        match &mut this.watch {
            Watch::Http1(framing) => {
                if !this.pulse.is_ambiguous() && framing.scan(new).is_err() {
                    this.pulse.found_ambiguous();
                }
            }
            Watch::Http2(frames) => {
                if let Err(flood) = frames.scan(new, Instant::now(), this.pulse.pieces()) {
                    return Poll::Ready(Err(io::Error::other(flood)));
                }
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
