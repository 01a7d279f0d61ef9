//! Inputs, outputs and volumes of a task.
//! Invariants: an input has content or a place it comes from, never both; no two inputs share a path;
//! an output with wildcards has the prefix that is cut from what they find, and no other has one.

use std::collections::BTreeSet;

use super::json::{self, Node, Object};
use super::mistake::{BadTask, Mistake, Pointer};
use super::model::{FileType, Input, Output, Task};
use super::path::{self, PATH_BYTES_MAX, URL_BYTES_MAX};
use super::task::{BODY_BYTES_MAX, DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX};
use crate::driver::TOPS_MAX;

/// Some engines stage each file of a data set as one input; 4,096 x ~200 B = 0.8 MiB of the body.
const INPUTS_MAX: usize = 4_096;
/// As many as inputs.
const OUTPUTS_MAX: usize = 4_096;
/// Folders to mount.
const VOLUMES_MAX: usize = 64;

/// Takes `inputs`. Adds a warning for each `url` that does not count.
pub fn inputs(task: &mut Object, warnings: &mut Vec<String>) -> Result<Vec<Input>, BadTask> {
    let mut paths = BTreeSet::new();
    let mut inputs = Vec::new();
    for (at, node) in task.list("inputs", INPUTS_MAX)? {
        let input = input(&at, node, warnings)?;
        if !paths.insert(input.path.clone()) {
            let fix = "another input has the same path; give each its own";
            return Err(at.member("path").is(Mistake::Contradiction { fix }));
        }
        inputs.push(input);
    }
    Ok(inputs)
}

fn input(at: &Pointer, node: Node, warnings: &mut Vec<String>) -> Result<Input, BadTask> {
    let mut object = Object::new(at.clone(), node)?;
    let file_type = file_type(&mut object)?;
    let content = object.text("content", BODY_BYTES_MAX)?;
    let url = object.text("url", URL_BYTES_MAX)?.filter(|url| !url.is_empty());
    let path = object.needed_text("path", PATH_BYTES_MAX)?;
    let (url, content) = match (url, content) {
        // The specification: "If content is not empty, url must be ignored."
        (url, Some(content)) if url.is_none() || !content.is_empty() => {
            if url.is_some() {
                let place = at.member("url");
                warnings.push(format!("{}: ignored, since content is given", place.as_str()));
            }
            (None, Some(content))
        }
        (Some(url), _) => (Some(path::parse_url(&object.at("url"), &url)?), None),
        (None, _) => return Err(object.at("url").is(Mistake::Missing)),
    };
    if content.is_some() && file_type == Some(FileType::Directory) {
        let fix = "content is one file; set type to FILE, or give a url";
        return Err(object.at("type").is(Mistake::Contradiction { fix }));
    }
    let input = Input {
        name: object.text("name", NAME_BYTES_MAX)?,
        description: object.text("description", DESCRIPTION_BYTES_MAX)?,
        url,
        path: path::parse_own(&object.at("path"), &path)?,
        file_type,
        content,
        streamable: object.flag("streamable")?,
    };
    object.finish()?;
    Ok(input)
}

/// Takes `outputs`.
pub fn outputs(task: &mut Object) -> Result<Vec<Output>, BadTask> {
    let entries = task.list("outputs", OUTPUTS_MAX)?;
    entries.into_iter().map(|(at, node)| output(at, node)).collect()
}

fn output(at: Pointer, node: Node) -> Result<Output, BadTask> {
    let mut object = Object::new(at, node)?;
    let path = object.needed_text("path", PATH_BYTES_MAX)?;
    let path = path::parse_own(&object.at("path"), &path)?;
    let path_prefix = path_prefix(&mut object, &path)?;
    let url = object.needed_text("url", URL_BYTES_MAX)?;
    let output = Output {
        name: object.text("name", NAME_BYTES_MAX)?,
        description: object.text("description", DESCRIPTION_BYTES_MAX)?,
        url: path::parse_url(&object.at("url"), &url)?,
        path,
        path_prefix,
        file_type: file_type(&mut object)?,
    };
    object.finish()?;
    Ok(output)
}

/// "Required if path contains wildcards, ignored otherwise."
fn path_prefix(output: &mut Object, path: &str) -> Result<Option<String>, BadTask> {
    let at = output.at("path_prefix");
    let prefix = output.text("path_prefix", PATH_BYTES_MAX)?;
    if !path::has_wildcard(path) {
        return Ok(None);
    }
    let prefix = prefix.ok_or_else(|| at.is(Mistake::Missing))?;
    let prefix = path::parse_own(&at, &prefix)?;
    if path::has_wildcard(&prefix) || !path::is_above(&prefix, path) {
        let rule = "name a folder above path, without wildcards";
        return Err(at.is(Mistake::text(&prefix, rule)));
    }
    Ok(Some(prefix))
}

/// Takes `volumes`.
pub fn volumes(task: &mut Object) -> Result<Vec<String>, BadTask> {
    let entries = task.list("volumes", VOLUMES_MAX)?;
    let volume = |(at, node)| {
        let text = json::text(&at, node, PATH_BYTES_MAX)?;
        path::parse_own(&at, &text)
    };
    entries.into_iter().map(volume).collect()
}

fn file_type(object: &mut Object) -> Result<Option<FileType>, BadTask> {
    match object.text("type", NAME_BYTES_MAX)?.as_deref() {
        None => Ok(None),
        Some("FILE") => Ok(Some(FileType::File)),
        Some("DIRECTORY") => Ok(Some(FileType::Directory)),
        Some(other) => {
            let rule = "write FILE or DIRECTORY";
            Err(object.at("type").is(Mistake::text(other, rule)))
        }
    }
}

/// Every folder of `/` with paths of the task costs its sandbox a mount, so they are few.
pub fn check_tops(task: &Task) -> Result<(), BadTask> {
    let steps = task.executors.iter().flat_map(|it| [&it.workdir, &it.stdin, &it.stdout, &it.stderr]).flatten();
    let inputs = task.inputs.iter().map(|it| &it.path);
    let outputs = task.outputs.iter().map(|it| &it.path);
    let tops: BTreeSet<&str> =
        steps.chain(inputs).chain(outputs).chain(&task.volumes).map(|it| path::top(it)).collect();
    if tops.len() > TOPS_MAX {
        let fix = "its paths lie in more than 64 folders of `/`; put them below fewer, such as `/work`";
        return Err(Pointer::default().is(Mistake::Contradiction { fix }));
    }
    Ok(())
}
