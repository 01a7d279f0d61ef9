//! Submissions: task documents from outside that have been understood to the last member.
//!
//! Invariants: only [`Submission::parse`] and [`Submission::from_payload`] make one, and both check
//! everything; the payload of a submission parses to the same submission. A member that the
//! specification does not have is refused: it is more likely a slip than a wish.

use std::collections::BTreeMap;

use super::json::{self, Object};
use super::mistake::{BadTask, Mistake, Pointer};
use super::model::Task;
use super::requirements::Requirements;
use super::{executor, files, resources};

/// Bytes of a task document. Small files travel inside as `content`; TES asks for at least 128 KiB.
pub const BODY_BYTES_MAX: usize = 4 * 1_024 * 1_024;
/// A payload is written anew: a rounded number may take more digits than the client spent on it.
const PAYLOAD_BYTES_MAX: usize = BODY_BYTES_MAX + 1_024;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 16 * 1_024;
/// Entries of `tags`.
const TAGS_MAX: usize = 64;
/// Bytes of a tag's key.
const TAG_KEY_BYTES_MAX: usize = 256;
/// Bytes of a tag's value.
const TAG_VALUE_BYTES_MAX: usize = 4_096;
/// Members that a server sets. A client that sends a task back means none of them.
const READ_ONLY: [&str; 4] = ["id", "state", "logs", "creation_time"];

const ONE_LINE: &str = "write it without control characters";

/// A task that a client may submit.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    task: Task,
    warnings: Vec<String>,
}

impl Submission {
    /// Reads a client's body. Unsupported backend parameters are dropped with a warning, or refused
    /// if the client asked for that.
    pub fn parse(body: &[u8]) -> Result<Submission, BadTask> {
        Submission::parse_bounded(body, BODY_BYTES_MAX)
    }

    /// Reads what [`Submission::payload`] wrote, as strictly as a client's body: it may come from
    /// another gateway.
    pub fn from_payload(payload: &[u8]) -> Result<Submission, BadTask> {
        Submission::parse_bounded(payload, PAYLOAD_BYTES_MAX)
    }

    /// The task as JSON: what is stored, and whose digest the registry holds.
    pub fn payload(&self) -> Vec<u8> {
        serde_json::to_vec(&self.task).expect("invariant: a task is texts, numbers and lists")
    }

    /// The task, without any member that a server sets.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// What was dropped from the client's document and why, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the task asks of the federation.
    pub fn requirements(&self) -> Result<Requirements, BadTask> {
        Requirements::of(&self.task, &self.warnings)
    }

    fn parse_bounded(body: &[u8], limit: usize) -> Result<Submission, BadTask> {
        let whole = Pointer::default();
        if body.len() > limit {
            return Err(whole.is(Mistake::BodyTooLarge { limit }));
        }
        let mut object = Object::new(whole, json::parse(body)?)?;
        object.ignore(&READ_ONLY);
        let mut warnings = vec![];
        let task = Task {
            name: name(&mut object)?,
            description: object.text("description", DESCRIPTION_BYTES_MAX)?,
            inputs: files::inputs(&mut object, &mut warnings)?,
            outputs: files::outputs(&mut object)?,
            resources: resources::resources(&mut object, &mut warnings)?,
            executors: executor::executors(&mut object)?,
            volumes: files::volumes(&mut object)?,
            tags: tags(&mut object)?,
            ..Task::default()
        };
        object.finish()?;
        files::check_tops(&task)?;
        Ok(Submission { task, warnings })
    }
}

/// A name stands in one line of a table.
fn name(task: &mut Object) -> Result<Option<String>, BadTask> {
    let name = task.text("name", NAME_BYTES_MAX)?;
    match name {
        Some(name) if name.chars().any(char::is_control) => Err(task.at("name").is(Mistake::text(&name, ONE_LINE))),
        name => Ok(name),
    }
}

fn tags(task: &mut Object) -> Result<BTreeMap<String, String>, BadTask> {
    let at = task.at("tags");
    let tags = task.texts("tags", TAGS_MAX, TAG_VALUE_BYTES_MAX)?;
    for key in tags.keys() {
        if key.len() > TAG_KEY_BYTES_MAX {
            let limit = TAG_KEY_BYTES_MAX;
            return Err(at.member(key).is(Mistake::TooLong { limit }));
        }
    }
    Ok(tags)
}
