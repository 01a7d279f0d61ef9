//! Who is speaking: identities, keys, signed records, trust, TLS and tokens. All of the cryptography, and no IO.
//!
//! Nothing here reads a clock or a file. [`entropy`] is the one door to the system's randomness.

// The words.
mod digest;
pub mod entropy;
mod keys;
mod state;

// What a state signs.
mod bundle;
mod envelope;

// What the states' bundles make together.
mod token;
mod trust;

// How gateways meet.
mod issue;
mod leaf;
mod peer;
mod revocation;
mod tls;

pub use bundle::{
    Assurance, BadBundle, GatewayKey, IssuerEntry, KEYS_PER_GATEWAY_MAX, Role, SignedBundle, TrustBundle,
    gateway_key_proof,
};
pub use digest::{BadDigest, Digest};
pub use envelope::{BadEnvelope, ENVELOPE_BYTES_MAX, Envelope, Header, Kind};
pub use issue::{CannotIssue, IssuedLeaf, LEAF_LIFE_MAX_S, StateCa};
pub use keys::{BadKey, KeyId, PublicKey, SigningKey, hmac_pseudonym};
pub use leaf::{BadLeaf, LeafIdentity, SharedLeaf};
pub use peer::{BadPeer, peer_of};
pub use revocation::{BadSerial, Certificate, RevocationList, Revoked, Serial};
pub use state::{BadName, FederationId, GatewayId, GatewayName, MemberState};
pub use tls::{BadCa, peer_client_config, peer_server_config, public_client_config, public_server_config};
pub use token::{BadToken, Caller, CannotMint, IssuerSet, TOKEN_BYTES_MAX, TOKEN_LIFE_MAX_S, TokenIssuer};
pub use trust::{BadTrust, SharedTrust, TrustStore};
