//! `entente health`: whether a gateway can do its work, for health checks of containers and load balancers.

use anyhow::bail;

use super::Output;
use super::client::Client;
use super::table::cell;

/// Prints what the gateway says of itself. It fails unless the gateway knows a leader and the rules of this many states.
pub async fn health(client: &mut Client, packs_min: u64, output: Output) -> anyhow::Result<()> {
    let answer = client.read("/v1/health").await?;
    match output {
        Output::Json => println!("{answer}"),
        Output::Table => {
            println!(
                "{}/{} {}, revision {}, rules of {} states",
                cell(&answer["state"]),
                cell(&answer["gateway"]),
                cell(&answer["status"]),
                cell(&answer["revision"]),
                cell(&answer["packs"]),
            );
            for warning in answer["warnings"].as_array().into_iter().flatten() {
                println!("warning: {}", cell(warning));
            }
        }
    }
    if answer["status"] != "ok" {
        bail!("the gateway knows no leader: more than half of the gateways may be away");
    }
    if answer["packs"].as_u64() < Some(packs_min) {
        bail!("the gateway knows the rules of {} states, not of {packs_min}", cell(&answer["packs"]));
    }
    Ok(())
}
