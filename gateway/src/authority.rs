//! A state's authority: the folder from which one member state vouches for its gateways.
//!
//! ```text
//! authority.json    what the state says about itself; people may edit it
//! root.pem          Ed25519: signs bundles and the genesis; belongs offline
//! ca.pem ca.key     the state's certificate authority
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
    Digest, FederationId, GatewayId, GatewayKey, GatewayName, IssuerEntry, MemberState, PublicKey, SignedBundle,
    SigningKey, StateCa, TrustBundle,
};
use serde::{Deserialize, Serialize};

/// A CA outlives many leaves; it is renewed by a bundle with two CAs.
const CA_DAYS: u32 = 3_650;

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

    /// Issues or renews a gateway's certificates and, the first time, makes its signing key.
    ///
    /// `hosts` are the names and addresses of its public face; `hours` is the leaves' life.
    pub fn issue_gateway(
        &mut self,
        name: &GatewayName,
        hosts: &[String],
        hours: u32,
        files: &GatewayFiles,
    ) -> anyhow::Result<()> {
        fs::create_dir_all(&files.folder)
            .with_context(|| format!("cannot make the folder {}", files.folder.display()))?;
        self.enrol(name, files)?;
        let ca = self.ca()?;
        let id = GatewayId { state: self.statement.state, name: name.clone() };
        let peer = ca.issue_gateway(&id, now_s(), hours)?;
        replace(&files.path("peer.key"), peer.key_pem.as_bytes(), 0o600)?;
        replace(&files.path("peer.pem"), peer.cert_pem.as_bytes(), 0o644)?;
        let public = ca.issue_public(hosts, now_s(), hours)?;
        replace(&files.path("public.key"), public.key_pem.as_bytes(), 0o600)?;
        replace(&files.path("public.pem"), public.cert_pem.as_bytes(), 0o644)?;
        let secret = fs::read(self.folder.join("pseudonym.secret"))?;
        replace(&files.path("pseudonym.secret"), &secret, 0o600)
    }

    /// Adds or replaces an identity provider.
    pub fn add_issuer(&mut self, issuer: IssuerEntry) -> anyhow::Result<()> {
        let issuers = &mut self.statement.issuers;
        issuers.retain(|known| known.issuer != issuer.issuer);
        issuers.push(issuer);
        self.write_statement()
    }

    /// Signs a new bundle from the statement, as the successor of the last one.
    pub fn sign_bundle(&self) -> anyhow::Result<SignedBundle> {
        let root = self.root()?;
        let (sequence, previous) = match self.last_bundle()? {
            Some((last, digest)) => (last.sequence + 1, Some(digest)),
            None => (1, None),
        };
        let bundle = TrustBundle {
            federation: self.statement.federation.clone(),
            state: self.statement.state,
            sequence,
            previous,
            root_key: root.public(),
            ca_certs_der: vec![self.ca()?.cert_der()?],
            gateways: self.stated_keys()?,
            issuers: self.statement.issuers.clone(),
            crls_der: vec![],
        };
        let signed = bundle.sign(&root);
        let text = serde_json::to_vec_pretty(&signed)?;
        replace(&self.folder.join("bundle.json"), &text, 0o644)?;
        Ok(signed)
    }

    /// The root key; only for signing bundles and the genesis.
    pub fn root(&self) -> anyhow::Result<SigningKey> {
        read_signing_key(&self.folder.join("root.pem"))
    }

    fn ca(&self) -> anyhow::Result<StateCa> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(StateCa::load(&read("ca.pem")?, &read("ca.key")?)?)
    }

    fn enrol(&mut self, name: &GatewayName, files: &GatewayFiles) -> anyhow::Result<()> {
        let path = files.path("signing.pem");
        let key = if path.exists() {
            read_signing_key(&path)?
        } else {
            let key = SigningKey::from_seed(certs::entropy::bytes());
            write_secret(&path, key.to_pkcs8_pem().as_bytes())?;
            key
        };
        let Statement { federation, state, .. } = &self.statement;
        let proof = certs::gateway_key_proof(federation, *state, name, &key);
        let stated = StatedGateway {
            name: name.clone(),
            key: BASE64.encode(key.public().as_bytes()),
            proof: BASE64.encode(proof),
        };
        self.statement.gateways.retain(|known| known.name != *name);
        self.statement.gateways.push(stated);
        self.write_statement()
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

    fn last_bundle(&self) -> anyhow::Result<Option<(TrustBundle, Digest)>> {
        let path = self.folder.join("bundle.json");
        if !path.exists() {
            return Ok(None);
        }
        let signed: SignedBundle = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is not a signed bundle", path.display()))?;
        Ok(Some((signed.open_unchecked()?, signed.digest())))
    }

    fn write_statement(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(&self.statement)?;
        replace(&self.folder.join("authority.json"), &text, 0o644)
    }
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
        let temporary = path.with_extension("new");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_authority_signs_is_trusted_and_follows_what_it_signed_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let federation = FederationId::parse("entente.example").expect("a name");
        let state = MemberState::parse("FR").expect("a state");
        Authority::create(folder.path(), federation.clone(), state).expect("an authority");
        assert!(Authority::create(folder.path(), federation.clone(), state).is_err(), "keys are not remade");
        let mut authority = Authority::open(folder.path()).expect("an authority");
        let first = authority.sign_bundle().expect("a bundle");
        let files = GatewayFiles::in_folder(&folder.path().join("fr-1"));
        let name = GatewayName::parse("fr-1").expect("a name");
        let hosts = ["localhost".to_owned()];
        for _ in 0..2 {
            authority.issue_gateway(&name, &hosts, 1, &files).expect("issued, then renewed");
        }
        let second = Authority::open(folder.path()).and_then(|it| it.sign_bundle()).expect("a bundle");

        let first = first.verify_first().expect("a first bundle");
        let second = second.verify_successor(&first).expect("its successor");
        let trust = certs::TrustStore::new(federation, [second]).expect("a trust store");
        let key = read_signing_key(&files.path("signing.pem")).expect("a key").public();
        assert_eq!(trust.gateway_key(state, &key.id()), Some((&name, &key)));
        for secret in ["signing.pem", "peer.key", "public.key", "pseudonym.secret"] {
            let mode = fs::metadata(files.path(secret)).expect("a file").permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "{secret}");
        }
    }
}
