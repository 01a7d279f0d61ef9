//! Samples: what tests need some of, and do not care which.

use certs::GatewayName;
use federation::{DeviceModel, Offer, PoolId};

/// The configuration of FR/fr-1, with every file beside it.
pub const CONFIG: &str = r#"
gateway = "FR/fr-1"
data_dir = "data"
genesis = "genesis.json"
public_listen = "127.0.0.1:0"
peer_listen = "127.0.0.1:0"
bundle = "bundle.json"
[local]
isolation = "process"
[keys]
signing = "signing.pem"
peer_cert = "peer.pem"
peer_key = "peer.key"
public_cert = "public.pem"
public_key = "public.key"
pseudonym_secret = "pseudonym.secret"
"#;

/// Two nodes of four GPUs, served by the first gateway of the pool's state.
pub fn offer(pool: &str) -> Offer {
    let pool = PoolId::parse(pool).expect("a pool");
    let first = format!("{}-1", pool.state().to_string().to_lowercase());
    Offer {
        pool,
        served_by: GatewayName::parse(&first).expect("a name"),
        sequence: 1,
        model: DeviceModel {
            name: "H100-80".into(),
            vendor: "NVIDIA".into(),
            memory_gib: 80,
            scheduler_units: 1,
            partition: None,
        },
        nodes: 2,
        gpus_per_node: 4,
        task_slots: 8,
        walltime_max_s: 86_400,
        certifications: vec![],
        carbon_g_per_kwh: 0,
        price_milli_eur_per_gpu_hour: 0,
        city: "Orsay".into(),
        until: None,
        keeps_leases: true,
    }
}
