//! Founding packs: the rules of the three states that start the federation, as shipped.

use certs::MemberState;

use crate::pack::PackSource;

/// The states that ship with a pack.
pub const STATES: [&str; 3] = ["FR", "DE", "FI"];

/// The shipped pack of a founding state; `None` for every other.
pub fn pack(state: MemberState) -> Option<PackSource> {
    let (title, contact, cedar) = match state.as_str() {
        "FR" => {
            ("France: lending and borrowing of GPUs", "politique@entente.example.fr", include_str!("../packs/fr.cedar"))
        }
        "DE" => {
            ("Germany: lending and borrowing of GPUs", "regeln@entente.example.de", include_str!("../packs/de.cedar"))
        }
        "FI" => {
            ("Finland: lending and borrowing of GPUs", "saannot@entente.example.fi", include_str!("../packs/fi.cedar"))
        }
        _ => return None,
    };
    Some(PackSource { state, title: title.into(), contact: contact.into(), cedar: cedar.into() })
}
