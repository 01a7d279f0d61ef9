//! `entente capacity`: what every state lends, and how old each figure is.

use serde_json::Value;

use super::Output;
use super::client::Client;
use super::table::{age, cell, table};

/// Prints the federated capacity as the called gateway sees it.
pub async fn capacity(client: &mut Client, output: Output) -> anyhow::Result<()> {
    let answer = client.read("/v1/capacity").await?;
    if output == Output::Json {
        println!("{answer}");
        return Ok(());
    }
    print!("{}", text(&answer));
    Ok(())
}

/// The table of pools with a line of totals per state.
pub fn text(answer: &Value) -> String {
    let pools = answer["pools"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = pools
        .iter()
        .map(|pool| {
            vec![
                cell(&pool["state"]),
                cell(&pool["pool"]),
                cell(&pool["model"]),
                cell(&pool["gpus_free"]),
                cell(&pool["gpus"]),
                cell(&pool["largest_gang"]),
                cell(&pool["jobs_queued"]),
                age(&pool["age_ms"]),
                cell(&pool["problem"]),
            ]
        })
        .collect();
    let heading = ["STATE", "POOL", "MODEL", "FREE", "GPUS", "LARGEST GANG", "QUEUED", "AGE", "PROBLEM"];
    format!("{}revision {}\n", table(&heading, &rows), cell(&answer["revision"]))
}
