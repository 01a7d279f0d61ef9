//! Executors: the programs of a task.
//! Invariants: an executor has a program; nothing in it has a NUL, which no system call could pass on;
//! environment names are names; the image is not an option.

use super::json::{self, Node, Object};
use super::mistake::{BadTask, Mistake, Pointer};
use super::model::Executor;
use super::path::{self, PATH_BYTES_MAX};

/// Steps of one task.
const EXECUTORS_MAX: usize = 64;
/// Arguments of one program, itself included.
const ARGUMENTS_MAX: usize = 4_096;
/// `MAX_ARG_STRLEN` of Linux is 128 KiB with the final NUL; the same holds for `NAME=value`.
const ARGUMENT_BYTES_MAX: usize = 128 * 1_024 - 1;
/// Arguments and environment together. Linux allows a quarter of the stack, 2 MiB by default.
const ARGUMENTS_BYTES_MAX: usize = 1_024 * 1_024;
/// Variables of one program.
const ENVIRONMENT_MAX: usize = 1_024;
/// Bytes of a variable's name.
const ENVIRONMENT_NAME_BYTES_MAX: usize = 256;
/// A registry, a path, a tag and a digest.
const IMAGE_BYTES_MAX: usize = 512;

const NO_NUL: &str = "write it without NUL characters";

/// Takes `executors`.
pub fn executors(task: &mut Object) -> Result<Vec<Executor>, BadTask> {
    let at = task.at("executors");
    let Some(node) = task.take("executors") else {
        return Err(at.is(Mistake::Missing));
    };
    let Node::List(list) = node else {
        return Err(at.is(Mistake::WrongType { expected: "a list" }));
    };
    if list.is_empty() {
        let fix = "give at least one executor";
        return Err(at.is(Mistake::Empty { fix }));
    }
    if list.len() > EXECUTORS_MAX {
        return Err(at.is(Mistake::TooMany { limit: EXECUTORS_MAX }));
    }
    let placed = list.into_iter().enumerate();
    placed.map(|(index, node)| executor(at.entry(index), node)).collect()
}

fn executor(at: Pointer, node: Node) -> Result<Executor, BadTask> {
    let mut object = Object::new(at.clone(), node)?;
    let executor = Executor {
        image: image(&mut object)?,
        command: command(&mut object)?,
        workdir: optional_path(&mut object, "workdir", path::parse_own)?,
        stdin: optional_path(&mut object, "stdin", path::parse_own)?,
        stdout: optional_path(&mut object, "stdout", path::parse_own)?,
        stderr: optional_path(&mut object, "stderr", path::parse_own)?,
        env: environment(&mut object)?,
        ignore_error: object.flag("ignore_error")?,
    };
    object.finish()?;
    let arguments: usize = executor.command.iter().map(|it| it.len() + 1).sum();
    let variables: usize = executor.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if arguments + variables > ARGUMENTS_BYTES_MAX {
        let limit = ARGUMENTS_BYTES_MAX;
        return Err(at.member("command").is(Mistake::TooLong { limit }));
    }
    Ok(executor)
}

/// An image reference or the path of an image file. It reaches a command line, so it is from a
/// closed alphabet and does not begin like an option.
fn image(executor: &mut Object) -> Result<String, BadTask> {
    let at = executor.at("image");
    let image = executor.needed_text("image", IMAGE_BYTES_MAX)?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+~".contains(&byte);
    let good = image.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '/')
        && image.bytes().all(known)
        && !path::climbs(&image);
    if !good {
        let rule = "write an image reference such as `quay.io/org/image:tag`";
        return Err(at.is(Mistake::text(&image, rule)));
    }
    Ok(image)
}

fn command(executor: &mut Object) -> Result<Vec<String>, BadTask> {
    let at = executor.at("command");
    let missing = executor.take("command").ok_or_else(|| at.is(Mistake::Missing))?;
    let Node::List(list) = missing else {
        return Err(at.is(Mistake::WrongType { expected: "a list of texts" }));
    };
    if list.len() > ARGUMENTS_MAX {
        return Err(at.is(Mistake::TooMany { limit: ARGUMENTS_MAX }));
    }
    let mut command = Vec::with_capacity(list.len());
    for (index, node) in list.into_iter().enumerate() {
        let place = at.entry(index);
        let argument = json::text(&place, node, ARGUMENT_BYTES_MAX)?;
        if argument.contains('\0') {
            return Err(place.is(Mistake::text(&argument, NO_NUL)));
        }
        command.push(argument);
    }
    if command.first().is_none_or(String::is_empty) {
        let fix = "give at least the program";
        return Err(at.is(Mistake::Empty { fix }));
    }
    Ok(command)
}

fn environment(executor: &mut Object) -> Result<std::collections::BTreeMap<String, String>, BadTask> {
    let at = executor.at("env");
    let variables = executor.texts("env", ENVIRONMENT_MAX, ARGUMENT_BYTES_MAX)?;
    for (name, value) in &variables {
        let place = at.member(name);
        if !is_environment_name(name) {
            let rule = "name it with letters, digits and `_`, not beginning with a digit";
            return Err(place.is(Mistake::text(name, rule)));
        }
        if value.contains('\0') {
            return Err(place.is(Mistake::text(value, NO_NUL)));
        }
        if name.len() + 1 + value.len() > ARGUMENT_BYTES_MAX {
            let limit = ARGUMENT_BYTES_MAX;
            return Err(place.is(Mistake::TooLong { limit }));
        }
    }
    Ok(variables)
}

/// Source: IEEE Std 1003.1-2017, 3.235.
fn is_environment_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=ENVIRONMENT_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(known)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Takes a path that may be absent; an empty one counts as absent, as older clients write it.
fn optional_path(
    executor: &mut Object,
    name: &str,
    parse: fn(&Pointer, &str) -> Result<String, BadTask>,
) -> Result<Option<String>, BadTask> {
    let text = executor.text(name, PATH_BYTES_MAX)?.filter(|it| !it.is_empty());
    text.map(|text| parse(&executor.at(name), &text)).transpose()
}
