//! Issuing: a state's certificate authority, the leaves of its gateways, and the list of those that it takes back. ECDSA on
//! P-256, short lives.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::digest::Digest;
use crate::revocation::{Certificate, Revoked};
use crate::state::{FederationId, GatewayId, MemberState};

/// Clocks differ; a certificate counts from a little before it was made.
const BACKDATE_S: u64 = 300;
/// 90 days and the backdate, in seconds: no leaf lives longer, whoever issued it.
pub const LEAF_LIFE_MAX_S: u64 = LEAF_HOURS_MAX as u64 * HOUR_S + BACKDATE_S;
const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 24 * HOUR_S;
/// A leaf that lives longer than this would need a revocation service.
const LEAF_HOURS_MAX: u32 = 24 * 90;
const CA_DAYS_MAX: u32 = 3_660;
const HOSTS_MAX: usize = 16;
/// 64 bits: a state has a handful of authorities in all its time.
const KEY_ID_DIGITS: usize = 16;

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum CannotIssue {
    /// Zero or too long.
    #[error("a certificate lives from 1 to {max} {unit}")]
    Life {
        /// The longest.
        max: u32,
        /// Hours or days.
        unit: &'static str,
    },
    /// For another state's gateway.
    #[error("the authority of {authority} issues nothing for {gateway}")]
    AnotherState {
        /// Whose authority this is.
        authority: MemberState,
        /// Who was asked for.
        gateway: GatewayId,
    },
    /// Not a host name or address.
    #[error("{0:?} is neither a host name nor an address, or there are too many")]
    Host(String),
    /// Not a CA certificate of a state with its key.
    #[error("this is not a state's certificate authority with its key")]
    NotAnAuthority,
    /// What it issued would be believed by nobody.
    #[error("the key is not the one of the authority's certificate")]
    AnotherKey,
    /// A list of it would count for nothing.
    #[error("the certificate authority has ended: nobody believes what it issues any more")]
    AuthorityEnded,
    /// From the library.
    #[error("cannot make the certificate: {0}")]
    Library(#[from] rcgen::Error),
}

/// A state's certificate authority, with its private key.
#[derive(Clone)]
pub struct StateCa {
    state: MemberState,
    federation: FederationId,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// A leaf with its private key.
#[derive(Clone)]
pub struct IssuedLeaf {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

impl StateCa {
    /// Makes a new authority. `now_s` is in Unix seconds.
    pub fn create(
        state: MemberState,
        federation: &FederationId,
        now_s: u64,
        days: u32,
    ) -> Result<StateCa, CannotIssue> {
        if !(1..=CA_DAYS_MAX).contains(&days) {
            return Err(CannotIssue::Life { max: CA_DAYS_MAX, unit: "days" });
        }
        let key = KeyPair::generate()?;
        // Two authorities of one name could not both have a revocation list, and a state has two while one replaces the other.
        let key_id = Digest::of(key.public_key_raw()).to_string();
        let name = format!("Entente CA of {state} {}", &key_id[..KEY_ID_DIGITS]);
        let mut params = params(&name, now_s, u64::from(days) * DAY_S);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(ia5(trust_domain(state, federation))?)];
        Ok(StateCa {
            state,
            federation: federation.clone(),
            cert_pem: params.self_signed(&key)?.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Reads an authority that [`StateCa::create`] made.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<StateCa, CannotIssue> {
        let (state, federation, spki) = whose(cert_pem).ok_or(CannotIssue::NotAnAuthority)?;
        let ca = StateCa { state, federation, cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned() };
        let matches = ca.issuer()?.key().subject_public_key_info() == spki;
        if matches { Ok(ca) } else { Err(CannotIssue::AnotherKey) }
    }

    /// The certificate, DER.
    pub fn cert_der(&self) -> Result<Vec<u8>, CannotIssue> {
        let der = CertificateDer::from_pem_slice(self.cert_pem.as_bytes());
        der.map(|der| der.to_vec()).map_err(|_| CannotIssue::NotAnAuthority)
    }

    /// A leaf for a gateway of this state to meet its peers with: its SPIFFE URI and no other name.
    pub fn issue_gateway(&self, id: &GatewayId, now_s: u64, hours: u32) -> Result<IssuedLeaf, CannotIssue> {
        if id.state != self.state {
            return Err(CannotIssue::AnotherState { authority: self.state, gateway: id.clone() });
        }
        let mut params = leaf_params(&id.to_string(), now_s, hours)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(ia5(id.spiffe(&self.federation))?)];
        self.issue(params)
    }

    /// A leaf for a public face under these host names and addresses.
    pub fn issue_public(&self, hosts: &[String], now_s: u64, hours: u32) -> Result<IssuedLeaf, CannotIssue> {
        let first = hosts.first().ok_or_else(|| CannotIssue::Host(String::new()))?;
        if hosts.len() > HOSTS_MAX {
            return Err(CannotIssue::Host(first.clone()));
        }
        let mut params = leaf_params(first, now_s, hours)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = hosts.iter().map(|host| host_name(host)).collect::<Result<_, _>>()?;
        self.issue(params)
    }

    /// The list of the certificates that this authority takes back, DER; whatever another one has issued, it cannot. It
    /// counts until the authority ends. The number grows from list to list.
    pub fn revocation_list(&self, number: u64, revoked: &[Revoked], now_s: u64) -> Result<Vec<u8>, CannotIssue> {
        let ends_s = Certificate::read(&self.cert_der()?).ok_or(CannotIssue::NotAnAuthority)?.ends_s;
        if now_s >= ends_s {
            return Err(CannotIssue::AuthorityEnded);
        }
        let entry = |it: &Revoked| RevokedCertParams {
            serial_number: SerialNumber::from_slice(it.serial.as_bytes()),
            revocation_time: moment(it.at_s),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: moment(now_s.saturating_sub(BACKDATE_S)),
            next_update: moment(ends_s),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer()?)?.der().to_vec())
    }

    /// Whether this authority signed the first certificate of a PEM text, for one of the two faces of a gateway.
    pub fn has_issued(&self, cert_pem: &str) -> bool {
        let (Ok(own), Ok(leaf)) = (self.cert_der(), CertificateDer::from_pem_slice(cert_pem.as_bytes())) else {
            return false;
        };
        let (own, Some(begins_s)) = (CertificateDer::from(own), Certificate::read(&leaf).map(|it| it.begins_s)) else {
            return false;
        };
        let (Ok(anchor), Ok(leaf)) = (webpki::anchor_from_trusted_cert(&own), EndEntityCert::try_from(&leaf)) else {
            return false;
        };
        // When it began it counted, whatever became of it.
        let then = UnixTime::since_unix_epoch(Duration::from_secs(begins_s));
        let (algorithms, usage) = (webpki::ALL_VERIFICATION_ALGS, KeyUsage::server_auth());
        leaf.verify_for_usage(algorithms, &[anchor], &[], then, usage, None, None).is_ok()
    }

    fn issue(&self, params: CertificateParams) -> Result<IssuedLeaf, CannotIssue> {
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer()?)?;
        Ok(IssuedLeaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CannotIssue> {
        let key = KeyPair::from_pem(&self.key_pem)?;
        Ok(Issuer::from_ca_cert_pem(&self.cert_pem, key)?)
    }
}

fn trust_domain(state: MemberState, federation: &FederationId) -> String {
    format!("spiffe://{}.{federation}", state.lower())
}

/// The state and federation that a CA certificate names, and its public key.
fn whose(cert_pem: &str) -> Option<(MemberState, FederationId, Vec<u8>)> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names[..] else {
        return None;
    };
    let (state, federation) = uri.strip_prefix("spiffe://")?.split_once('.')?;
    let state = MemberState::parse(&state.to_ascii_uppercase()).ok()?;
    Some((state, FederationId::parse(federation).ok()?, certificate.public_key().raw.to_vec()))
}

fn leaf_params(name: &str, now_s: u64, hours: u32) -> Result<CertificateParams, CannotIssue> {
    if !(1..=LEAF_HOURS_MAX).contains(&hours) {
        return Err(CannotIssue::Life { max: LEAF_HOURS_MAX, unit: "hours" });
    }
    let mut params = params(name, now_s, u64::from(hours) * HOUR_S);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(name: &str, now_s: u64, life_s: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = moment(now_s.saturating_sub(BACKDATE_S));
    params.not_after = moment(now_s + life_s);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Unix seconds as the library wants them.
fn moment(unix_s: u64) -> time::OffsetDateTime {
    let seconds = i64::try_from(unix_s).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn host_name(host: &str) -> Result<SanType, CannotIssue> {
    if let Ok(address) = host.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let is_dns = FederationId::parse(host).is_ok();
    if is_dns { Ok(SanType::DnsName(ia5(host.to_owned())?)) } else { Err(CannotIssue::Host(host.to_owned())) }
}

fn ia5(text: String) -> Result<Ia5String, CannotIssue> {
    Ok(Ia5String::try_from(text)?)
}
