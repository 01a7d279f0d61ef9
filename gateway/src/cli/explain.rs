//! `entente why` and `entente explain`: every pool, with what each state and the capacity say.

use serde_json::Value;

use super::Output;
use super::client::Client;
use super::table::{cell, plain, table};
use super::tasks::{Submit, document};

/// Prints why a task is where it is.
pub async fn why(client: &mut Client, task: &str, output: Output) -> anyhow::Result<()> {
    let answer = client.read(&format!("/v1/tasks/{task}/why")).await?;
    print(&answer, output);
    Ok(())
}

/// Prints where a task could run, without submitting it.
pub async fn explain(client: &mut Client, task: &Submit, output: Output) -> anyhow::Result<()> {
    let answer = client.post("/v1/explain", &document(task)?).await?;
    print(&answer, output);
    Ok(())
}

fn print(answer: &Value, output: Output) {
    match output {
        Output::Json => println!("{answer}"),
        Output::Table => print!("{}", text(answer)),
    }
}

/// The answer in words, then the attempts, one line per pool, and the rules that decided.
pub fn text(answer: &Value) -> String {
    let mut text = format!("{}\n\n", cell(&answer["summary"]));
    if let Some(attempts) = answer["attempts"].as_array().filter(|it| !it.is_empty()) {
        text.push_str(&table(
            &["ATTEMPT", "POOL", "GPUS", "OUTCOME"],
            &attempts.iter().map(attempt).collect::<Vec<_>>(),
        ));
        text.push('\n');
    }
    let pools = answer["pools"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = pools
        .iter()
        .map(|pool| {
            vec![cell(&pool["pool"]), verdict(&pool["export"]), verdict(&pool["host"]), cell(&pool["capacity"])]
        })
        .collect();
    let heading = ["POOL", "MAY LEAVE HOME", "MAY BE HOSTED", "CAPACITY"];
    text.push_str(&table(&heading, &rows));
    let rules = rules(pools);
    if !rules.is_empty() {
        text.push_str("\nThe rules behind it:\n");
        for rule in rules {
            text.push_str(&rule);
        }
    }
    text
}

fn attempt(attempt: &Value) -> Vec<String> {
    let outcome = match (&attempt["declined"], &attempt["end"]) {
        (Value::Null, Value::Null) => "under way".into(),
        (Value::Null, end) => cell(end),
        (declined, _) => format!("declined: {}", cell(declined)),
    };
    vec![cell(&attempt["number"]), cell(&attempt["pool"]), cell(&attempt["gpus"]), outcome]
}

/// `FR permits (fr-research)` or `DE denies (de-dual-use)`.
fn verdict(decision: &Value) -> String {
    let answer = if decision["permitted"] == true { "permits" } else { "denies" };
    let rules: Vec<String> =
        decision["rules"].as_array().map_or(&[][..], Vec::as_slice).iter().map(|rule| cell(&rule["id"])).collect();
    let because = if rules.is_empty() { cell(&decision["reason"]) } else { rules.join(", ") };
    format!("{} {answer} ({because})", cell(&decision["state"]))
}

/// Each rule once: what it is called and which law it rests on.
fn rules(pools: &[Value]) -> Vec<String> {
    let mut lines = std::collections::BTreeSet::new();
    for pool in pools {
        let limit = &pool["limit"];
        let from = limit["below_percent"].as_u64().map(|percent| format!(" from {percent} % of a pool on"));
        let sides =
            [(&pool["export"], ""), (&pool["host"], ""), (&limit["denial"], from.as_deref().unwrap_or_default())];
        for (decision, from) in sides {
            for rule in decision["rules"].as_array().map_or(&[][..], Vec::as_slice) {
                lines.insert(format!(
                    "  {} {}{from}: {}\n      {}\n",
                    cell(&decision["state"]),
                    cell(&rule["id"]),
                    plain(rule["title"].as_str().unwrap_or_default()),
                    plain(rule["law"].as_str().unwrap_or_default()),
                ));
            }
        }
    }
    lines.into_iter().collect()
}
