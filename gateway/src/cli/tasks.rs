//! `entente submit`, `tasks`, `logs` and `cancel`: a researcher's tasks.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::Output;
use super::client::{Answer, Client};
use super::table::{cell, table};

/// Where the tasks live on every gateway.
const TASKS: &str = "/ga4gh/tes/v1/tasks";
/// How often `--wait` and `logs -f` look.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A task document beyond this is refused by every gateway.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What to submit or explain.
#[derive(Args, Clone, Debug, Default)]
pub struct Submit {
    /// A TES task as JSON; `-` reads standard input
    #[arg(short, long, conflicts_with = "command")]
    pub file: Option<PathBuf>,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    /// GPUs, as the devices are sold
    #[arg(long)]
    pub gpus: Option<u32>,
    /// Device model, for example H100
    #[arg(long)]
    pub model: Option<String>,
    /// Nodes to spread the GPUs over
    #[arg(long)]
    pub nodes: Option<u32>,
    /// Longest run, in seconds
    #[arg(long)]
    pub walltime_s: Option<u32>,
    /// public, internal, personal or health
    #[arg(long)]
    pub data_class: Option<String>,
    /// research, education, industry or defence
    #[arg(long)]
    pub purpose: Option<String>,
    /// The task's technology is on the dual-use list
    #[arg(long)]
    pub dual_use: bool,
    /// Only these states or factories: FR, or FR/jean-zay
    #[arg(long)]
    pub zone: Vec<String>,
    /// A project, for rules and for the account at the factory
    #[arg(long, conflicts_with = "file")]
    pub project: Option<String>,
    /// A tag, name=value; as often as needed
    #[arg(long = "tag", value_name = "NAME=VALUE", conflicts_with = "file")]
    pub tags: Vec<String>,
    /// A variable of the task's environment, name=value; as often as needed
    #[arg(long = "env", value_name = "NAME=VALUE", conflicts_with = "file")]
    pub variables: Vec<String>,
    /// Container image, where the factory runs images
    #[arg(long, default_value = "none")]
    pub image: String,
    /// Makes a repeated submission harmless
    #[arg(long)]
    pub idempotency_key: Option<String>,
    /// Wait for the end, print the output, and exit with 3 if the task failed
    #[arg(long)]
    pub wait: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// Which tasks to show.
#[derive(Args, Clone, Debug)]
pub struct Tasks {
    /// One task, whole
    pub task: Option<String>,
    /// Only tasks in this state
    #[arg(long)]
    pub state: Option<String>,
    /// Wait for the end of the named task and exit with 3 if it failed
    #[arg(long, requires = "task")]
    pub wait: bool,
}

/// What to print of a task's output.
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// The task's id
    pub task: String,
    /// Go on until the task has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Print what was written to standard error
    #[arg(long)]
    pub stderr: bool,
    /// Which of the task's executors, from 0
    #[arg(long, default_value_t = 0)]
    pub executor: u32,
}

/// Submits a task and prints its id.
pub async fn submit(client: &mut Client, task: &Submit, output: Output) -> anyhow::Result<ExitCode> {
    let mut headers = vec![];
    if let Some(key) = &task.idempotency_key {
        let value = HeaderValue::from_str(key).context("the idempotency key is not plain text")?;
        headers.push((HeaderName::from_static("idempotency-key"), value));
    }
    let body = serde_json::to_vec(&document(task)?)?;
    let answer = client.call(Method::POST, TASKS, Some(body), &headers).await?;
    if !answer.status.is_success() {
        print_refusal(&answer, output);
        return Ok(ExitCode::FAILURE);
    }
    let answer = answer.json()?;
    match output {
        Output::Json => println!("{answer}"),
        Output::Table => println!("{}", cell(&answer["id"])),
    }
    if task.wait {
        let id = answer["id"].as_str().context("the answer names no task")?;
        return wait(client, id, output).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists the caller's tasks, or shows one.
pub async fn tasks(client: &mut Client, which: &Tasks, output: Output) -> anyhow::Result<ExitCode> {
    if let Some(task) = &which.task {
        if which.wait {
            return wait(client, task, output).await;
        }
        let task = client.read(&format!("{TASKS}/{task}?view=FULL")).await?;
        match output {
            Output::Json => println!("{task}"),
            Output::Table => println!("{}", serde_json::to_string_pretty(&task)?),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut path = format!("{TASKS}?view=BASIC");
    if let Some(state) = &which.state {
        path.push_str(&format!("&state={}", state.to_uppercase()));
    }
    let answer = client.read(&path).await?;
    if output == Output::Json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let tasks = answer["tasks"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            vec![
                cell(&task["id"]),
                cell(&task["state"]),
                cell(&task["name"]),
                cell(&task["logs"][0]["metadata"]["pool"]),
                cell(&task["creation_time"]),
            ]
        })
        .collect();
    print!("{}", table(&["TASK", "STATE", "NAME", "POOL", "CREATED"], &rows));
    Ok(ExitCode::SUCCESS)
}

/// Prints one stream of a task, from the start; with `-f` until the end.
pub async fn logs(client: &mut Client, which: &Logs) -> anyhow::Result<()> {
    let pipe = if which.stderr { "stderr" } else { "stdout" };
    let mut offset = 0;
    loop {
        let path = format!("/v1/tasks/{}/logs?executor={}&pipe={pipe}&offset={offset}", which.task, which.executor);
        let answer = client.call(Method::GET, &path, None, &[]).await?;
        if !answer.status.is_success() {
            answer.json()?;
        }
        std::io::stdout().write_all(&answer.body)?;
        std::io::stdout().flush()?;
        let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
        let next = number("entente-next-offset").context("the answer names no next offset")?;
        let ended = answer.headers.get("entente-end").is_some_and(|it| it == "true");
        if ended || (!which.follow && next == offset) {
            return Ok(());
        }
        if next == offset {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        offset = next;
    }
}

/// Asks for a task's end.
pub async fn cancel(client: &mut Client, task: &str) -> anyhow::Result<()> {
    client.post(&format!("{TASKS}/{task}:cancel"), &json!({})).await?;
    let task = client.read(&format!("{TASKS}/{task}")).await?;
    println!("{} {}", cell(&task["id"]), cell(&task["state"]));
    Ok(())
}

/// Waits for a task's end, by asking; returns the whole task.
pub async fn ended(client: &mut Client, task: &str) -> anyhow::Result<Value> {
    loop {
        let seen = client.read(&format!("{TASKS}/{task}")).await?;
        let state = seen["state"].as_str().unwrap_or_default();
        if ["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"].contains(&state) {
            return client.read(&format!("{TASKS}/{task}?view=FULL")).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn wait(client: &mut Client, task: &str, output: Output) -> anyhow::Result<ExitCode> {
    let task = ended(client, task).await?;
    match output {
        Output::Json => println!("{task}"),
        Output::Table => print_end(&task)?,
    }
    Ok(if task["state"] == "COMPLETE" { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// How a task ended, on standard error, and the end of what it wrote, each stream on its own.
fn print_end(task: &Value) -> anyhow::Result<()> {
    let steps = task["logs"][0]["logs"].as_array().map_or(&[][..], Vec::as_slice);
    for step in steps {
        std::io::stdout().write_all(step["stdout"].as_str().unwrap_or_default().as_bytes())?;
        std::io::stderr().write_all(step["stderr"].as_str().unwrap_or_default().as_bytes())?;
    }
    std::io::stdout().flush()?;
    let pool = match &task["logs"][0]["metadata"]["pool"] {
        Value::Null => String::new(),
        pool => format!(" in {}", cell(pool)),
    };
    eprintln!("{} {}{pool}", cell(&task["id"]), cell(&task["state"]));
    if let Some(lines) = task["logs"][0]["system_logs"].as_array().filter(|_| task["state"] == "SYSTEM_ERROR") {
        lines.iter().for_each(|line| eprintln!("  {}", cell(line)));
    }
    Ok(())
}

/// The TES document that the flags describe.
pub fn document(task: &Submit) -> anyhow::Result<Value> {
    if let Some(path) = &task.file {
        return read_document(path);
    }
    if task.command.is_empty() {
        bail!("nothing to run: name a TES document with --file, or a command after `--`");
    }
    let mut parameters = serde_json::Map::new();
    let mut parameter = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            parameters.insert(name.into(), value.into());
        }
    };
    parameter("gpu_count", task.gpus.map(|it| it.to_string()));
    parameter("gpu_model", task.model.clone());
    parameter("nodes", task.nodes.map(|it| it.to_string()));
    parameter("walltime_s", task.walltime_s.map(|it| it.to_string()));
    let labels = [
        ("project", task.project.as_deref()),
        ("data_class", task.data_class.as_deref()),
        ("purpose", task.purpose.as_deref()),
        ("dual_use", task.dual_use.then_some("true")),
    ];
    let labels = labels.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
    let tags = pairs("--tag", &task.tags.iter().cloned().chain(labels).collect::<Vec<_>>())?;
    let name = task.name.clone().unwrap_or_else(|| task.command[0].clone());
    Ok(json!({
        "name": name,
        "executors": [{"image": task.image, "command": task.command, "env": pairs("--env", &task.variables)?}],
        "resources": {
            "zones": task.zone,
            "backend_parameters": parameters,
            "backend_parameters_strict": true,
        },
        "tags": tags,
    }))
}

/// `name=value` flags as an object.
fn pairs(flag: &str, given: &[String]) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut pairs = serde_json::Map::new();
    for text in given {
        let (name, value) = text.split_once('=').with_context(|| format!("{flag} {text}: write name=value"))?;
        if pairs.insert(name.to_owned(), value.into()).is_some() {
            bail!("{name} is given twice; give it once");
        }
    }
    Ok(pairs)
}

fn read_document(path: &PathBuf) -> anyhow::Result<Value> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(DOCUMENT_BYTES_MAX).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .take(DOCUMENT_BYTES_MAX)
            .read_to_string(&mut text)?;
    }
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

fn print_refusal(answer: &Answer, output: Output) {
    if output == Output::Json {
        println!("{}", String::from_utf8_lossy(&answer.body));
        return;
    }
    if let Err(refusal) = answer.json() {
        eprintln!("entente: {refusal}");
    }
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if problem["pools"].is_array() {
        let shown = json!({"summary": problem["title"], "pools": problem["pools"]});
        eprint!("\n{}", super::explain::text(&shown));
    }
}
