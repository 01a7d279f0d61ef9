//! The schemas of TES 1.1, member by member, as they are sent.
//!
//! Invariant: nothing is ever written that the specification does not name. Clients build strict
//! classes from answers and fail on one unknown member. What is absent is left out, never `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `tesTask`. A view leaves out what the client did not ask for, also `executors`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Task {
    /// Assigned by the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Assigned by the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Files that are there before the first executor starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Files that are kept after the last executor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// What the task asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Run one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub executors: Vec<Executor>,
    /// Empty folders that all executors share, absolute paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Labels; some have a meaning here, see [`super::requirements`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// One entry: the attempt that counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<TaskLog>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<String>,
}

/// `tesState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Nothing is known.
    Unknown,
    /// Waits for a pool.
    Queued,
    /// Has a pool and is being prepared.
    Initializing,
    /// Its executors run.
    Running,
    /// Never used here.
    Paused,
    /// Ended well.
    Complete,
    /// An executor failed.
    ExecutorError,
    /// Anything else failed.
    SystemError,
    /// Ended because the client asked for it; its GPUs are free.
    Canceled,
    /// The client asked for its end; its GPUs may still be held.
    Canceling,
    /// Never used here: clients would poll for ever.
    Preempted,
}

impl State {
    /// All of them, in the specification's order.
    pub const ALL: [State; 11] = [
        State::Unknown,
        State::Queued,
        State::Initializing,
        State::Running,
        State::Paused,
        State::Complete,
        State::ExecutorError,
        State::SystemError,
        State::Canceled,
        State::Preempted,
        State::Canceling,
    ];

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "UNKNOWN",
            State::Queued => "QUEUED",
            State::Initializing => "INITIALIZING",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Complete => "COMPLETE",
            State::ExecutorError => "EXECUTOR_ERROR",
            State::SystemError => "SYSTEM_ERROR",
            State::Canceled => "CANCELED",
            State::Canceling => "CANCELING",
            State::Preempted => "PREEMPTED",
        }
    }

    /// The state of this name, exactly as the specification writes it.
    pub fn parse(text: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// `tesFileType`. Absent means `FILE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum FileType {
    /// One file.
    #[default]
    File,
    /// A folder with everything in it.
    Directory,
}

/// `tesInput`. Exactly one of `url` and `content` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Input {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where it comes from: a URL, or an absolute path at the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Absolute path where executors see it.
    pub path: String,
    /// File or folder.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub file_type: Option<FileType>,
    /// The file itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A hint that is kept and not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streamable: Option<bool>,
}

/// `tesOutput`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Output {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where it goes; a folder if `path` has wildcards.
    pub url: String,
    /// Absolute path where executors leave it; may have POSIX wildcards.
    pub path: String,
    /// Cut from what the wildcards found; there if and only if `path` has wildcards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// File or folder.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub file_type: Option<FileType>,
}

/// `tesResources`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Resources {
    /// Cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// May be ended and started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptible: Option<bool>,
    /// Memory, in gigabytes of 10^9 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_gb: Option<f64>,
    /// Disk, in gigabytes of 10^9 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<f64>,
    /// `FR`, or `FR/jean-zay`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Only supported keys, in the client's spelling.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backend_parameters: BTreeMap<String, String>,
    /// Refuse what is not supported, instead of dropping it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_parameters_strict: Option<bool>,
}

/// `tesExecutor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Executor {
    /// Container image.
    pub image: String,
    /// Program and arguments, at least one.
    pub command: Vec<String>,
    /// Absolute path of the folder it starts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Absolute path of the file it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Absolute path of the file it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Absolute path of the file it writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Go on with the next executor when this one fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_error: Option<bool>,
}

/// `tesTaskLog`: one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TaskLog {
    /// One entry per executor that was started.
    pub logs: Vec<ExecutorLog>,
    /// Where and how it ran; the place for everything that TES has no member for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// Files that were kept.
    pub outputs: Vec<OutputFileLog>,
    /// What the system has to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_logs: Vec<String>,
}

/// `tesExecutorLog`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExecutorLog {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// The end of what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// The end of what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// 128 + signal if a signal ended it.
    pub exit_code: i32,
}

/// `tesOutputFileLog`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutputFileLog {
    /// Where it went.
    pub url: String,
    /// Where executors left it.
    pub path: String,
    /// A decimal number as text, since JSON has no 64-bit integers.
    pub size_bytes: String,
}

/// `tesCreateTaskResponse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateTaskResponse {
    /// The new task's id.
    pub id: String,
}

/// `tesCancelTaskResponse`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CancelTaskResponse {}

/// `tesListTasksResponse`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ListTasksResponse {
    /// Newest first.
    pub tasks: Vec<Task>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// `tesServiceInfo`: GA4GH service-info 1.0.0 and what TES adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// Reverse domain name.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it serves.
    #[serde(rename = "type")]
    pub service_type: ServiceType,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who runs it.
    pub organization: Organization,
    /// `mailto:` or a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_url: Option<String>,
    /// A page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    /// `prod`, `test`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Of the service, not of TES.
    pub version: String,
    /// Storage locations.
    pub storage: Vec<String>,
    /// The keys of [`super::BACKEND_PARAMETERS`]. The specification spells it like this.
    #[serde(rename = "tesResources_backend_parameters")]
    pub backend_parameters: Vec<String>,
}

/// `tesServiceType`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceType {
    /// `org.ga4gh`
    pub group: String,
    /// `tes`
    pub artifact: String,
    /// `1.1.0`
    pub version: String,
}

impl ServiceType {
    /// TES 1.1.0.
    pub fn tes() -> ServiceType {
        ServiceType { group: "org.ga4gh".into(), artifact: "tes".into(), version: "1.1.0".into() }
    }
}

/// Who runs a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Organization {
    /// For people.
    pub name: String,
    /// A page.
    pub url: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(value: impl Serialize, expected: Value) {
        assert_eq!(serde_json::to_value(value).expect("plain data"), expected);
    }

    #[test]
    fn absent_members_are_left_out_and_names_are_literal() {
        check(Task::default(), json!({}));
        check(TaskLog::default(), json!({"logs": [], "outputs": []}));
        check(ExecutorLog::default(), json!({"exit_code": 0}));
        check(CancelTaskResponse {}, json!({}));
        check(
            OutputFileLog { url: "s3://b/k".into(), path: "/k".into(), size_bytes: "1024".into() },
            json!({"url": "s3://b/k", "path": "/k", "size_bytes": "1024"}),
        );
        check(
            Input { path: "/a".into(), file_type: Some(FileType::Directory), ..Input::default() },
            json!({"path": "/a", "type": "DIRECTORY"}),
        );
        check(ListTasksResponse::default(), json!({"tasks": []}));
    }

    #[test]
    fn service_info_uses_both_spellings_of_the_specification() {
        let info = ServiceInfo {
            id: "example.entente.fr-1".into(),
            name: "Entente".into(),
            service_type: ServiceType::tes(),
            description: None,
            organization: Organization { name: "France".into(), url: "https://example.fr".into() },
            contact_url: Some("mailto:ops@example.fr".into()),
            documentation_url: None,
            created_at: None,
            updated_at: None,
            environment: None,
            version: "0.1.0".into(),
            storage: vec![],
            backend_parameters: vec!["gpu_count".into()],
        };
        check(
            info,
            json!({
                "id": "example.entente.fr-1", "name": "Entente",
                "type": {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"},
                "organization": {"name": "France", "url": "https://example.fr"},
                "contactUrl": "mailto:ops@example.fr", "version": "0.1.0", "storage": [],
                "tesResources_backend_parameters": ["gpu_count"],
            }),
        );
    }

    #[test]
    fn every_state_is_written_and_read_as_the_specification_has_it() {
        for state in State::ALL {
            check(state, json!(state.as_str()));
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        for no_state in ["", "running", "DONE", "RUNNING "] {
            assert_eq!(State::parse(no_state), None, "{no_state:?}");
        }
    }
}
