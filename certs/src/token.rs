//! Tokens: researchers' access tokens, by a profile stricter than any library's defaults.
//!
//! Invariants: the issuer belongs to one state and the key to that issuer; one algorithm per key, none symmetric; nothing
//! in a token leads to a request; what an issuer may not state is not believed.
//!
//! Source of the profile: RFC 9068, AARC-G069 (entitlements), REFEDS assurance; stricter where those leave a choice.

mod claims;
mod keyset;
mod provider;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use self::claims::{Claims, Members};
use self::keyset::KeySet;
use crate::bundle::{Assurance, IssuerEntry, Role};
use crate::keys::{BadKey, SigningKey};
use crate::state::MemberState;
use crate::trust::BadTrust;

/// A token of ours has about 700 bytes; a rich one of an identity provider 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Six hours.
pub const TOKEN_LIFE_MAX_S: u64 = 6 * 3_600;
/// Clocks of two well-run machines differ by less.
const LEEWAY_S: u64 = 30;
const TYPE: &str = "at+jwt";
const ISSUER_BYTES_MAX: usize = 256;
/// In a clearance with its grantor, such as `FR:dual-use`.
const GRANTOR_ENDS: char = ':';

/// Who made a request, as far as it is attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The state that vouches for the caller.
    pub state: MemberState,
    /// `iss`
    pub issuer: String,
    /// `sub`; personal data, goes no further than home.
    pub subject: String,
    /// What the caller may do, in order, each once.
    pub roles: Vec<Role>,
    /// AARC-G069 URNs, as stated.
    pub entitlements: Vec<String>,
    /// Not above what the issuer may state.
    pub assurance: Assurance,
    /// Granted by the caller's state, and only those that the issuer may state; in order, each once.
    pub clearances: Vec<String>,
    /// Where the caller lives, if the issuer says so and may say so.
    pub residency: Option<MemberState>,
    /// `jti`
    pub token_id: String,
    /// `exp`, in Unix seconds.
    pub expires_s: u64,
}

impl Caller {
    /// Whether the caller has this role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// Why a token is not accepted. The texts are for the one who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Above the limit.
    #[error("the token is larger than {TOKEN_BYTES_MAX} bytes")]
    TooLarge,
    /// Not three parts of base64url with JSON in them.
    #[error("this is not a signed JWT")]
    Malformed,
    /// A header member that is refused: `crit`, `jku`, `jwk`, `x5u`, `b64` and every other.
    #[error("the token's header has {0:?}; only alg, typ and kid are accepted")]
    Header(String),
    /// Not an access token.
    #[error("the token's typ must be at+jwt: send an access token, not an ID token")]
    Type,
    /// None, symmetric, or not the key's own.
    #[error("the token's alg is not the one that its key is for")]
    Algorithm,
    /// Not a plain name.
    #[error("the token's kid is missing or is not a plain name of at most 128 characters")]
    KeyId,
    /// Nobody's, as far as this federation knows.
    #[error("the token's issuer belongs to no member state")]
    UnknownIssuer,
    /// Not in the issuer's set.
    #[error("the issuer has published no key of this kid")]
    UnknownKey,
    /// Does not match.
    #[error("the token's signature does not match")]
    Signature,
    /// A claim that is missing, of another type, or above its limit.
    #[error("the token's claim {0:?} is missing or not as an access token has it")]
    Claim(&'static str),
    /// A name that comes twice.
    #[error("the token says {0:?} twice")]
    Twice(String),
    /// For somebody else.
    #[error("the token is for another audience; ask your identity provider for one for this federation")]
    Audience,
    /// Over.
    #[error("the token has expired; ask your identity provider for a new one")]
    Expired,
    /// Not begun.
    #[error("the token is not valid yet; is a clock wrong?")]
    NotYet,
    /// Above six hours.
    #[error("the token lives longer than six hours; ask for one with a shorter life")]
    LifeTooLong,
}

/// The identity providers of all states. A copy shares their keys.
#[derive(Clone, Debug, Default)]
pub struct IssuerSet {
    by_url: HashMap<String, Arc<Issuer>>,
}

/// An identity provider, as its state's bundle describes it.
#[derive(Debug)]
pub(crate) struct Issuer {
    state: MemberState,
    url: String,
    keys: KeySet,
    entitlements: Vec<(String, Role)>,
    assurance_max: Assurance,
    clearances: Vec<String>,
    residencies: Vec<MemberState>,
}

impl IssuerSet {
    /// Adds a state's provider. One that two states claim is nobody's.
    pub(crate) fn add(&mut self, issuer: Arc<Issuer>) -> Result<(), BadTrust> {
        let state = issuer.state;
        match self.by_url.insert(issuer.url.clone(), issuer) {
            Some(other) => Err(BadTrust::SharedIssuer(other.state, state)),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn urls(&self) -> Vec<&str> {
        let mut urls: Vec<&str> = self.by_url.keys().map(String::as_str).collect();
        urls.sort_unstable();
        urls
    }

    /// Takes a state's providers out.
    pub(crate) fn remove_all_of(&mut self, state: MemberState) {
        self.by_url.retain(|_, issuer| issuer.state != state);
    }

    /// Who presents this token at this time, at a face whose name is `audience`.
    pub fn verify(&self, token: &str, audience: &str, now_s: u64) -> Result<Caller, BadToken> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BadToken::TooLarge);
        }
        let parts = Parts::split(token)?;
        let (algorithm, kid) = read_header(parts.header)?;
        // Read before it is verified, only to know whose keys to ask; nothing else of it is used until then.
        let claims = Members::parse(&decode(parts.claims)?)?;
        let issuer = self.by_url.get(claims.text("iss")?).ok_or(BadToken::UnknownIssuer)?;
        issuer.keys.verify(&kid, algorithm, parts.signed, parts.signature)?;
        let claims = Claims::read(&claims)?;
        claims.hold_at(audience, now_s)?;
        Ok(issuer.caller(claims))
    }
}

impl Issuer {
    /// Reads a bundle's entry.
    pub(crate) fn read(state: MemberState, entry: &IssuerEntry) -> Result<Issuer, BadTrust> {
        let unusable = |reason: String| BadTrust::Issuer { state, reason };
        if entry.issuer.is_empty() || entry.issuer.len() > ISSUER_BYTES_MAX {
            return Err(unusable("its name is empty or too long".into()));
        }
        if let Some(qualified) = entry.clearances.iter().find(|it| it.contains(GRANTOR_ENDS)) {
            return Err(unusable(format!(
                "the clearance {qualified:?} has a colon; an issuer states its own state's, which are named without it"
            )));
        }
        Ok(Issuer {
            state,
            url: entry.issuer.clone(),
            keys: KeySet::parse(&entry.jwks_json).map_err(|bad| unusable(bad.to_string()))?,
            entitlements: entry.entitlements.clone(),
            assurance_max: entry.assurance_max,
            clearances: entry.clearances.clone(),
            residencies: entry.residencies.clone(),
        })
    }

    /// A clearance counts from the state that grants it: a bare name is the issuer's own state's, and so is `FR:name`
    /// from a French issuer. What it says of another state's is not believed.
    fn own_clearance(&self, stated: &str) -> Option<String> {
        let name = match stated.split_once(GRANTOR_ENDS) {
            Some((grantor, name)) if grantor == self.state.as_str() => name,
            Some(_) => return None,
            None => stated,
        };
        self.clearances.iter().find(|may_state| *may_state == name).cloned()
    }

    fn caller(&self, claims: Claims) -> Caller {
        let granted = |role: &Role| {
            let urns = self.entitlements.iter().filter(|(_, gives)| gives == role).map(|(urn, _)| urn);
            urns.into_iter().any(|urn| claims.entitlements.contains(urn))
        };
        let clearances: BTreeSet<String> = claims.clearances.iter().filter_map(|it| self.own_clearance(it)).collect();
        let attests = |residency: &MemberState| *residency == self.state || self.residencies.contains(residency);
        Caller {
            state: self.state,
            issuer: claims.issuer,
            subject: claims.subject,
            roles: [Role::Researcher, Role::Operator, Role::Agency].into_iter().filter(granted).collect(),
            entitlements: claims.entitlements,
            assurance: claims.assurance.min(self.assurance_max),
            clearances: clearances.into_iter().collect(),
            residency: claims.residency.filter(attests),
            token_id: claims.token_id,
            expires_s: claims.expires_s,
        }
    }
}

/// The three parts of a compact JWS.
struct Parts<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// Header and claims with the dot between them.
    signed: &'a str,
}

impl Parts<'_> {
    fn split(token: &str) -> Result<Parts<'_>, BadToken> {
        let (signed, signature) = token.rsplit_once('.').ok_or(BadToken::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(BadToken::Malformed)?;
        let whole = !header.is_empty() && !claims.contains('.') && !signature.is_empty();
        if whole { Ok(Parts { header, claims, signature, signed }) } else { Err(BadToken::Malformed) }
    }
}

fn read_header(part: &str) -> Result<(Algorithm, String), BadToken> {
    let header = Members::parse(&decode(part)?)?;
    if let Some(other) = header.names().find(|name| !["alg", "typ", "kid"].contains(name)) {
        return Err(BadToken::Header(other.chars().take(40).collect()));
    }
    let is_type = |text: &str| text.strip_prefix("application/").unwrap_or(text).eq_ignore_ascii_case(TYPE);
    if !header.text("typ").is_ok_and(is_type) {
        return Err(BadToken::Type);
    }
    let algorithm = match header.text("alg") {
        Ok("EdDSA") => Algorithm::EdDSA,
        Ok("ES256") => Algorithm::ES256,
        Ok("ES384") => Algorithm::ES384,
        Ok("RS256") => Algorithm::RS256,
        Ok("PS256") => Algorithm::PS256,
        _ => return Err(BadToken::Algorithm),
    };
    let kid = header.text("kid").map_err(|_| BadToken::KeyId)?;
    if keyset::is_plain(kid) { Ok((algorithm, kid.to_owned())) } else { Err(BadToken::KeyId) }
}

fn decode(part: &str) -> Result<Vec<u8>, BadToken> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| BadToken::Malformed)
}

/// An identity provider's signing key, Ed25519: for demonstrations and tests, and for states without a provider yet.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    issuer: String,
    kid: String,
    key: SigningKey,
}

/// A token could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot mint a token: {0}")]
pub struct CannotMint(String);

impl TokenIssuer {
    /// An issuer by its URL and its key in PKCS#8 PEM.
    pub fn from_pkcs8_pem(issuer: &str, kid: &str, pem: &str) -> Result<TokenIssuer, BadKey> {
        let key = SigningKey::from_pkcs8_pem(pem)?;
        Ok(TokenIssuer { issuer: issuer.to_owned(), kid: kid.to_owned(), key })
    }

    /// `iss`
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs whatever claims it is given; checking them is for who verifies.
    pub fn mint(&self, claims: &Value) -> Result<String, CannotMint> {
        provider::install();
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(self.kid.clone());
        let key = EncodingKey::from_ed_der(&self.key.to_pkcs8_der());
        jsonwebtoken::encode(&header, claims, &key).map_err(|cause| CannotMint(cause.to_string()))
    }

    /// The key set to publish.
    pub fn jwks_json(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public().as_bytes());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": x});
        json!({"keys": [key]}).to_string()
    }
}
