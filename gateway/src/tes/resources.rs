//! Resources of a task, and which backend parameters exist.
//! Invariant: only supported parameters are kept, and no two keys differ only in case.

use std::collections::{BTreeMap, BTreeSet};

use federation::limits::{CPU_CORES_MAX, DISK_GIB_MAX, RAM_GIB_MAX};

use super::json::{self, Object};
use super::mistake::{BadTask, Mistake, Pointer, quote};
use super::model::Resources;
use super::requirements::BACKEND_PARAMETERS;

/// 27 states and some of their factories.
const ZONES_MAX: usize = 64;
/// `FR/` and a factory's name of 31 bytes.
const ZONE_BYTES_MAX: usize = 34;
/// Ours are five; other backends' may come along.
const PARAMETERS_MAX: usize = 64;
/// Other backends' values may be anything; ours are short.
const PARAMETER_BYTES_MAX: usize = 1_024;

/// Takes `resources`. Adds a warning for each parameter that is dropped.
pub fn resources(task: &mut Object, warnings: &mut Vec<String>) -> Result<Option<Resources>, BadTask> {
    let at = task.at("resources");
    let Some(node) = task.take("resources") else {
        return Ok(None);
    };
    let mut object = Object::new(at, node)?;
    let strict = object.flag("backend_parameters_strict")?;
    let cpu_cores = object.amount("cpu_cores", CPU_CORES_MAX)?;
    let resources = Resources {
        // A later draft allows fractions; half a core is a core here.
        cpu_cores: cpu_cores.map(|cores| cores.ceil() as u32),
        preemptible: object.flag("preemptible")?,
        ram_gb: object.amount("ram_gb", RAM_GIB_MAX)?,
        disk_gb: object.amount("disk_gb", DISK_GIB_MAX)?,
        zones: zones(&mut object)?,
        backend_parameters: parameters(&mut object, strict == Some(true), warnings)?,
        backend_parameters_strict: strict,
    };
    object.finish()?;
    Ok(Some(resources))
}

fn zones(resources: &mut Object) -> Result<Vec<String>, BadTask> {
    let entries = resources.list("zones", ZONES_MAX)?;
    let zone = |(at, node): (Pointer, _)| json::text(&at, node, ZONE_BYTES_MAX);
    entries.into_iter().map(zone).collect()
}

fn parameters(
    resources: &mut Object,
    strict: bool,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, String>, BadTask> {
    let at = resources.at("backend_parameters");
    let given = resources.texts("backend_parameters", PARAMETERS_MAX, PARAMETER_BYTES_MAX)?;
    let mut seen = BTreeSet::new();
    let mut kept = BTreeMap::new();
    for (key, value) in given {
        let place = at.member(&key);
        let known = key.to_ascii_lowercase();
        if !BACKEND_PARAMETERS.contains(&known.as_str()) {
            if strict {
                return Err(place.is(Mistake::UnsupportedBackendParameter));
            }
            let key = quote(&key);
            warnings.push(format!("backend parameter {key:?} is not supported and was ignored"));
            continue;
        }
        if !seen.insert(known) {
            let fix = "keys are case-insensitive and this one is given twice; give it once";
            return Err(place.is(Mistake::Contradiction { fix }));
        }
        kept.insert(key, value);
    }
    Ok(kept)
}
