//! Requirements: what a task asks of the federation, in the federation's own words.
//!
//! TES has no word for GPUs. They are asked for by backend parameters, or by tags with the prefix
//! `entente.` where a client cannot send parameters. What policies look at comes from tags.
//!
//! Invariants: every number is bounded before anybody computes with it; one thing asked for twice in
//! different words is refused.

use std::collections::BTreeMap;

use federation::limits::{MEMORY_GIB_MAX, NODES_PER_POOL_MAX, PRIORITY_MAX, WALLTIME_S_MAX};
use federation::{Shape, Zone};
use policy::{DataClass, Labels, Purpose};

use super::mistake::{BadTask, Mistake, Pointer};
use super::model::{Resources, Task};

/// The backend parameters that exist here, as service-info lists them.
pub const BACKEND_PARAMETERS: [&str; 5] = [GPU_COUNT, GPU_MODEL, GPU_MEMORY_GIB, NODES, WALLTIME_S];

const GPU_COUNT: &str = "gpu_count";
const GPU_MODEL: &str = "gpu_model";
const GPU_MEMORY_GIB: &str = "gpu_memory_gib";
const NODES: &str = "nodes";
const WALLTIME_S: &str = "walltime_s";

/// Tags that mean something here, however their letters are parted and in any case: a slip in the spelling of
/// `data_class` must not make health data public.
const LABELS: [&str; 7] = [DATA_CLASS, PURPOSE, DUAL_USE, PROJECT, PRIORITY, RESTARTABLE, EXCLUSIVE];

const DATA_CLASS: &str = "data_class";
const PURPOSE: &str = "purpose";
const DUAL_USE: &str = "dual_use";
const PROJECT: &str = "project";
const PRIORITY: &str = "priority";
const RESTARTABLE: &str = "restartable";
const EXCLUSIVE: &str = "exclusive";

/// Labels without which a task is taken for harmless, and by how many letters a name may miss one before it is another
/// name. What is nearer is refused.
const SLIPS: [(&str, usize); 3] = [(DATA_CLASS, 2), (DUAL_USE, 1), (PURPOSE, 1)];

/// Backend parameters as tags.
const TAG_PREFIX: &str = "entente.";

/// Ten times the largest European system.
const GPUS_MAX: u32 = 100_000;
/// `h100-80`, `mi300a`, `h100-1g-10gb`
const MODEL_BYTES_MAX: usize = 32;
/// A task that does not say how long it runs.
const WALLTIME_S_DEFAULT: u32 = 3_600;
/// The middle: there is room above and below.
const PRIORITY_DEFAULT: u32 = 5;

/// What a task asks of the federation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// GPUs, nodes, memory, time.
    pub shape: Shape,
    /// What policies look at.
    pub labels: Labels,
    /// 0 lowest to 9 highest.
    pub priority: u8,
    /// May be ended and started again elsewhere.
    pub restartable: bool,
    /// At most one copy ever runs.
    pub exclusive: bool,
    /// Where it may run; empty: anywhere.
    pub zones: Vec<Zone>,
    /// What was dropped from the client's document, one sentence each.
    pub warnings: Vec<String>,
}

impl Requirements {
    pub(super) fn of(task: &Task, warnings: &[String]) -> Result<Requirements, BadTask> {
        let none = Resources::default();
        let resources = task.resources.as_ref().unwrap_or(&none);
        let asked = Asked::of(task, resources)?;
        let preemptible = resources.preemptible.unwrap_or(false);
        Ok(Requirements {
            shape: shape(&asked, resources)?,
            labels: labels(&asked)?,
            // The bound is 9, so the number fits.
            priority: asked.number(PRIORITY, PRIORITY_DEFAULT, 0, PRIORITY_MAX.into())? as u8,
            restartable: asked.flag(RESTARTABLE, preemptible)?,
            exclusive: asked.flag(EXCLUSIVE, false)?,
            zones: zones(resources)?,
            warnings: warnings.to_vec(),
        })
    }
}

/// Everything that was asked for by a key, with the place it was asked at.
struct Asked<'a>(BTreeMap<&'static str, (Pointer, &'a str)>);

impl<'a> Asked<'a> {
    fn of(task: &'a Task, resources: &'a Resources) -> Result<Asked<'a>, BadTask> {
        let mut asked = Asked(BTreeMap::new());
        let parameters = Pointer::default().member("resources").member("backend_parameters");
        for (key, value) in &resources.backend_parameters {
            if let Some(known) = known(&BACKEND_PARAMETERS, &key.to_ascii_lowercase()) {
                asked.add(known, parameters.member(key), value)?;
            }
        }
        let tags = Pointer::default().member("tags");
        for (key, value) in &task.tags {
            let place = tags.member(key);
            let spelled = key.to_ascii_lowercase().replace('-', "_");
            if let Some(name) = spelled.strip_prefix(TAG_PREFIX) {
                let rule = "after `entente.` write gpu_count, gpu_model, gpu_memory_gib, nodes or walltime_s";
                let known = known(&BACKEND_PARAMETERS, name).ok_or_else(|| place.is(Mistake::text(key, rule)))?;
                asked.add(known, place, value)?;
            } else if let Some(label) = LABELS.into_iter().find(|label| letters(label) == letters(key)) {
                asked.add(label, place, value)?;
            } else if SLIPS.iter().any(|(label, slips)| is_nearly(label, &letters(key), *slips)) {
                let rule = "this is nearly data_class, dual_use or purpose; write that, or choose another name";
                return Err(place.is(Mistake::text(key, rule)));
            }
        }
        Ok(asked)
    }

    fn add(&mut self, key: &'static str, place: Pointer, value: &'a str) -> Result<(), BadTask> {
        match self.0.get(key) {
            Some((_, other)) if *other != value => {
                let fix = "the same is asked for twice with different values; ask once";
                Err(place.is(Mistake::Contradiction { fix }))
            }
            Some(_) => Ok(()),
            None => {
                self.0.insert(key, (place, value));
                Ok(())
            }
        }
    }

    fn number(&self, key: &str, default: u32, min: u32, max: u32) -> Result<u32, BadTask> {
        let Some((place, text)) = self.0.get(key) else {
            return Ok(default);
        };
        // `parse` alone would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && (min..=max).contains(&number) => Ok(number),
            _ => Err(place.is(Mistake::number(text, min, max))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, BadTask> {
        let choices = [("true", true), ("false", false)];
        self.choice(key, default, &choices, "write true or false")
    }

    fn choice<T: Copy>(&self, key: &str, default: T, choices: &[(&str, T)], rule: &'static str) -> Result<T, BadTask> {
        let Some((place, text)) = self.0.get(key) else {
            return Ok(default);
        };
        let chosen = choices.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
        let (_, value) = chosen.ok_or_else(|| place.is(Mistake::text(text, rule)))?;
        Ok(*value)
    }

    /// A name of `a-z`, `0-9` and `-`.
    fn name(
        &self,
        key: &str,
        bytes_max: usize,
        rule: &'static str,
        spell: fn(&str) -> String,
    ) -> Result<Option<String>, BadTask> {
        let Some((place, text)) = self.0.get(key) else {
            return Ok(None);
        };
        let name = spell(text);
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good =
            (1..=bytes_max).contains(&name.len()) && name.bytes().all(known) && name.bytes().any(|byte| byte != b'-');
        if !good {
            return Err(place.is(Mistake::text(text, rule)));
        }
        Ok(Some(name))
    }

    fn contradicts(&self, key: &str, fix: &'static str) -> BadTask {
        let place = self.0.get(key).map_or_else(Pointer::default, |(place, _)| place.clone());
        place.is(Mistake::Contradiction { fix })
    }
}

/// A tag's name as it is compared: letters and digits of any script, in lower case.
fn letters(name: &str) -> Vec<char> {
    name.chars().filter(|it| it.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether somebody may have meant the label: with so many slips, or with more before or after it if it is the one that
/// protects data. A letter of another script may look like any of ours.
fn is_nearly(label: &str, name: &[char], slips: usize) -> bool {
    let letters = letters(label);
    let is_inside = label == DATA_CLASS && name.windows(letters.len()).any(|part| part == letters);
    let is_ours = name.iter().filter(|it| it.is_ascii()).count() >= 3;
    is_inside || is_ours && distance(&letters, name) <= slips
}

/// How many letters have to be changed, added or left out to make one name of the other (Levenshtein).
fn distance(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (place, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], place + 1);
        for (at, found) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != found && found.is_ascii());
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[other.len()]
}

fn known(names: &[&'static str], name: &str) -> Option<&'static str> {
    names.iter().copied().find(|known| *known == name)
}

fn shape(asked: &Asked<'_>, resources: &Resources) -> Result<Shape, BadTask> {
    let rule = "name a device such as H100 or h100-80, at most 32 letters, digits and dashes";
    let model = asked.name(GPU_MODEL, MODEL_BYTES_MAX, rule, |text| text.to_ascii_lowercase())?;
    let shape = Shape {
        gpus: asked.number(GPU_COUNT, 0, 0, GPUS_MAX)?,
        nodes: asked.number(NODES, 0, 0, NODES_PER_POOL_MAX)?,
        model,
        memory_gib_min: asked.number(GPU_MEMORY_GIB, 0, 0, MEMORY_GIB_MAX)?,
        walltime_s: asked.number(WALLTIME_S, WALLTIME_S_DEFAULT, 1, WALLTIME_S_MAX)?,
        cpu_cores: resources.cpu_cores.unwrap_or(0),
        ram_gib: gib(resources.ram_gb),
        disk_gib: gib(resources.disk_gb),
    };
    let about_gpus =
        [(GPU_MODEL, shape.model.is_some()), (GPU_MEMORY_GIB, shape.memory_gib_min > 0), (NODES, shape.nodes > 0)];
    for (key, says_something) in about_gpus {
        if shape.gpus == 0 && says_something {
            return Err(asked.contradicts(key, "the task asks for no GPUs; set gpu_count too"));
        }
    }
    if shape.nodes > 0 && !shape.gpus.is_multiple_of(shape.nodes) {
        let fix = "the GPUs do not divide evenly over the nodes; make gpu_count a multiple of nodes";
        return Err(asked.contradicts(NODES, fix));
    }
    Ok(shape)
}

fn labels(asked: &Asked<'_>) -> Result<Labels, BadTask> {
    let data_classes = DataClass::ALL.map(|it| (it.as_str(), it));
    let purposes = Purpose::ALL.map(|it| (it.as_str(), it));
    let data_class_rule = "write public, internal, personal or health";
    let purpose_rule = "write research, education, industry or defence";
    let project_rule = "name a project with a-z, 0-9 and `-`, at most 40 of them";
    let project_bytes_max = federation::limits::PROJECT_BYTES_MAX;
    Ok(Labels {
        data_class: asked.choice(DATA_CLASS, DataClass::Public, &data_classes, data_class_rule)?,
        purpose: asked.choice(PURPOSE, Purpose::Research, &purposes, purpose_rule)?,
        dual_use: asked.flag(DUAL_USE, false)?,
        project: asked.name(PROJECT, project_bytes_max, project_rule, str::to_owned)?,
    })
}

fn zones(resources: &Resources) -> Result<Vec<Zone>, BadTask> {
    let at = Pointer::default().member("resources").member("zones");
    let rule = "name a member state such as FR, or a factory such as FR/jean-zay";
    let zone =
        |(index, text): (usize, &String)| Zone::parse(text).map_err(|_| at.entry(index).is(Mistake::text(text, rule)));
    resources.zones.iter().enumerate().map(zone).collect()
}

/// Gigabytes of 10^9 bytes as whole GiB, rounded up: who asks for 1 GB gets 1 GiB.
fn gib(gigabytes: Option<f64>) -> u32 {
    let gib = gigabytes.unwrap_or(0.0) * 1e9 / f64::from(1 << 30);
    // `as` saturates, and the amount is bounded already.
    gib.ceil() as u32
}
