//! What anybody says to a listener, before a library for HTTP has read it.

use gateway::listener::fuzzing;

/// HTTP/1: what the scan of heads and the library behind it make of the same bytes.
pub fn framing(bytes: &[u8]) {
    fuzzing::framing(bytes);
}

/// HTTP/2: how many frames pass that ask for nothing.
pub fn frames(bytes: &[u8]) {
    fuzzing::frames(bytes);
}
