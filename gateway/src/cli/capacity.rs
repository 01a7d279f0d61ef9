//! `entente capacity`: what every state lends, and how old each figure is.

use serde_json::Value;

use super::Output;
use super::client::Client;
use super::table::{age, cell, table};

/// How far a host's clock may be ahead of the asked gateway's before its figures' age means nothing.
const CLOCK_AHEAD_MAX_MS: u64 = 2_000;

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
                shown_age(pool),
                cell(&pool["problem"]),
            ]
        })
        .collect();
    let heading = ["STATE", "POOL", "MODEL", "FREE", "GPUS", "LARGEST GANG", "QUEUED", "AGE", "PROBLEM"];
    format!("{}revision {}\n", table(&heading, &rows), cell(&answer["revision"]))
}

/// A report from the future has no age; a clock that is a little ahead does no harm.
fn shown_age(pool: &Value) -> String {
    match pool["clock_ahead_ms"].as_u64() {
        Some(ahead) if ahead > CLOCK_AHEAD_MAX_MS => "unknown".into(),
        _ => age(&pool["age_ms"]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_from_the_future_is_not_fresh() {
        let pool = |ahead| json!({"pool": "FR/a/b", "age_ms": 0, "clock_ahead_ms": ahead});
        assert!(text(&json!({"pools": [pool(100)], "revision": 1})).contains("0.0 s"));
        assert!(text(&json!({"pools": [pool(60_000)], "revision": 1})).contains("unknown"));
    }
}
