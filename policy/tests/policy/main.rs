//! What packs decide, what no pack may do, and what hostile packs meet.

#![allow(clippy::unwrap_used)]

mod asking;
mod caching;
mod founding;
mod hostile;
mod overrun;
mod random;
