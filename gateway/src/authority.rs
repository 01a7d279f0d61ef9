//! A state's authority: the folder from which one member state vouches for its gateways.
//!
//! ```text
//! authority.json    what the state says about itself; people may edit it
//! root.pem          Ed25519: signs bundles and the genesis; belongs offline
//! ca.pem ca.key     the state's certificate authority
//! certificates.json which certificates it has issued, and which it has revoked; made, never edited
//! bundle.json       the newest signed trust bundle; made, never edited
//! pseudonym.secret  turns researchers into pseudonyms; goes to each gateway of the state
//! ```
//!
//! `entente certs` and the federation on a laptop both work through here, so an operator can do by
//! hand what the demo does for him. Private keys are written with mode 0600, and no existing key is
//! ever overwritten.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use certs::{
    Certificate, FederationId, GatewayId, GatewayKey, GatewayName, IssuedLeaf, IssuerEntry, KEYS_PER_GATEWAY_MAX,
    MemberState, PublicKey, RevocationList, Revoked, Serial, SignedBundle, SigningKey, StateCa, TrustBundle,
    TrustStore,
};
use federation::Timestamp;
use serde::{Deserialize, Serialize};

use crate::tes::view::rfc3339;

mod record;

pub use record::{Issued, Named, Record, TakenBack};

/// A CA outlives many leaves; it is renewed by a bundle with two CAs.
const CA_DAYS: u32 = 3_650;
const REFUSED: &str = "the federation would refuse this bundle, so nothing was changed";

/// What a state says about itself, in a form for people; the bundle is made from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The federation's name.
    pub federation: FederationId,
    /// The state.
    pub state: MemberState,
    /// Its gateways' signing keys.
    #[serde(default)]
    pub gateways: Vec<StatedGateway>,
    /// Its identity providers.
    #[serde(default)]
    pub issuers: Vec<IssuerEntry>,
}

/// A gateway's signing key with the proof that it holds the private part.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedGateway {
    /// `fr-1`
    pub name: GatewayName,
    /// Ed25519, base64.
    pub key: String,
    /// Signature over federation, state, name and key, base64.
    pub proof: String,
}

/// An opened authority folder.
pub struct Authority {
    folder: PathBuf,
    statement: Statement,
}

/// The files that make one gateway an identity.
#[derive(Clone, Debug)]
pub struct GatewayFiles {
    /// Where they lie.
    pub folder: PathBuf,
}

impl GatewayFiles {
    /// Files in a folder, by their fixed names.
    pub fn in_folder(folder: &Path) -> GatewayFiles {
        GatewayFiles { folder: folder.to_owned() }
    }

    /// A file by its name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Authority {
    /// Makes a new authority: root key, CA and pseudonym secret. Refuses a folder that has one.
    pub fn create(folder: &Path, federation: FederationId, state: MemberState) -> anyhow::Result<Authority> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let root = SigningKey::from_seed(certs::entropy::bytes());
        write_secret(&folder.join("root.pem"), root.to_pkcs8_pem().as_bytes())?;
        let ca = StateCa::create(state, &federation, now_s(), CA_DAYS)?;
        write_secret(&folder.join("ca.key"), ca.key_pem.as_bytes())?;
        write_public(&folder.join("ca.pem"), ca.cert_pem.as_bytes())?;
        let secret = BASE64.encode(certs::entropy::bytes::<32>());
        write_secret(&folder.join("pseudonym.secret"), secret.as_bytes())?;
        let statement = Statement { federation, state, gateways: vec![], issuers: vec![] };
        let authority = Authority { folder: folder.to_owned(), statement };
        authority.write_statement()?;
        Ok(authority)
    }

    /// Opens the authority in a folder.
    pub fn open(folder: &Path) -> anyhow::Result<Authority> {
        let path = folder.join("authority.json");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("{} is not a state's authority; `entente certs init` makes one", folder.display())
        })?;
        let statement =
            serde_json::from_str(&text).with_context(|| format!("{} is not a statement", path.display()))?;
        Ok(Authority { folder: folder.to_owned(), statement })
    }

    /// What the state says about itself.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The public part of the state's root key, by which others know the state.
    pub fn root_key(&self) -> anyhow::Result<PublicKey> {
        Ok(self.root()?.public())
    }

    /// Issues or renews a gateway's certificates. A gateway that the statement does not name gets a signing key first.
    ///
    /// `hosts` are the names and addresses of its public face; `hours` is the leaves' life.
    pub fn issue_gateway(
        &mut self,
        name: &GatewayName,
        hosts: &[String],
        hours: u32,
        files: &GatewayFiles,
    ) -> anyhow::Result<()> {
        if !self.keys_of(name).any(|_| true) {
            self.add_key(name, files)?;
        }
        if !self.has_stated_key(name, files)? {
            let path = files.path("signing.pem");
            bail!(
                "{} is no signing key of {name} that the statement names: renew in the folder that has it, or make a \
                 second key with --another-key",
                path.display()
            );
        }
        let ca = self.ca()?;
        let id = GatewayId { state: self.statement.state, name: name.clone() };
        let peer = ca.issue_gateway(&id, now_s(), hours)?;
        let public = ca.issue_public(hosts, now_s(), hours)?;
        let issued = |leaf: &IssuedLeaf| Certificate::read_pem(&leaf.cert_pem).map(Issued::new);
        let both = [&peer, &public].map(|leaf| issued(leaf).expect("invariant: what was issued can be read"));
        Record::change(&self.folder, now_s(), |record| {
            record.add(both);
            Ok(())
        })?;
        replace(&files.path("peer.key"), peer.key_pem.as_bytes(), 0o600)?;
        replace(&files.path("peer.pem"), peer.cert_pem.as_bytes(), 0o644)?;
        replace(&files.path("public.key"), public.key_pem.as_bytes(), 0o600)?;
        replace(&files.path("public.pem"), public.cert_pem.as_bytes(), 0o644)?;
        let secret = fs::read(self.folder.join("pseudonym.secret"))?;
        replace(&files.path("pseudonym.secret"), &secret, 0o600)
    }

    /// Makes a signing key for a gateway, beside one that it replaces, and names it in the statement.
    pub fn add_key(&mut self, name: &GatewayName, files: &GatewayFiles) -> anyhow::Result<()> {
        if self.keys_of(name).count() >= KEYS_PER_GATEWAY_MAX {
            bail!("{name} has two signing keys already; `entente certs retire` takes the old one out");
        }
        let key = SigningKey::from_seed(certs::entropy::bytes());
        let Statement { federation, state, .. } = &self.statement;
        let proof = certs::gateway_key_proof(federation, *state, name, &key);
        self.statement.gateways.push(StatedGateway {
            name: name.clone(),
            key: BASE64.encode(key.public().as_bytes()),
            proof: BASE64.encode(proof),
        });
        self.signed()?;
        fs::create_dir_all(&files.folder)
            .with_context(|| format!("cannot make the folder {}", files.folder.display()))?;
        write_secret(&files.path("signing.pem"), key.to_pkcs8_pem().as_bytes())?;
        self.write_statement()
    }

    /// Whether a folder has a signing key that the statement names for this gateway.
    pub fn has_stated_key(&self, name: &GatewayName, files: &GatewayFiles) -> anyhow::Result<bool> {
        let path = files.path("signing.pem");
        if !path.exists() {
            return Ok(false);
        }
        let key = BASE64.encode(read_signing_key(&path)?.public().as_bytes());
        Ok(self.keys_of(name).any(|stated| stated.key == key))
    }

    /// Takes a gateway's signing key, as `entente certs show` names it, out of the statement.
    pub fn retire_key(&mut self, id: &str) -> anyhow::Result<GatewayName> {
        let keys = self.stated_keys()?;
        let place = keys.iter().position(|stated| stated.key.id().to_string() == id);
        let place =
            place.with_context(|| format!("the statement names no key {id}; `entente certs show` lists them"))?;
        let retired = self.statement.gateways.remove(place);
        self.write_statement()?;
        Ok(retired.name)
    }

    /// The certificates that it has issued.
    pub fn record(&self) -> anyhow::Result<Record> {
        Record::read(&self.folder)
    }

    /// A certificate by its number, to be taken back.
    pub fn named(&self, serial: &str) -> anyhow::Result<Named> {
        Ok(Named::Serial(Serial::parse(serial).with_context(|| format!("{serial:?} cannot be read"))?))
    }

    /// A certificate in a PEM file, to be taken back; nobody takes back another's.
    pub fn named_by(&self, file: &Path) -> anyhow::Result<Named> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificate = Certificate::read_pem(&text)
            .with_context(|| format!("{} is no certificate; peer.pem and public.pem are", file.display()))?;
        let ca = self.ca()?;
        if Certificate::read_pem(&ca.cert_pem).is_some_and(|own| own.serial == certificate.serial) {
            bail!(
                "{} is the authority's own certificate: no list takes that back, since the authority signs it",
                file.display()
            );
        }
        if !ca.has_issued(&text) {
            bail!(
                "{} was not issued by this authority of {}, but by one that calls itself {}: only the state whose \
                 authority issued a certificate can revoke it",
                file.display(),
                self.statement.state,
                certificate.authority
            );
        }
        Ok(Named::Itself(certificate))
    }

    /// Takes certificates back, all of them or none; every bundle that is signed from now on says so.
    pub fn revoke(&self, named: &[Named]) -> anyhow::Result<Vec<TakenBack>> {
        Record::change(&self.folder, now_s(), |record| record.take_back(named, now_s()))
    }

    /// Adds or replaces an identity provider.
    pub fn add_issuer(&mut self, issuer: IssuerEntry) -> anyhow::Result<()> {
        let issuers = &mut self.statement.issuers;
        issuers.retain(|known| known.issuer != issuer.issuer);
        issuers.push(issuer);
        self.signed()?;
        self.write_statement()
    }

    /// Signs a new bundle from the statement, as the successor of the last one. What every registry would refuse is not
    /// signed.
    pub fn sign_bundle(&self) -> anyhow::Result<SignedBundle> {
        let signed = self.signed()?;
        let text = serde_json::to_vec_pretty(&signed)?;
        replace(&self.folder.join("bundle.json"), &text, 0o644)?;
        Ok(signed)
    }

    /// The root key; only for signing bundles and the genesis.
    pub fn root(&self) -> anyhow::Result<SigningKey> {
        read_signing_key(&self.folder.join("root.pem"))
    }

    /// The next bundle, if every registry would take it as far as this state alone is concerned.
    fn signed(&self) -> anyhow::Result<SignedBundle> {
        let signed = self.next_bundle()?.sign(&self.root()?);
        let verified = match self.last_bundle()? {
            Some(last) => signed.verify_successor(&last),
            None => signed.verify_first(),
        };
        let bundle = verified.context(REFUSED)?;
        TrustStore::new(bundle.federation.clone(), [bundle]).context(REFUSED)?;
        Ok(signed)
    }

    fn next_bundle(&self) -> anyhow::Result<TrustBundle> {
        let last = self.last_bundle()?;
        let sequence = last.as_ref().map_or(1, |it| it.sequence + 1);
        let listed = last.as_ref().map_or(Ok(vec![]), listed)?;
        let revoked = self.record()?.to_list(&listed, now_s());
        // Where nothing is taken back no list is needed, and none can be in the way.
        let list =
            (!revoked.is_empty()).then(|| anyhow::Ok(self.ca()?.revocation_list(sequence, &revoked, now_s())?));
        Ok(TrustBundle {
            federation: self.statement.federation.clone(),
            state: self.statement.state,
            sequence,
            previous: last.map(|it| it.digest()),
            root_key: self.root_key()?,
            ca_certs_der: vec![self.ca()?.cert_der()?],
            gateways: self.stated_keys()?,
            issuers: self.statement.issuers.clone(),
            crls_der: list.transpose()?.into_iter().collect(),
        })
    }

    fn keys_of(&self, name: &GatewayName) -> impl Iterator<Item = &StatedGateway> {
        self.statement.gateways.iter().filter(move |stated| stated.name == *name)
    }

    fn ca(&self) -> anyhow::Result<StateCa> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(StateCa::load(&read("ca.pem")?, &read("ca.key")?)?)
    }

    fn stated_keys(&self) -> anyhow::Result<Vec<GatewayKey>> {
        let mut keys = Vec::new();
        for stated in &self.statement.gateways {
            let key = BASE64.decode(&stated.key).context("a gateway key is not base64")?;
            keys.push(GatewayKey {
                name: stated.name.clone(),
                key: PublicKey::parse(&key)?,
                proof: BASE64.decode(&stated.proof).context("a proof is not base64")?,
            });
        }
        Ok(keys)
    }

    fn last_bundle(&self) -> anyhow::Result<Option<TrustBundle>> {
        let path = self.folder.join("bundle.json");
        if !path.exists() {
            return Ok(None);
        }
        let signed: SignedBundle = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is not a signed bundle", path.display()))?;
        Ok(Some(signed.open_unchecked()?))
    }

    fn write_statement(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&self.statement)?;
        replace(&self.folder.join("authority.json"), &text, 0o644)
    }
}

/// What the lists of a bundle of this authority take back.
fn listed(bundle: &TrustBundle) -> anyhow::Result<Vec<Revoked>> {
    let mut all = vec![];
    for list in &bundle.crls_der {
        let list = RevocationList::read(list)
            .with_context(|| format!("a revocation list in bundle {} cannot be read", bundle.sequence))?;
        all.extend(list.revoked);
    }
    Ok(all)
}

/// Reads an Ed25519 key from a PKCS#8 PEM file.
pub fn read_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let pem = fs::read_to_string(path).with_context(|| format!("cannot read the key {}", path.display()))?;
    SigningKey::from_pkcs8_pem(&pem).with_context(|| format!("{} is not an Ed25519 key", path.display()))
}

/// Writes a new private file; an existing one is an error, because keys are not remade silently.
pub fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if path.exists() {
        bail!("{} exists already and is not overwritten; move it away first", path.display());
    }
    replace(path, bytes, 0o600)
}

fn write_public(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace(path, bytes, 0o644)
}

/// Replaces a file atomically: a reader sees the old or the new content, never a part.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let written = || -> std::io::Result<()> {
        // Named after the whole of it: a key and its certificate differ in what is behind the dot.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        // One that a crash left may have been made for others to read.
        let _none_left = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Unix seconds, for certificates.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment for people: `2026-11-24T12:17:00Z`.
pub fn date(unix_s: u64) -> String {
    rfc3339(Timestamp(unix_s.saturating_mul(1_000))).replace(".000Z", "Z")
}

#[cfg(test)]
mod tests {
    use certs::{Assurance, LeafIdentity, Role};

    use super::*;

    fn federation() -> FederationId {
        FederationId::parse("entente.example").expect("a name")
    }

    fn france() -> MemberState {
        MemberState::parse("FR").expect("a state")
    }

    fn fr_1() -> GatewayName {
        GatewayName::parse("fr-1").expect("a name")
    }

    /// France's authority, and a place for a gateway's files.
    fn new_authority(folder: &Path) -> (Authority, GatewayFiles) {
        let authority = Authority::create(&folder.join("authority"), federation(), france()).expect("an authority");
        (authority, GatewayFiles::in_folder(&folder.join("fr-1")))
    }

    fn issue(authority: &mut Authority, files: &GatewayFiles) -> anyhow::Result<()> {
        authority.issue_gateway(&fr_1(), &["localhost".to_owned()], 1, files)
    }

    fn key_in(files: &GatewayFiles) -> PublicKey {
        read_signing_key(&files.path("signing.pem")).expect("a key").public()
    }

    fn is_trusted(bundle: &TrustBundle, key: &PublicKey) -> bool {
        let trust = TrustStore::new(federation(), [bundle.clone()]).expect("a trust store");
        trust.gateway_key(france(), &key.id()) == Some((&fr_1(), key))
    }

    #[test]
    fn what_an_authority_signs_is_trusted_and_follows_what_it_signed_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (authority, files) = new_authority(folder.path());
        assert!(Authority::create(&authority.folder, federation(), france()).is_err(), "keys are not remade");
        let mut authority = Authority::open(&authority.folder).expect("an authority");
        let first = authority.sign_bundle().expect("a bundle");
        for _ in 0..2 {
            issue(&mut authority, &files).expect("issued, then renewed");
        }
        let second = Authority::open(&authority.folder).and_then(|it| it.sign_bundle()).expect("a bundle");

        let first = first.verify_first().expect("a first bundle");
        let second = second.verify_successor(&first).expect("its successor");
        assert!(is_trusted(&second, &key_in(&files)));
        for secret in ["signing.pem", "peer.key", "public.key", "pseudonym.secret"] {
            let mode = fs::metadata(files.path(secret)).expect("a file").permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "{secret}");
        }
    }

    #[test]
    fn a_signing_key_is_replaced_while_both_count() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut authority, old) = new_authority(folder.path());
        issue(&mut authority, &old).expect("issued");
        let new = GatewayFiles::in_folder(&folder.path().join("fr-1-new"));
        let refused = issue(&mut authority, &new).expect_err("another folder is no renewal");
        assert!(refused.to_string().contains("--another-key"), "{refused}");
        assert!(!new.path("signing.pem").exists());

        authority.add_key(&fr_1(), &new).expect("a second key");
        issue(&mut authority, &new).expect("its certificates");
        issue(&mut authority, &old).expect("the old folder is renewed too");
        let both = authority.sign_bundle().and_then(|it| Ok(it.open_unchecked()?)).expect("a bundle");
        assert!(is_trusted(&both, &key_in(&old)) && is_trusted(&both, &key_in(&new)));
        let third = GatewayFiles::in_folder(&folder.path().join("third"));
        assert!(authority.add_key(&fr_1(), &third).is_err(), "two at a time");

        let id = key_in(&old).id().to_string();
        assert_eq!(authority.retire_key(&id).expect("retired"), fr_1());
        assert!(authority.retire_key(&id).is_err(), "once");
        let last = authority.sign_bundle().and_then(|it| Ok(it.open_unchecked()?)).expect("a bundle");
        assert!(!is_trusted(&last, &key_in(&old)) && is_trusted(&last, &key_in(&new)));
        assert!(issue(&mut authority, &old).is_err(), "a renewal does not bring it back");
    }

    fn leaf_in(files: &GatewayFiles) -> LeafIdentity {
        let read = |name: &str| fs::read_to_string(files.path(name)).expect("a file");
        LeafIdentity::from_pem(&read("peer.pem"), &read("peer.key")).expect("a leaf")
    }

    fn why_refused(signed: &SignedBundle, leaf: &LeafIdentity) -> Option<String> {
        let bundle = signed.open_unchecked().expect("a bundle");
        TrustStore::new(federation(), [bundle]).expect("a trust store").refuses(leaf, now_s())
    }

    /// As after a crash between the two commands, nothing but the folder is left.
    #[test]
    fn what_is_revoked_is_refused_from_the_next_bundle_on_and_stays_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut authority, files) = new_authority(folder.path());
        issue(&mut authority, &files).expect("issued");
        let first = authority.sign_bundle().and_then(|it| Ok(it.open_unchecked()?)).expect("a bundle");
        assert!(first.crls_der.is_empty(), "nothing is revoked");
        let old = leaf_in(&files);
        fs::copy(files.path("peer.pem"), folder.path().join("old.pem")).expect("a copy");
        issue(&mut authority, &files).expect("renewed");

        let open = || Authority::open(&folder.path().join("authority")).expect("an authority");
        let old_file = open().named_by(&folder.path().join("old.pem")).expect("its own certificate");
        let taken = open().revoke(std::slice::from_ref(&old_file)).expect("revoked");
        assert!(!taken[0].was_already && !taken[0].was_the_last, "{taken:?}");
        let signed = open().sign_bundle().expect("a bundle");
        assert_eq!(why_refused(&signed, &old), Some("FR has revoked it".into()));
        assert_eq!(why_refused(&signed, &leaf_in(&files)), None);
        assert!(open().revoke(&[old_file]).expect("revoked again")[0].was_already);

        // Neither later bundles nor a lost record forget it.
        fs::remove_file(folder.path().join("authority/certificates.json")).expect("removed");
        for _ in 0..2 {
            let signed = open().sign_bundle().expect("a bundle");
            assert_eq!(why_refused(&signed, &old), Some("FR has revoked it".into()));
        }
    }

    #[test]
    fn an_authority_revokes_what_it_has_issued_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut authority, files) = new_authority(folder.path());
        issue(&mut authority, &files).expect("issued");
        let (mut another, of_another) = new_authority(&folder.path().join("another"));
        issue(&mut another, &of_another).expect("issued");
        for (refused, why) in [
            (authority.named_by(&of_another.path("peer.pem")), "was not issued by this authority of FR"),
            (authority.named_by(&files.path("peer.key")), "is no certificate"),
            (authority.named_by(&files.path("none.pem")), "cannot read"),
            (authority.named_by(&authority.folder.join("ca.pem")), "is the authority's own certificate"),
            (authority.named("xyz"), "cannot be read"),
        ] {
            let refused = format!("{:#}", refused.expect_err(why));
            assert!(refused.contains(why), "{refused}");
        }
        let theirs = another.record().expect("a record").issued()[0].serial.to_string();
        let unknown = authority.named(&theirs).expect("a serial number");
        assert!(authority.revoke(&[unknown]).is_err());
        let taken =
            authority.named_by(&files.path("peer.pem")).and_then(|it| authority.revoke(&[it])).expect("revoked");
        assert!(taken[0].was_the_last, "{taken:?}");
    }

    #[test]
    fn what_the_federation_would_refuse_is_not_stated() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut authority, _) = new_authority(folder.path());
        authority.sign_bundle().expect("a bundle");
        let issuer = IssuerEntry {
            issuer: "https://login.example.fr".into(),
            jwks_json: r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}"#.into(),
            entitlements: vec![("urn:x".into(), Role::Researcher)],
            assurance_max: Assurance::Low,
            clearances: vec![],
            residencies: vec![],
        };
        let before = fs::read(authority.folder.join("authority.json")).expect("a statement");
        let refused = authority.add_issuer(issuer.clone()).expect_err("a shared secret is no public key");
        assert!(format!("{refused:#}").contains("an issuer of FR cannot be used"), "{refused:#}");
        assert_eq!(fs::read(authority.folder.join("authority.json")).expect("a statement"), before);
        let too_many =
            IssuerEntry { clearances: vec!["x".into(); 33], jwks_json: r#"{"keys": []}"#.into(), ..issuer.clone() };
        assert!(Authority::open(&authority.folder).and_then(|mut it| it.add_issuer(too_many)).is_err());
        assert_eq!(fs::read(authority.folder.join("authority.json")).expect("a statement"), before);

        // Written by hand.
        authority.statement.issuers = vec![issuer];
        let bundle = fs::read(authority.folder.join("bundle.json")).expect("a bundle");
        assert!(authority.sign_bundle().is_err());
        assert_eq!(fs::read(authority.folder.join("bundle.json")).expect("a bundle"), bundle);
    }
}
