//! Trust bundles: what a state says about itself, signed by its offline root.
//!
//! Invariants: a bundle that was opened is signed by the root that it names; a successor is also signed by the root before
//! it, so a root changes only with the consent of both; every gateway key in it proved that its owner holds it.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::digest::Digest;
use crate::keys::{PublicKey, SigningKey};
use crate::state::{FederationId, GatewayName, MemberState};

/// A state with 8 gateways and 4 issuers of 10 keys needs about 40 KiB.
const BUNDLE_BYTES_MAX: usize = 256 * 1024;
/// Old and new CA while one replaces the other, and room for a third.
const CA_CERTS_MAX: usize = 4;
/// One per CA.
const CRLS_MAX: usize = 4;
const GATEWAYS_MAX: usize = 16;
/// Signing keys of one gateway: an old one and the one that replaces it.
pub const KEYS_PER_GATEWAY_MAX: usize = 2;
const ISSUERS_MAX: usize = 16;
/// In an issuer's entry.
const ENTITLEMENTS_MAX: usize = 64;
const CLEARANCES_MAX: usize = 32;
/// All states of Europe, and some.
const RESIDENCIES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 256;

const DOMAIN: &[u8] = b"entente bundle v1\0";
const PROOF_DOMAIN: &[u8] = b"entente gateway key v1\0";

/// What a state says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Where it counts.
    pub federation: FederationId,
    /// Who speaks.
    pub state: MemberState,
    /// 1, then one more each time.
    pub sequence: u64,
    /// Digest of the bundle before; none for the first.
    pub previous: Option<Digest>,
    /// Signs bundles and the genesis; kept offline.
    pub root_key: PublicKey,
    /// The state's certificate authorities, DER.
    pub ca_certs_der: Vec<Vec<u8>>,
    /// The signing keys of its gateways. A gateway has two while one replaces the other.
    pub gateways: Vec<GatewayKey>,
    /// Its identity providers.
    pub issuers: Vec<IssuerEntry>,
    /// Certificates that no longer count, DER.
    pub crls_der: Vec<Vec<u8>>,
}

/// A gateway's signing key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayKey {
    /// Whose.
    pub name: GatewayName,
    /// The key.
    pub key: PublicKey,
    /// Made with the private part by [`gateway_key_proof`].
    pub proof: Vec<u8>,
}

/// An identity provider, and what its word is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerEntry {
    /// Exactly as in `iss`.
    pub issuer: String,
    /// Its key set, RFC 7517.
    pub jwks_json: String,
    /// Which entitlement gives which role.
    pub entitlements: Vec<(String, Role)>,
    /// It may state no higher assurance.
    pub assurance_max: Assurance,
    /// It may state no other clearances. They are those of its own state, by their bare names.
    pub clearances: Vec<String>,
    /// It may attest that people live in these states, and in its own.
    #[serde(default)]
    pub residencies: Vec<MemberState>,
}

/// What a caller may do at the faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Submits tasks.
    Researcher,
    /// Runs factories.
    Operator,
    /// Looks at the federation.
    Agency,
}

/// How well a person is known. Source: (EU) 2015/1502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// Nothing more than an account.
    Low = 0,
    /// Identified.
    Substantial = 1,
    /// Identified in person or by an electronic identity of that level.
    High = 2,
}

/// A bundle with its signatures. In JSON an object of base64 texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    body: Blob,
    /// By the root that the body names.
    signature: Blob,
    /// By the root before, when the body names another.
    #[serde(default)]
    old_root_signature: Option<Blob>,
}

/// Why a bundle is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// Not a bundle at all.
    #[error("the bundle cannot be read")]
    Unreadable,
    /// A list or text above its limit.
    #[error("the bundle has too many or too long {0}")]
    TooLarge(&'static str),
    /// Not signed by the root that it names.
    #[error("the bundle is not signed by the root key that it names")]
    Signature,
    /// The root changed without the word of the old one.
    #[error("the root key changed and the old one has not signed that")]
    OldRoot,
    /// A first bundle has sequence 1 and nothing before it.
    #[error("a first bundle has sequence 1 and no bundle before it")]
    NotFirst,
    /// Not the next one after what is known.
    #[error(
        "the bundle does not continue the one before: its sequence is {found}, expected {expected} with its digest"
    )]
    NotNext {
        /// What it says.
        found: u64,
        /// What would be next.
        expected: u64,
    },
    /// Another state or federation than before.
    #[error("the bundle speaks for another state or federation than the one before")]
    AnotherState,
    /// A key whose owner has not shown that he holds it.
    #[error("gateway {0} has not proved that it holds its key")]
    Unproved(GatewayName),
    /// Two gateways share a key.
    #[error("gateway {0} shares its key with another")]
    SharedKey(GatewayName),
    /// More keys than a rotation needs.
    #[error("gateway {0} has more than {KEYS_PER_GATEWAY_MAX} keys: an old and a new one")]
    TooManyKeys(GatewayName),
    /// A gateway that could sign bundles.
    #[error("gateway {0} has the state's root key, which belongs offline")]
    RootKey(GatewayName),
    /// What is known is newer.
    #[error("the bundle has sequence {found}, but {known} is known already")]
    Older {
        /// What it says.
        found: u64,
        /// What is known.
        known: u64,
    },
    /// Two bundles with one sequence: the state's root signed both.
    #[error("the bundle is another than the known one of the same sequence {0}")]
    Fork(u64),
}

/// A gateway's statement, made with its own key, that the key is its own there.
pub fn gateway_key_proof(
    federation: &FederationId,
    state: MemberState,
    name: &GatewayName,
    key: &SigningKey,
) -> Vec<u8> {
    key.sign(&proof_message(federation, state, name, &key.public())).to_vec()
}

fn proof_message(federation: &FederationId, state: MemberState, name: &GatewayName, key: &PublicKey) -> Vec<u8> {
    postcard::to_extend(&(federation, state, name, key), PROOF_DOMAIN.to_vec())
        .expect("invariant: names in memory always serialise")
}

impl TrustBundle {
    /// Signs with the root that the bundle names.
    pub fn sign(&self, root: &SigningKey) -> SignedBundle {
        let body = self.to_bytes();
        let signature = root.sign(&signed_message(&body));
        SignedBundle { body: Blob(body), signature: Blob(signature.to_vec()), old_root_signature: None }
    }

    /// Names this bundle; its successor says it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("invariant: a bundle in memory always serialises")
    }

    fn check(&self) -> Result<(), BadBundle> {
        let short = |text: &String| text.len() <= TEXT_BYTES_MAX;
        let issuer_is_sound = |it: &IssuerEntry| {
            short(&it.issuer)
                && it.entitlements.len() <= ENTITLEMENTS_MAX
                && it.entitlements.iter().all(|(urn, _)| short(urn))
                && it.clearances.len() <= CLEARANCES_MAX
                && it.clearances.iter().all(short)
                && it.residencies.len() <= RESIDENCIES_MAX
        };
        let names: BTreeSet<&GatewayName> = self.gateways.iter().map(|gateway| &gateway.name).collect();
        for (what, sound) in [
            ("CA certificates", self.ca_certs_der.len() <= CA_CERTS_MAX),
            ("revocation lists", self.crls_der.len() <= CRLS_MAX),
            ("gateways", self.gateways.len() <= GATEWAYS_MAX * KEYS_PER_GATEWAY_MAX && names.len() <= GATEWAYS_MAX),
            ("issuers", self.issuers.len() <= ISSUERS_MAX && self.issuers.iter().all(issuer_is_sound)),
        ] {
            if !sound {
                return Err(BadBundle::TooLarge(what));
            }
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            let message = proof_message(&self.federation, self.state, &gateway.name, &gateway.key);
            if !gateway.key.verify(&message, &gateway.proof) {
                return Err(BadBundle::Unproved(gateway.name.clone()));
            }
            if gateway.key == self.root_key {
                return Err(BadBundle::RootKey(gateway.name.clone()));
            }
            let others = &self.gateways[..index];
            if others.iter().any(|other| other.key == gateway.key) {
                return Err(BadBundle::SharedKey(gateway.name.clone()));
            }
            if others.iter().filter(|other| other.name == gateway.name).count() >= KEYS_PER_GATEWAY_MAX {
                return Err(BadBundle::TooManyKeys(gateway.name.clone()));
            }
        }
        Ok(())
    }
}

impl SignedBundle {
    /// Adds the old root's consent to a new one.
    pub fn with_old_root(mut self, old_root: &SigningKey) -> SignedBundle {
        self.old_root_signature = Some(Blob(old_root.sign(&signed_message(&self.body.0)).to_vec()));
        self
    }

    /// The bundle, if it is a state's first and signed by the root that it names. Whether that root is the state's is for
    /// people to agree on; they do so by signing the genesis.
    pub fn verify_first(&self) -> Result<TrustBundle, BadBundle> {
        let bundle = self.open()?;
        if bundle.sequence == 1 && bundle.previous.is_none() { Ok(bundle) } else { Err(BadBundle::NotFirst) }
    }

    /// The bundle, if it is the one after `before`.
    pub fn verify_successor(&self, before: &TrustBundle) -> Result<TrustBundle, BadBundle> {
        let bundle = self.open()?;
        if bundle.state != before.state || bundle.federation != before.federation {
            return Err(BadBundle::AnotherState);
        }
        let expected = before.sequence + 1;
        if bundle.sequence != expected || bundle.previous != Some(before.digest()) {
            return Err(BadBundle::NotNext { found: bundle.sequence, expected });
        }
        if bundle.root_key != before.root_key {
            let consent = self.old_root_signature.as_ref().ok_or(BadBundle::OldRoot)?;
            if !before.root_key.verify(&signed_message(&self.body.0), &consent.0) {
                return Err(BadBundle::OldRoot);
            }
        }
        Ok(bundle)
    }

    /// The bundle, if this root signed it, or consented to the one that did.
    pub fn verify_signed_by(&self, root: &PublicKey) -> Result<TrustBundle, BadBundle> {
        let bundle = self.open()?;
        let consent = self.old_root_signature.as_ref();
        let consents = || consent.is_some_and(|it| root.verify(&signed_message(&self.body.0), &it.0));
        if bundle.root_key == *root || consents() { Ok(bundle) } else { Err(BadBundle::OldRoot) }
    }

    /// The bundle, if it may stand where `known` stood, however many came between: of the same state and federation,
    /// signed as [`SignedBundle::verify_signed_by`] wants it by the root that is known, and not older than what is known.
    /// Whoever takes over another's records asks this, so that no old bundle and none beside comes in with them.
    pub fn verify_no_older_than(&self, known: &TrustBundle) -> Result<TrustBundle, BadBundle> {
        let bundle = self.verify_signed_by(&known.root_key)?;
        if bundle.state != known.state || bundle.federation != known.federation {
            return Err(BadBundle::AnotherState);
        }
        if bundle.sequence < known.sequence {
            return Err(BadBundle::Older { found: bundle.sequence, known: known.sequence });
        }
        let digest = known.digest();
        if bundle.sequence == known.sequence && bundle.digest() != digest {
            return Err(BadBundle::Fork(known.sequence));
        }
        if bundle.sequence == known.sequence + 1 && bundle.previous != Some(digest) {
            return Err(BadBundle::NotNext { found: bundle.sequence, expected: bundle.sequence });
        }
        Ok(bundle)
    }

    /// The bundle without asking who signed it: for showing, and for continuing one's own.
    pub fn open_unchecked(&self) -> Result<TrustBundle, BadBundle> {
        if self.body.0.len() > BUNDLE_BYTES_MAX {
            return Err(BadBundle::TooLarge("bytes"));
        }
        let bundle: TrustBundle = postcard::from_bytes(&self.body.0).map_err(|_| BadBundle::Unreadable)?;
        // One meaning, one spelling: otherwise two digests would name the same bundle.
        if bundle.to_bytes() == self.body.0 { Ok(bundle) } else { Err(BadBundle::Unreadable) }
    }

    /// Names this bundle; its successor says it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.body.0)
    }

    fn open(&self) -> Result<TrustBundle, BadBundle> {
        let bundle = self.open_unchecked()?;
        if !bundle.root_key.verify(&signed_message(&self.body.0), &self.signature.0) {
            return Err(BadBundle::Signature);
        }
        bundle.check()?;
        Ok(bundle)
    }
}

fn signed_message(body: &[u8]) -> Vec<u8> {
    [DOMAIN, body].concat()
}

/// Bytes; base64 in formats for people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.serialize_str(&STANDARD.encode(&self.0)) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Blob, D::Error> {
        if from.is_human_readable() {
            STANDARD.decode(String::deserialize(from)?).map(Blob).map_err(de::Error::custom)
        } else {
            Vec::deserialize(from).map(Blob)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(seed: u8) -> SigningKey {
        SigningKey::from_seed([seed; 32])
    }

    fn bundle(sequence: u64, previous: Option<Digest>, root: &SigningKey) -> TrustBundle {
        let federation = FederationId::parse("entente.example").unwrap();
        let (state, name) = (MemberState::parse("FR").unwrap(), GatewayName::parse("fr-1").unwrap());
        let key = SigningKey::from_seed([9; 32]);
        let proof = gateway_key_proof(&federation, state, &name, &key);
        TrustBundle {
            federation,
            state,
            sequence,
            previous,
            root_key: root.public(),
            ca_certs_der: vec![],
            gateways: vec![GatewayKey { name, key: key.public(), proof }],
            issuers: vec![],
            crls_der: vec![],
        }
    }

    #[test]
    fn bundles_continue_each_other() {
        let first = bundle(1, None, &root(1));
        let signed = first.sign(&root(1));
        assert_eq!(signed.verify_first(), Ok(first.clone()));
        assert_eq!(signed.digest(), first.digest());
        let second = bundle(2, Some(first.digest()), &root(1));
        assert_eq!(second.sign(&root(1)).verify_successor(&first), Ok(second.clone()));
        assert_eq!(second.sign(&root(1)).verify_first(), Err(BadBundle::NotFirst));
        assert_eq!(
            signed.verify_successor(&second),
            Err(BadBundle::NotNext { found: 1, expected: 3 }),
            "threat 4: an old bundle does not come back"
        );
        let skipping = bundle(3, Some(first.digest()), &root(1)).sign(&root(1));
        assert_eq!(skipping.verify_successor(&first), Err(BadBundle::NotNext { found: 3, expected: 2 }));
        let elsewhere = bundle(2, Some(Digest::of(b"?")), &root(1)).sign(&root(1));
        assert_eq!(elsewhere.verify_successor(&first), Err(BadBundle::NotNext { found: 2, expected: 2 }));
    }

    #[test]
    fn a_root_changes_only_with_the_consent_of_both() {
        let first = bundle(1, None, &root(1));
        let next = bundle(2, Some(first.digest()), &root(2));
        assert_eq!(next.sign(&root(2)).verify_successor(&first), Err(BadBundle::OldRoot));
        assert_eq!(next.sign(&root(2)).with_old_root(&root(3)).verify_successor(&first), Err(BadBundle::OldRoot));
        assert_eq!(next.sign(&root(1)).with_old_root(&root(1)).verify_successor(&first), Err(BadBundle::Signature));
        assert_eq!(next.sign(&root(2)).with_old_root(&root(1)).verify_successor(&first), Ok(next));
    }

    #[test]
    fn a_key_without_proof_is_refused() {
        let mut stolen = bundle(1, None, &root(1));
        stolen.gateways[0].name = GatewayName::parse("fr-2").unwrap();
        let name = stolen.gateways[0].name.clone();
        assert_eq!(stolen.sign(&root(1)).verify_first(), Err(BadBundle::Unproved(name)));
        let mut twice = bundle(1, None, &root(1));
        twice.gateways.push(twice.gateways[0].clone());
        let name = twice.gateways[0].name.clone();
        assert_eq!(twice.sign(&root(1)).verify_first(), Err(BadBundle::SharedKey(name)));
    }

    fn named(name: &str, seed: u8) -> GatewayKey {
        let federation = FederationId::parse("entente.example").unwrap();
        let (state, name) = (MemberState::parse("FR").unwrap(), GatewayName::parse(name).unwrap());
        let key = SigningKey::from_seed([seed; 32]);
        let proof = gateway_key_proof(&federation, state, &name, &key);
        GatewayKey { name, key: key.public(), proof }
    }

    #[test]
    fn old_and_new_key_of_a_gateway_overlap() {
        let with = |gateways: Vec<GatewayKey>| {
            let bundle = TrustBundle { gateways, ..bundle(1, None, &root(1)) };
            bundle.sign(&root(1)).verify_first().map(drop)
        };
        let name = |text: &str| GatewayName::parse(text).unwrap();
        assert_eq!(with(vec![named("fr-1", 8), named("fr-1", 9), named("fr-2", 10)]), Ok(()));
        let three = vec![named("fr-1", 8), named("fr-2", 10), named("fr-1", 9), named("fr-1", 11)];
        assert_eq!(with(three), Err(BadBundle::TooManyKeys(name("fr-1"))));
        assert_eq!(with(vec![named("fr-1", 8), named("fr-2", 8)]), Err(BadBundle::SharedKey(name("fr-2"))));
        let all = |gateways: usize, keys: usize| {
            let each = (0..gateways * keys).map(|it| named(&format!("fr-{}", it / keys), 10 + it as u8));
            with(each.collect())
        };
        assert_eq!(all(GATEWAYS_MAX, KEYS_PER_GATEWAY_MAX), Ok(()));
        assert_eq!(all(GATEWAYS_MAX + 1, 1), Err(BadBundle::TooLarge("gateways")));
    }

    #[test]
    fn no_gateway_has_the_root_key() {
        let bundle = TrustBundle { gateways: vec![named("fr-1", 1)], ..bundle(1, None, &root(1)) };
        let name = bundle.gateways[0].name.clone();
        assert_eq!(bundle.sign(&root(1)).verify_first(), Err(BadBundle::RootKey(name)));
    }

    /// Threat 4, by way of a snapshot.
    #[test]
    fn no_older_bundle_and_no_other_one_stands_in_for_a_known_one() {
        let known = bundle(5, Some(Digest::of(b"4")), &root(1));
        let check = |signed: &SignedBundle, expected: Result<u64, BadBundle>| {
            assert_eq!(signed.verify_no_older_than(&known).map(|it| it.sequence), expected);
        };
        let signed = |sequence, previous: Digest| bundle(sequence, Some(previous), &root(1)).sign(&root(1));
        check(&known.sign(&root(1)), Ok(5));
        check(&signed(6, known.digest()), Ok(6));
        check(&signed(9, Digest::of(b"8")), Ok(9));
        check(&bundle(1, None, &root(1)).sign(&root(1)), Err(BadBundle::Older { found: 1, known: 5 }));
        check(&signed(4, Digest::of(b"3")), Err(BadBundle::Older { found: 4, known: 5 }));
        check(&signed(5, Digest::of(b"another 4")), Err(BadBundle::Fork(5)));
        check(&signed(6, Digest::of(b"another 5")), Err(BadBundle::NotNext { found: 6, expected: 6 }));
        let rotated = bundle(7, Some(Digest::of(b"6")), &root(2)).sign(&root(2));
        check(&rotated, Err(BadBundle::OldRoot));
        check(&rotated.with_old_root(&root(1)), Ok(7));
        let mut german = bundle(7, Some(Digest::of(b"6")), &root(1));
        (german.state, german.gateways) = (MemberState::parse("DE").unwrap(), vec![]);
        check(&german.sign(&root(1)), Err(BadBundle::AnotherState));
    }

    #[test]
    fn a_bundle_reads_back_from_json_and_a_changed_byte_is_noticed() {
        let signed = bundle(1, None, &root(1)).sign(&root(1));
        let json = serde_json::to_string(&signed).unwrap();
        assert_eq!(serde_json::from_str::<SignedBundle>(&json).unwrap(), signed);
        for place in 0..signed.body.0.len() {
            let mut forged = signed.clone();
            forged.body.0[place] ^= 1;
            assert!(forged.verify_first().is_err(), "byte {place}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let mut large = bundle(1, None, &root(1));
        large.crls_der = vec![vec![0; BUNDLE_BYTES_MAX]];
        assert_eq!(large.sign(&root(1)).verify_first(), Err(BadBundle::TooLarge("bytes")));
        large.crls_der = vec![vec![]; CRLS_MAX + 1];
        assert_eq!(large.sign(&root(1)).verify_first(), Err(BadBundle::TooLarge("revocation lists")));
    }
}
