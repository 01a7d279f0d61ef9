//! Genesis: the founding members, agreed and signed by the root key of each.
//! Invariant: a [`Genesis`] exists only if every founding state signed these very bytes; a [`GenesisDraft`] is what
//! the states pass around until then.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use certs::{Digest, FederationId, MemberState, SignedBundle, SigningKey, TrustBundle, TrustStore};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    limits,
    member::{GatewayRecord, Member, trust_in},
    silence::Clocks,
    time::Revision,
};

/// What every founding state's root signs is this, then the postcard form of federation, epoch, members and clocks.
const DOMAIN: &[u8] = b"entente genesis v1\0";

/// A founding state as it enters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenesisMember {
    /// The state's first bundle.
    pub bundle: SignedBundle,
    pub gateways: Vec<GatewayRecord>,
}

/// An agreement that some states have signed. Its JSON is the file that they pass around.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenesisDraft {
    federation: FederationId,
    epoch: u64,
    /// In order of their states.
    members: Vec<GenesisMember>,
    #[serde(default)]
    clocks: Clocks,
    #[serde(default)]
    signatures: BTreeMap<MemberState, Signature>,
}

/// The agreement, signed by all. Its serde form is the draft's; reading it verifies it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "GenesisDraft", into = "GenesisDraft")]
pub struct Genesis {
    draft: GenesisDraft,
    bundles: Vec<TrustBundle>,
    trust: Arc<TrustStore>,
}

/// An Ed25519 signature; base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Signature(Vec<u8>);

impl TryFrom<String> for Signature {
    type Error = base64::DecodeError;
    fn try_from(text: String) -> Result<Signature, base64::DecodeError> {
        STANDARD.decode(text).map(Signature)
    }
}

impl From<Signature> for String {
    fn from(signature: Signature) -> String {
        STANDARD.encode(signature.0)
    }
}

/// Why a draft is not a genesis.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadGenesis {
    #[error("a federation begins with 1 to {} members", limits::MEMBERS_MAX)]
    Members,
    #[error("{0} is not a founding member")]
    NotAMember(MemberState),
    #[error("the bundle of {state} was refused: {reason}")]
    Bundle { state: String, reason: String },
    #[error("a bundle belongs to another federation")]
    Federation,
    #[error("{0} enters twice")]
    Twice(MemberState),
    #[error("the gateways of {0} do not match its bundle, or two share a name or a node id")]
    Gateways(MemberState),
    #[error("the clocks for silent hosts do not fit: 2 s <= quiet_ms <= lease_ms, and twice lease_ms <= gone_ms")]
    Clocks,
    #[error("{0} has not signed")]
    Unsigned(MemberState),
    #[error("the signature of {0} is not its root's over this agreement")]
    BadSignature(MemberState),
    #[error("the bundles do not make one trust: {0}")]
    Trust(String),
}

impl Genesis {
    /// Begins an agreement that nobody has signed yet. Members are put in order of their states.
    pub fn draft(
        federation: FederationId,
        epoch: u64,
        mut members: Vec<GenesisMember>,
    ) -> Result<GenesisDraft, BadGenesis> {
        if members.is_empty() || members.len() > limits::MEMBERS_MAX {
            return Err(BadGenesis::Members);
        }
        let mut by_state = BTreeMap::new();
        for member in members.drain(..) {
            let state = first_bundle(&member)?.state;
            if by_state.insert(state, member).is_some() {
                return Err(BadGenesis::Twice(state));
            }
        }
        let members = by_state.into_values().collect();
        Ok(GenesisDraft { federation, epoch, members, clocks: Clocks::default(), signatures: BTreeMap::new() })
    }

    pub fn federation(&self) -> &FederationId {
        &self.draft.federation
    }

    pub fn epoch(&self) -> u64 {
        self.draft.epoch
    }

    /// How long a host may be silent before what follows.
    pub fn clocks(&self) -> Clocks {
        self.draft.clocks
    }

    /// The trust that the founding bundles make together.
    pub fn trust(&self) -> &Arc<TrustStore> {
        &self.trust
    }

    /// Every gateway of every founding state.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewayRecord> {
        self.draft.members.iter().flat_map(|member| &member.gateways)
    }

    /// Names the federation's beginning: what the states signed.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.draft.signed_bytes())
    }

    /// The founding members as the registry holds them.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.draft.members.iter().zip(&self.bundles).map(|(member, bundle)| Member {
            state: bundle.state,
            signed: member.bundle.clone(),
            bundle: bundle.clone(),
            bundle_at: Revision(0),
            gateways: member.gateways.clone(),
        })
    }
}

impl GenesisDraft {
    pub fn federation(&self) -> &FederationId {
        &self.federation
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Every gateway of every founding state.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewayRecord> {
        self.members.iter().flat_map(|member| &member.gateways)
    }

    /// Other clocks for silent hosts. What was signed before is signed no more.
    pub fn with_clocks(self, clocks: Clocks) -> GenesisDraft {
        GenesisDraft { clocks, signatures: BTreeMap::new(), ..self }
    }

    /// Adds a founding state's signature by its root key.
    pub fn sign(mut self, state: MemberState, root: &SigningKey) -> Result<GenesisDraft, BadGenesis> {
        let mut roots = self.members.iter().filter_map(|member| member.bundle.verify_first().ok());
        let bundle = roots.find(|bundle| bundle.state == state).ok_or(BadGenesis::NotAMember(state))?;
        if bundle.root_key != root.public() {
            return Err(BadGenesis::BadSignature(state));
        }
        let signature = root.sign(&self.signed_bytes());
        self.signatures.insert(state, Signature(signature.to_vec()));
        Ok(self)
    }

    /// The genesis, if the agreement is sound and everyone signed it.
    pub fn complete(self) -> Result<Genesis, BadGenesis> {
        if self.members.is_empty() || self.members.len() > limits::MEMBERS_MAX {
            return Err(BadGenesis::Members);
        }
        if !self.clocks.are_sound() {
            return Err(BadGenesis::Clocks);
        }
        let bundles = self.members.iter().map(first_bundle).collect::<Result<Vec<_>, _>>()?;
        if let Some(pair) = bundles.windows(2).find(|pair| pair[0].state >= pair[1].state) {
            return Err(BadGenesis::Twice(pair[1].state));
        }
        if let Some(stranger) =
            self.signatures.keys().find(|state| !bundles.iter().any(|bundle| bundle.state == **state))
        {
            return Err(BadGenesis::NotAMember(*stranger));
        }
        let signed = self.signed_bytes();
        for bundle in &bundles {
            if bundle.federation != self.federation {
                return Err(BadGenesis::Federation);
            }
            let signature = self.signatures.get(&bundle.state).ok_or(BadGenesis::Unsigned(bundle.state))?;
            if !bundle.root_key.verify(&signed, &signature.0) {
                return Err(BadGenesis::BadSignature(bundle.state));
            }
        }
        self.check_gateways(&bundles)?;
        let trust = trust_in(&self.federation, bundles.iter()).map_err(|error| BadGenesis::Trust(error.to_string()))?;
        Ok(Genesis { draft: self, bundles, trust })
    }

    fn signed_bytes(&self) -> Vec<u8> {
        postcard::to_extend(&(&self.federation, self.epoch, &self.members, self.clocks), DOMAIN.to_vec())
            .expect("invariant: an agreement in memory always serialises")
    }

    fn check_gateways(&self, bundles: &[TrustBundle]) -> Result<(), BadGenesis> {
        let mut node_ids = std::collections::BTreeSet::new();
        for (member, bundle) in self.members.iter().zip(bundles) {
            let gateways = &member.gateways;
            let mut names = std::collections::BTreeSet::new();
            let sound = gateways.iter().all(|gateway| {
                let short = |text: &str| !text.is_empty() && text.len() <= limits::ADDRESS_BYTES_MAX;
                gateway.id.state == bundle.state
                    && bundle.gateways.iter().any(|key| key.name == gateway.id.name)
                    && names.insert(&gateway.id.name)
                    && gateway.node_id > 0
                    && node_ids.insert(gateway.node_id)
                    && short(&gateway.peer_address)
                    && short(&gateway.api_url)
            });
            if !sound || gateways.is_empty() || gateways.len() > limits::GATEWAYS_PER_STATE_MAX {
                return Err(BadGenesis::Gateways(bundle.state));
            }
        }
        Ok(())
    }
}

impl TryFrom<GenesisDraft> for Genesis {
    type Error = BadGenesis;
    fn try_from(draft: GenesisDraft) -> Result<Genesis, BadGenesis> {
        draft.complete()
    }
}

impl From<Genesis> for GenesisDraft {
    fn from(genesis: Genesis) -> GenesisDraft {
        genesis.draft
    }
}

fn first_bundle(member: &GenesisMember) -> Result<TrustBundle, BadGenesis> {
    member.bundle.verify_first().map_err(|error| BadGenesis::Bundle {
        state: member.gateways.first().map_or_else(|| "a member".into(), |gateway| gateway.id.state.to_string()),
        reason: error.to_string(),
    })
}
