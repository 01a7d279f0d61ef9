//! `entente certs`: a state's authority by hand: keys, certificates and their revocation, trust bundles, the genesis.

use std::fs;
use std::path::{Path, PathBuf};

use ::certs::{
    Assurance, Certificate, FederationId, GatewayId, GatewayName, IssuerEntry, MemberState, RevocationList, Revoked,
    Role, SignedBundle,
};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use federation::{GatewayRecord, Genesis, GenesisDraft, GenesisMember};

use crate::authority::{Authority, GatewayFiles, Issued, Named, TakenBack, date, now_s, replace};
use crate::expiry::ANNOUNCED_MAX_S;

/// What an authority does.
#[derive(Subcommand)]
pub enum Certs {
    /// Make a state's authority: root key, certificate authority, pseudonym secret
    Init {
        /// A folder that has none yet
        folder: PathBuf,
        /// The federation's name, for example entente.example
        #[arg(long)]
        federation: String,
        /// The member state, ISO 3166-1 alpha-2
        #[arg(long)]
        state: String,
    },
    /// Issue or renew a gateway's certificates; the first time, make its signing key
    Gateway(IssueGateway),
    /// Take a gateway's signing key out of the statement; from the next bundle on it signs nothing
    Retire {
        /// The authority's folder
        folder: PathBuf,
        /// The key, as `entente certs show` names it
        #[arg(long)]
        key: String,
    },
    /// Take certificates back before they end; from the next bundle on no gateway lets them in
    Revoke(Revoke),
    /// Add or replace an identity provider of the state
    Issuer(AddIssuer),
    /// Sign the state's next trust bundle
    Bundle {
        /// The authority's folder
        folder: PathBuf,
    },
    /// Draft a genesis from the founding states' bundles
    Genesis(DraftGenesis),
    /// Sign a drafted genesis with this state's root key
    Sign {
        /// The authority's folder
        folder: PathBuf,
        /// The genesis; signed in place
        genesis: PathBuf,
    },
    /// Say what is in a bundle, a genesis, a certificate or an authority's folder, and whether signatures hold
    Show {
        /// bundle.json, genesis.json, peer.pem, or an authority's folder
        file: PathBuf,
    },
}

/// A gateway to issue certificates for.
#[derive(Args)]
pub struct IssueGateway {
    /// The authority's folder
    folder: PathBuf,
    /// The gateway's name, for example fr-1
    #[arg(long)]
    name: String,
    /// Names and addresses of its public face
    #[arg(long = "host", required = true)]
    hosts: Vec<String>,
    /// Life of the certificates
    #[arg(long, default_value_t = 168)]
    hours: u32,
    /// Where the gateway's files go, or are to be renewed
    #[arg(long)]
    out: PathBuf,
    /// Make a second signing key in a new folder, which is to replace the first
    #[arg(long)]
    another_key: bool,
}

/// Certificates to take back.
#[derive(Args)]
pub struct Revoke {
    /// The authority's folder
    folder: PathBuf,
    /// The number of a certificate, as `entente certs show` of the folder names it
    #[arg(long = "serial")]
    serials: Vec<String>,
    /// A certificate's file, such as peer.pem
    #[arg(long = "certificate")]
    certificates: Vec<PathBuf>,
}

/// An identity provider to trust.
#[derive(Args)]
pub struct AddIssuer {
    /// The authority's folder
    folder: PathBuf,
    /// The provider's issuer URL, exactly as in its tokens
    #[arg(long)]
    issuer: String,
    /// Its key set (JWKS)
    #[arg(long)]
    jwks: PathBuf,
    /// Which entitlement gives which role: researcher=urn:…, operator=urn:…, agency=urn:…
    #[arg(long = "role")]
    roles: Vec<String>,
    /// The highest assurance that it may state: low, substantial or high
    #[arg(long, default_value = "substantial")]
    assurance_max: String,
    /// A clearance of this state that it may state, such as dual-use
    #[arg(long = "clearance")]
    clearances: Vec<String>,
    /// Another state, such as CH, that it may attest people to live in
    #[arg(long = "residency")]
    residencies: Vec<String>,
}

/// What a genesis is drafted from.
#[derive(Args)]
pub struct DraftGenesis {
    /// A founding state's signed bundle
    #[arg(long = "bundle", required = true)]
    bundles: Vec<PathBuf>,
    /// A gateway: FR/fr-1,node=1,peer=host:port,api=https://host:port
    #[arg(long = "gateway", required = true)]
    gateways: Vec<String>,
    /// Raised when a federation is founded anew under the same name
    #[arg(long, default_value_t = 1)]
    epoch: u64,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
}

/// Does what the authority is asked.
pub fn certs(command: &Certs) -> anyhow::Result<()> {
    match command {
        Certs::Init { folder, federation, state } => init(folder, federation, state),
        Certs::Gateway(it) => issue_gateway(it),
        Certs::Retire { folder, key } => retire(folder, key),
        Certs::Revoke(it) => revoke(it),
        Certs::Issuer(it) => add_issuer(it),
        Certs::Bundle { folder } => bundle(folder),
        Certs::Genesis(it) => draft_genesis(it),
        Certs::Sign { folder, genesis } => sign_genesis(folder, genesis),
        Certs::Show { file } => show(file),
    }
}

fn init(folder: &Path, federation: &str, state: &str) -> anyhow::Result<()> {
    let federation = FederationId::parse(federation)?;
    let authority = Authority::create(folder, federation, MemberState::parse(state)?)?;
    println!("root key    {}", authority.root_key()?.id());
    println!("authority   {}", folder.display());
    println!("Keep root.pem and ca.key offline; the gateways never need them.");
    Ok(())
}

fn issue_gateway(it: &IssueGateway) -> anyhow::Result<()> {
    let mut authority = Authority::open(&it.folder)?;
    let name = GatewayName::parse(&it.name)?;
    let files = GatewayFiles::in_folder(&it.out);
    // One that is there already is of an earlier try, which failed behind it.
    if it.another_key && !authority.has_stated_key(&name, &files)? {
        authority.add_key(&name, &files)?;
    }
    authority.issue_gateway(&name, &it.hosts, it.hours, &files)?;
    println!("{}: certificates for {} hours", it.out.display(), it.hours);
    Ok(())
}

fn retire(folder: &Path, key: &str) -> anyhow::Result<()> {
    let name = Authority::open(folder)?.retire_key(key)?;
    println!("{name} has one signing key less; sign the next bundle to publish it");
    Ok(())
}

fn revoke(it: &Revoke) -> anyhow::Result<()> {
    let authority = Authority::open(&it.folder)?;
    let by_serial = it.serials.iter().map(|serial| authority.named(serial));
    let by_file = it.certificates.iter().map(|file| authority.named_by(file));
    let named: Vec<Named> = by_serial.chain(by_file).collect::<Result<_, _>>()?;
    if named.is_empty() {
        let folder = it.folder.display();
        bail!("say which, with --serial or --certificate; `entente certs show {folder}` lists what was issued");
    }
    for TakenBack { issued, was_already, was_the_last } in authority.revoke(&named)? {
        let Issued { serial, name, is_for_peers, ends_s, revoked_s } = issued;
        let ends = date(ends_s);
        if was_already {
            println!("{name}: {serial} was revoked on {}, and stays so", date(revoked_s.unwrap_or_default()));
        } else {
            println!("{name}: {serial} is revoked; it would have ended on {ends}");
        }
        if !is_for_peers {
            eprintln!(
                "note: gateways refuse it, but researchers' programs do not ask for lists: whoever has the key of this \
                 public certificate can use it until {ends}"
            );
        }
        if was_the_last {
            eprintln!(
                "warning: {name} has no other certificate in this authority's record. Issue one with `entente certs \
                 gateway` and give it to the gateway first, or no gateway lets it in once this counts"
            );
        }
    }
    let folder = it.folder.display();
    println!(
        "next: `entente certs bundle {folder}`; from that bundle on every gateway refuses what was revoked, and ends the"
    );
    println!("connections that it has with it");
    Ok(())
}

fn add_issuer(it: &AddIssuer) -> anyhow::Result<()> {
    let mut authority = Authority::open(&it.folder)?;
    let mut entitlements = Vec::new();
    for text in &it.roles {
        let (role, urn) = text.split_once('=').with_context(|| format!("{text}: write role=urn"))?;
        entitlements.push((urn.to_owned(), role_named(role)?));
    }
    let jwks_json = fs::read_to_string(&it.jwks).with_context(|| format!("cannot read {}", it.jwks.display()))?;
    authority.add_issuer(IssuerEntry {
        issuer: it.issuer.clone(),
        jwks_json,
        entitlements,
        assurance_max: assurance_named(&it.assurance_max)?,
        clearances: it.clearances.clone(),
        residencies: it.residencies.iter().map(|code| MemberState::parse(code)).collect::<Result<_, _>>()?,
    })?;
    println!("{} is in the statement; sign the next bundle to publish it", it.issuer);
    Ok(())
}

fn role_named(name: &str) -> anyhow::Result<Role> {
    Ok(match name {
        "researcher" => Role::Researcher,
        "operator" => Role::Operator,
        "agency" => Role::Agency,
        other => bail!("{other} is no role; the roles are researcher, operator and agency"),
    })
}

fn assurance_named(name: &str) -> anyhow::Result<Assurance> {
    Ok(match name {
        "low" => Assurance::Low,
        "substantial" => Assurance::Substantial,
        "high" => Assurance::High,
        other => bail!("{other} is no assurance; it is low, substantial or high"),
    })
}

fn bundle(folder: &Path) -> anyhow::Result<()> {
    let signed = Authority::open(folder)?.sign_bundle()?;
    let bundle = signed.open_unchecked()?;
    let revoked: usize =
        bundle.crls_der.iter().filter_map(|it| RevocationList::read(it)).map(|it| it.revoked.len()).sum();
    println!(
        "bundle {} of {} signed: {} gateways, {} issuers, {revoked} revoked certificates",
        bundle.sequence,
        bundle.state,
        bundle.gateways.len(),
        bundle.issuers.len()
    );
    println!(
        "next: have {} where `bundle` of a gateway's configuration says; the gateway publishes it by itself",
        folder.join("bundle.json").display()
    );
    Ok(())
}

fn draft_genesis(it: &DraftGenesis) -> anyhow::Result<()> {
    let mut gateways = Vec::new();
    for text in &it.gateways {
        gateways.push(gateway_record(text)?);
    }
    let mut members = Vec::new();
    let mut federation = None;
    for path in &it.bundles {
        let signed: SignedBundle = read_json(path)?;
        let bundle = signed.verify_first()?;
        let own = |record: &&GatewayRecord| record.id.state == bundle.state;
        members.push(GenesisMember { gateways: gateways.iter().filter(own).cloned().collect(), bundle: signed });
        federation = Some(bundle.federation);
    }
    let federation = federation.context("a genesis needs at least one bundle")?;
    let genesis = Genesis::draft(federation, it.epoch, members)?;
    write_json(&it.out, &genesis)?;
    println!("{}: every founding state signs it now", it.out.display());
    Ok(())
}

/// `FR/fr-1,node=1,peer=host:port,api=https://host:port`
fn gateway_record(text: &str) -> anyhow::Result<GatewayRecord> {
    let mut parts = text.split(',');
    let id = GatewayId::parse(parts.next().unwrap_or_default())?;
    let (mut node, mut peer, mut api) = (None, None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("node", value)) => node = Some(value.parse().context("node is a number")?),
            Some(("peer", value)) => peer = Some(value.to_owned()),
            Some(("api", value)) => api = Some(value.to_owned()),
            _ => bail!("{part}: write node=, peer= or api="),
        }
    }
    Ok(GatewayRecord {
        id,
        node_id: node.context("node= is missing")?,
        peer_address: peer.context("peer= is missing")?,
        api_url: api.context("api= is missing")?,
    })
}

fn sign_genesis(folder: &Path, path: &Path) -> anyhow::Result<()> {
    let authority = Authority::open(folder)?;
    let draft: GenesisDraft = read_json(path)?;
    let draft = draft.sign(authority.statement().state, &authority.root()?)?;
    write_json(path, &draft)?;
    match draft.complete() {
        Ok(_) => println!("{}: every founding state has signed", path.display()),
        Err(missing) => println!("{}: signed; still {missing}", path.display()),
    }
    Ok(())
}

fn show(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return show_record(&Authority::open(path)?);
    }
    if let Some(certificate) = fs::read_to_string(path).ok().and_then(|text| Certificate::read_pem(&text)) {
        show_certificate(&certificate);
        return Ok(());
    }
    if let Ok(signed) = read_json::<SignedBundle>(path) {
        let bundle = signed.open_unchecked()?;
        println!("trust bundle {} of {}", bundle.sequence, bundle.state);
        println!("  root key    {}", bundle.root_key.id());
        for gateway in &bundle.gateways {
            println!("  gateway     {} key {}", gateway.name, gateway.key.id());
        }
        for issuer in &bundle.issuers {
            println!("  issuer      {}", issuer.issuer);
        }
        for authority in bundle.ca_certs_der.iter().filter_map(|it| Certificate::read(it)) {
            println!("  authority   {}, until {}", authority.name, date(authority.ends_s));
        }
        for list in &bundle.crls_der {
            show_list(list)?;
        }
        return Ok(());
    }
    let draft: GenesisDraft = read_json(path)?;
    println!("genesis of {}, epoch {}", draft.federation(), draft.epoch());
    for gateway in draft.gateways() {
        println!("  {}  node {}  {}", gateway.id, gateway.node_id, gateway.peer_address);
    }
    draft.complete().context("its signatures do not hold")?;
    println!("all signatures hold");
    Ok(())
}

/// What a state takes back. A list that is over shuts the state out, so that is said in time.
fn show_list(der: &[u8]) -> anyhow::Result<()> {
    let list = RevocationList::read(der).context("a revocation list in it cannot be read")?;
    let next_update = list.ends_s.map_or("never".into(), date);
    println!(
        "  revocation  list of {}, {} certificates, next update {next_update}",
        list.authority,
        list.revoked.len()
    );
    for Revoked { serial, at_s } in &list.revoked {
        println!("  revoked     {serial} since {}", date(*at_s));
    }
    match list.ends_s {
        Some(ends_s) if ends_s <= now_s() => {
            println!(
                "  WARNING     this list is over: no gateway of the state is let in anywhere until a new bundle is published"
            );
        }
        Some(ends_s) if ends_s <= now_s() + ANNOUNCED_MAX_S => {
            println!(
                "  WARNING     this list ends soon, and then no gateway of the state is let in anywhere: sign the next bundle"
            );
        }
        _ => {}
    }
    Ok(())
}

fn show_certificate(it: &Certificate) {
    println!("certificate {} of {}", it.serial, it.name);
    println!("  authority   {}", it.authority);
    println!("  from        {}", date(it.begins_s));
    println!("  until       {}{}", date(it.ends_s), if it.ends_s < now_s() { ", which is past" } else { "" });
    println!("  for         {}", if it.is_for_peers { "meeting peers" } else { "a public face, or an authority" });
}

fn show_record(authority: &Authority) -> anyhow::Result<()> {
    println!("authority of {} in {}", authority.statement().state, authority.statement().federation);
    let record = authority.record()?;
    for Issued { serial, name, is_for_peers, ends_s, revoked_s } in record.issued() {
        let face = if *is_for_peers { "peer  " } else { "public" };
        let becomes = match revoked_s {
            Some(at_s) => format!("revoked {}", date(*at_s)),
            None if *ends_s < now_s() => "ended".into(),
            None => format!("until {}", date(*ends_s)),
        };
        println!("  {face}  {serial:<40}  {becomes}  {name}");
    }
    if record.issued().is_empty() {
        println!("  no certificates are recorded; those of before there was a record are revoked by their files");
    }
    Ok(())
}

fn read_json<T: for<'a> serde::Deserialize<'a>>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is another kind of file", path.display()))
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    replace(path, &serde_json::to_vec_pretty(value)?, 0o644)
}
