//! Next: what is to be done about an attempt, from what is known of it. Decided anew at every look, but while a request
//! about it is in hand.
//!
//! Asking twice for a Job is harmless: its name is the attempt's, and our finalizer keeps the name taken until the end is
//! noted. Invariants: an attempt is over only when its pods are, or when the API has said for a while that there is
//! nothing of it; one that has had a pod never gets another.

use std::collections::BTreeSet;

use super::entry::{Deed, Entry};
use super::observed::{SeenJob, SeenPod, SeenStep};
use super::outcome::GivenUp;
use super::tries::Tries;

/// A Job or a pod that was there and is not listed any more is gone, if that stays so.
const MISSING_MS: u64 = 5_000;
/// Between two requests to delete the same Job.
const DELETE_EVERY_MS: u64 = 5_000;
/// An image that cannot be pulled for so long, from the first complaint on.
const IMAGE_MS: u64 = 120_000;
/// How long an end waits for the last lines of its logs.
const LOGS_MS: u64 = 10_000;
/// What a container may wait for that has to do with its image. Source: kubelet's images and container packages.
const IMAGE: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
];
/// And what does not pass, or does not look like it.
const UNSTARTABLE: [&str; 4] =
    ["CreateContainerError", "CreateContainerConfigError", "RunContainerError", "PreCreateHookError"];

/// What is known only since the gateway started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub tries: Tries,
    /// When its uid became known.
    pub known_at_ms: u64,
    pub missing_since_ms: Option<u64>,
    pub pod_missing_since_ms: Option<u64>,
    /// When the API was last asked to delete its Job with its pods, and since when it does.
    pub delete_tried_ms: Option<u64>,
    pub deleted_ms: Option<u64>,
    pub is_secret_made: bool,
    /// Since when an executor waits for its image or its container.
    pub stuck_since_ms: Option<u64>,
    /// The last that was seen of its pod, which may be gone.
    pub pod: Option<SeenPod>,
    /// Executors whose logs were read to their end.
    pub read: BTreeSet<usize>,
    pub are_logs_cut: bool,
    /// Since when nothing but its logs is waited for.
    pub over_since_ms: Option<u64>,
}

impl Memory {
    /// Of an attempt that is taken up.
    pub fn of(entry: &Entry) -> Memory {
        let lost_ms = entry.posted_ms.filter(|_| entry.uid.is_none());
        Memory { tries: Tries::after(lost_ms), ..Memory::default() }
    }

    /// What is seen of its pod is remembered, whatever else is decided.
    pub fn see(&mut self, entry: &Entry, pods: &[SeenPod]) {
        if let Some(pod) = entry.pod.as_ref().and_then(|uid| pods.iter().find(|it| it.uid == *uid)) {
            self.pod = Some(pod.clone());
        }
    }

    /// Whether one of its pods is not over; then whatever was taken for its end was none, and the next has its own time.
    fn lives(&mut self, pods: &[SeenPod]) -> bool {
        let lives = pods.iter().any(SeenPod::is_live);
        if lives {
            self.over_since_ms = None;
        }
        lives
    }
}

/// What one look at the cluster says of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<'a> {
    pub begun_ms: u64,
    pub job: Option<&'a SeenJob>,
    /// Of this Job, by its uid, and the one that is pinned, whoever took it from its Job.
    pub pods: &'a [SeenPod],
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Ask for the Job.
    Post,
    /// Note that this is its Job.
    Adopt {
        uid: String,
    },
    /// Bring its inputs.
    MakeSecret,
    /// Note that this is its pod.
    Pin {
        uid: String,
    },
    /// Note why it is ended, and end it at the next look.
    GiveUp(GivenUp),
    Delete,
    /// It is over.
    Conclude {
        is_lost: bool,
    },
}

impl Next {
    /// What it takes of the writer.
    pub fn deed(&self, job: Option<&SeenJob>) -> Option<Deed> {
        match self {
            Next::Post => Some(Deed::Post),
            Next::MakeSecret => Some(Deed::MakeSecret),
            Next::Delete => job.map(|it| Deed::Delete { uid: it.uid.clone() }),
            Next::Wait | Next::Adopt { .. } | Next::Pin { .. } | Next::GiveUp(_) | Next::Conclude { .. } => None,
        }
    }
}

/// Decides.
pub(super) fn next(entry: &Entry, memory: &mut Memory, look: Look, now_ms: u64) -> Next {
    memory.see(entry, look.pods);
    // One of the same name that was made later is somebody else's.
    let is_its = |job: &&SeenJob| entry.uid.as_ref().is_none_or(|uid| *uid == job.uid);
    match look.job.filter(is_its) {
        Some(job) => seen(entry, memory, job, look, now_ms),
        None => unseen(entry, memory, look, now_ms),
    }
}

fn seen(entry: &Entry, memory: &mut Memory, job: &SeenJob, look: Look, now_ms: u64) -> Next {
    memory.missing_since_ms = None;
    if entry.uid.is_none() {
        return match (job.is_ours, entry.given_up.is_some() || entry.cancel) {
            (true, _) => Next::Adopt { uid: job.uid.clone() },
            (false, false) => Next::GiveUp(GivenUp::NameTaken),
            (false, true) => Next::Conclude { is_lost: false },
        };
    }
    // Before anything else, so that also of a Job that has ended the pod is known: its logs, its start and its end.
    if let Some(next) = pinned(entry, look) {
        return next;
    }
    let is_live = memory.lives(look.pods);
    // Whoever else deletes a Job may do so without its pods: only what we asked for ourselves waits for them.
    let is_emptied = job.is_bare && memory.deleted_ms.is_some_and(|at| look.begun_ms >= at);
    if (job.finish.is_some() || is_emptied) && !is_live {
        return conclude(memory, look, false, now_ms);
    }
    if entry.is_over() {
        let is_due = memory.delete_tried_ms.is_none_or(|at| now_ms >= at + DELETE_EVERY_MS);
        let is_wanted = !job.is_deleted || is_live || memory.deleted_ms.is_none();
        return if is_due && is_wanted { Next::Delete } else { Next::Wait };
    }
    if job.is_deleted {
        return Next::GiveUp(GivenUp::Removed);
    }
    if job.finish.is_some() {
        return Next::Wait;
    }
    if is_pod_gone(entry, memory, look) {
        return Next::GiveUp(GivenUp::PodGone);
    }
    let Some(work) = &entry.work else {
        return Next::Wait;
    };
    if !work.inputs.is_empty() && !memory.is_secret_made {
        return if memory.tries.is_due(now_ms) { Next::MakeSecret } else { Next::Wait };
    }
    match look.pods.first() {
        Some(pod) if pod.is_live() => overdue(entry, memory, pod, now_ms).map_or(Next::Wait, Next::GiveUp),
        None => podless(entry, now_ms).map_or(Next::Wait, Next::GiveUp),
        Some(_) => Next::Wait,
    }
}

/// The first pod is the only one.
fn pinned(entry: &Entry, look: Look) -> Option<Next> {
    let has_others = |uid: &String| look.pods.iter().any(|it| it.uid != *uid);
    match (&entry.pod, look.pods) {
        (None, [pod]) => Some(Next::Pin { uid: pod.uid.clone() }),
        _ if entry.is_over() => None,
        (None, [_, _, ..]) => Some(Next::GiveUp(GivenUp::SecondPod)),
        (Some(uid), _) if has_others(uid) => Some(Next::GiveUp(GivenUp::SecondPod)),
        (None, []) | (Some(_), _) => None,
    }
}

/// Whether the pod that runs it has gone for a while, and the Job controller says nothing of it.
fn is_pod_gone(entry: &Entry, memory: &mut Memory, look: Look) -> bool {
    if entry.pod.is_none() || !look.pods.is_empty() {
        memory.pod_missing_since_ms = None;
        return false;
    }
    look.begun_ms >= *memory.pod_missing_since_ms.get_or_insert(look.begun_ms) + MISSING_MS
}

/// A quota or an admission rule may let a Job in and no pod of it. In a queue of Kueue's, it has none for as long as the
/// queue says.
fn podless(entry: &Entry, now_ms: u64) -> Option<GivenUp> {
    let (work, posted_ms) = (entry.work.as_ref()?, entry.posted_ms?);
    let is_queued = work.job.spec.as_ref().is_some_and(|it| it.suspend == Some(true));
    let is_late = entry.pod.is_none() && !is_queued && now_ms >= posted_ms + work.start_s * 1_000;
    let text = "the Job has no pod: `kubectl describe job` says why".to_owned();
    is_late.then_some(GivenUp::NoNode { start_s: work.start_s, text })
}

/// Why a pod that lives is to be ended, if it is.
fn overdue(entry: &Entry, memory: &mut Memory, pod: &SeenPod, now_ms: u64) -> Option<GivenUp> {
    let work = entry.work.as_ref()?;
    if let Some(started_ms) = pod.started_ms()
        && now_ms >= started_ms.max(pod.created_ms) + u64::from(work.walltime_s) * 1_000
    {
        return Some(GivenUp::Walltime { walltime_s: work.walltime_s });
    }
    let waits = pod.steps.iter().enumerate().find_map(|(step, it)| match it {
        SeenStep::Waiting { reason, message } => {
            let is_stuck = IMAGE.contains(&reason.as_str()) || UNSTARTABLE.contains(&reason.as_str());
            is_stuck.then(|| (step, reason.as_str(), format!("{reason}: {message}")))
        }
        SeenStep::Running { .. } | SeenStep::Ended { .. } => None,
    });
    if let Some((step, reason, text)) = waits {
        let since = *memory.stuck_since_ms.get_or_insert(now_ms);
        if reason == "InvalidImageName" || now_ms >= since + IMAGE_MS {
            let is_image = IMAGE.contains(&reason);
            return Some(if is_image { GivenUp::Image { step, text } } else { GivenUp::Unstartable { step, text } });
        }
        return None;
    }
    // Between two tries to pull, a container is being created.
    if pod.steps.iter().any(|it| matches!(it, SeenStep::Running { .. })) {
        memory.stuck_since_ms = None;
    }
    let is_late = pod.started_ms().is_none() && now_ms >= pod.created_ms + work.start_s * 1_000;
    let text = pod.unschedulable.clone().unwrap_or_else(|| "its pod has not started".to_owned());
    let start_s = work.start_s;
    is_late.then_some(match pod.node {
        None => GivenUp::NoNode { start_s, text },
        Some(_) => GivenUp::NeverStarted { start_s, text },
    })
}

fn unseen(entry: &Entry, memory: &mut Memory, look: Look, now_ms: u64) -> Next {
    if entry.uid.is_none() {
        return match entry.is_over() {
            false if memory.tries.is_due(now_ms) => Next::Post,
            false => Next::Wait,
            // What is still on its way could come after.
            true if memory.tries.are_over(look.begun_ms) => Next::Conclude { is_lost: false },
            true => Next::Wait,
        };
    }
    // Only a look that began after its uid was told could have found it.
    if look.begun_ms <= memory.known_at_ms {
        return Next::Wait;
    }
    let since = *memory.missing_since_ms.get_or_insert(look.begun_ms);
    let is_live = memory.lives(look.pods);
    match look.begun_ms >= since + MISSING_MS && !is_live {
        true => conclude(memory, look, true, now_ms),
        false => Next::Wait,
    }
}

/// As long as the pod is there, its logs are, and they are waited for.
fn conclude(memory: &mut Memory, look: Look, is_lost: bool, now_ms: u64) -> Next {
    let since = *memory.over_since_ms.get_or_insert(now_ms);
    if unread(memory).is_empty() {
        return Next::Conclude { is_lost };
    }
    let is_there = memory.pod.as_ref().is_some_and(|pod| look.pods.iter().any(|it| it.uid == pod.uid));
    if is_there && now_ms < since + LOGS_MS {
        return Next::Wait;
    }
    memory.are_logs_cut = true;
    Next::Conclude { is_lost }
}

/// Executors that have written, or may have, and whose logs were not read to their end.
pub(super) fn unread(memory: &Memory) -> Vec<usize> {
    let steps = memory.pod.iter().flat_map(|pod| pod.steps.iter().enumerate());
    let wrote = steps.filter(|(_, it)| !matches!(it, SeenStep::Waiting { .. }));
    wrote.map(|(index, _)| index).filter(|index| !memory.read.contains(index)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::api::Trouble;
    use super::super::entry::tests::work;
    use super::super::observed::Finish;
    use super::super::observed::tests::{ended, pod, statuses};
    use super::super::tries::LOST_MS;
    use super::*;

    fn open() -> Entry {
        let mut work = work();
        work.inputs.clear();
        Entry { posted_ms: Some(1_000), uid: Some("u".into()), pod: Some("pod-1".into()), ..Entry::new(work) }
    }

    fn job() -> SeenJob {
        SeenJob { uid: "u".into(), is_ours: true, is_deleted: false, is_bare: false, finish: None }
    }

    fn check(entry: &Entry, memory: &Memory, job: Option<&SeenJob>, pods: &[SeenPod], now_ms: u64) -> Next {
        next(entry, &mut memory.clone(), Look { begun_ms: now_ms, job, pods }, now_ms)
    }

    fn running() -> SeenPod {
        pod(statuses(json!({"running": {"startedAt": "1970-01-01T00:01:50Z"}}), json!({})))
    }

    #[test]
    fn a_job_is_asked_for_until_it_is_there() {
        let none = Memory::default();
        let fresh = Entry::new(work());
        assert_eq!(check(&fresh, &none, None, &[], 5), Next::Post);
        let mut refused = Memory::default();
        refused.tries.failed(5, &Trouble::Silence, 5);
        assert_eq!(check(&fresh, &refused, None, &[], 6), Next::Wait);
        let lost = Entry { posted_ms: Some(1), ..fresh.clone() };
        let lost_memory = Memory::of(&lost);
        assert_eq!(check(&lost, &lost_memory, None, &[], 5), Next::Post, "the name is the attempt's");
        assert_eq!(check(&lost, &lost_memory, Some(&job()), &[], 5), Next::Adopt { uid: "u".into() });
        let other = SeenJob { is_ours: false, ..job() };
        assert_eq!(check(&lost, &lost_memory, Some(&other), &[], 5), Next::GiveUp(GivenUp::NameTaken));
        let taken = Entry { given_up: Some(GivenUp::NameTaken), ..lost.clone() };
        assert_eq!(check(&taken, &none, Some(&other), &[], 5), Next::Conclude { is_lost: false }, "left alone");
        let cancelled = Entry { cancel: true, ..lost };
        assert_eq!(check(&cancelled, &lost_memory, None, &[], 5), Next::Wait, "it may still arrive");
        assert_eq!(check(&cancelled, &lost_memory, None, &[], LOST_MS + 1), Next::Conclude { is_lost: false });
        assert_eq!(check(&cancelled, &none, None, &[], 5), Next::Conclude { is_lost: false }, "certainly refused");
        let unsent = Entry { cancel: true, ..fresh };
        assert_eq!(check(&unsent, &none, None, &[], 5), Next::Conclude { is_lost: false });
        let known = Memory::of(&open());
        assert!(known.tries.are_over(0), "its uid was told");
    }

    #[test]
    fn inputs_come_after_the_job_and_the_first_pod_is_the_only_one() {
        let none = Memory::default();
        let with_inputs = Entry { work: Some(work()), pod: None, ..open() };
        assert_eq!(check(&with_inputs, &none, Some(&job()), &[], 5), Next::MakeSecret);
        let made = Memory { is_secret_made: true, ..Memory::default() };
        assert_eq!(check(&with_inputs, &made, Some(&job()), &[], 5), Next::Wait);
        let first = Entry { pod: None, ..open() };
        assert_eq!(check(&first, &none, Some(&job()), &[running()], 120_000), Next::Pin { uid: "pod-1".into() });
        assert_eq!(check(&open(), &none, Some(&job()), &[running()], 120_000), Next::Wait);
        let second = SeenPod { uid: "pod-2".into(), ..running() };
        for pods in [vec![second.clone()], vec![running(), second]] {
            assert_eq!(check(&open(), &none, Some(&job()), &pods, 120_000), Next::GiveUp(GivenUp::SecondPod));
        }
    }

    #[test]
    fn an_end_that_was_none_costs_the_next_one_no_patience() {
        let mut memory = Memory { over_since_ms: Some(5), ..Memory::default() };
        let look = Look { begun_ms: 120_000, job: Some(&job()), pods: &[running()] };
        assert_eq!(next(&open(), &mut memory, look, 120_000), Next::Wait);
        assert_eq!(memory.over_since_ms, None);
    }

    #[test]
    fn it_is_over_when_its_pods_are() {
        let none = Memory::default();
        let finished = SeenJob { finish: Some(Finish::Complete), ..job() };
        assert_eq!(check(&open(), &none, Some(&finished), &[running()], 120_000), Next::Wait);
        assert_eq!(check(&open(), &none, Some(&finished), &[], 120_000), Next::Conclude { is_lost: false });
        let cancelled = Entry { cancel: true, ..open() };
        assert_eq!(check(&cancelled, &none, Some(&job()), &[running()], 120_000), Next::Delete);
        let asked = Memory { delete_tried_ms: Some(119_000), deleted_ms: Some(119_000), ..Memory::default() };
        assert_eq!(check(&cancelled, &asked, Some(&job()), &[running()], 120_000), Next::Wait);
        let deleted = SeenJob { is_deleted: true, ..job() };
        assert_eq!(check(&cancelled, &asked, Some(&deleted), &[running()], 120_000), Next::Wait);
        let waits = check(&cancelled, &asked, Some(&deleted), &[], 120_000);
        assert_eq!(waits, Next::Wait, "the collector has not been there");
        let bare = SeenJob { is_bare: true, ..deleted.clone() };
        let orphaned = check(&cancelled, &none, Some(&bare), &[], 120_000);
        assert_eq!(orphaned, Next::Delete, "somebody else deleted it, and perhaps not its pods");
        assert_eq!(check(&cancelled, &asked, Some(&bare), &[running()], 120_000), Next::Wait);
        assert_eq!(check(&cancelled, &asked, Some(&bare), &[], 120_000), Next::Conclude { is_lost: false });
        assert_eq!(check(&open(), &none, Some(&deleted), &[running()], 120_000), Next::GiveUp(GivenUp::Removed));
    }

    #[test]
    fn a_job_that_ended_while_nobody_looked_has_its_pod_first() {
        let finished = SeenJob { finish: Some(Finish::Complete), ..job() };
        let unpinned = Entry { pod: None, ..open() };
        let over = SeenPod { phase: super::super::observed::Phase::Succeeded, ..running() };
        let next = check(&unpinned, &Memory::default(), Some(&finished), std::slice::from_ref(&over), 130_000);
        assert_eq!(next, Next::Pin { uid: "pod-1".into() });
        let second = SeenPod { uid: "pod-2".into(), ..over };
        let next = check(&open(), &Memory::default(), Some(&finished), std::slice::from_ref(&second), 130_000);
        assert_eq!(next, Next::GiveUp(GivenUp::SecondPod), "what ended well may be the second");
        let given_up = Entry { given_up: Some(GivenUp::SecondPod), ..open() };
        let next = check(&given_up, &Memory::default(), Some(&finished), &[second], 130_000);
        assert_eq!(next, Next::Conclude { is_lost: false });
    }

    #[test]
    fn a_pod_that_vanishes_is_given_up_after_a_while() {
        let mut memory = Memory::default();
        let mut at = |pods: &[SeenPod], now_ms| {
            next(&open(), &mut memory, Look { begun_ms: now_ms, job: Some(&job()), pods }, now_ms)
        };
        assert_eq!(at(&[running()], 120_000), Next::Wait);
        assert_eq!(at(&[], 121_000), Next::Wait);
        assert_eq!(at(&[running()], 122_000), Next::Wait);
        assert_eq!(at(&[], 123_000), Next::Wait);
        assert_eq!(at(&[], 123_000 + MISSING_MS - 1), Next::Wait);
        assert_eq!(at(&[], 123_000 + MISSING_MS), Next::GiveUp(GivenUp::PodGone));
    }

    #[test]
    fn an_end_waits_for_its_logs_and_not_for_ever() {
        let finished = SeenJob { finish: Some(Finish::Complete), ..job() };
        let mut status = statuses(ended(0, "Completed"), ended(0, "Completed"));
        status["phase"] = json!("Succeeded");
        let over = pod(status);
        let mut memory = Memory::default();
        let at = |memory: &mut Memory, pods: &[SeenPod], now_ms| {
            next(&open(), memory, Look { begun_ms: now_ms, job: Some(&finished), pods }, now_ms)
        };
        let pods = std::slice::from_ref(&over);
        assert_eq!(at(&mut memory, pods, 130_000), Next::Wait);
        assert_eq!(unread(&memory), [0, 1]);
        let mut read = memory.clone();
        read.read = [0, 1].into();
        assert_eq!(at(&mut read, pods, 130_500), Next::Conclude { is_lost: false });
        assert!(!read.are_logs_cut);
        let mut gone = memory.clone();
        assert_eq!(at(&mut gone, &[], 130_500), Next::Conclude { is_lost: false });
        assert!(gone.are_logs_cut);
        assert_eq!(at(&mut memory, pods, 130_000 + LOGS_MS), Next::Conclude { is_lost: false });
    }

    #[test]
    fn what_takes_too_long_is_ended_with_the_reason() {
        let late = |pod: &SeenPod, memory: &Memory, now_ms| {
            check(&open(), memory, Some(&job()), std::slice::from_ref(pod), now_ms)
        };
        let none = Memory::default();
        let walltime = Next::GiveUp(GivenUp::Walltime { walltime_s: 3_600 });
        assert_eq!(late(&running(), &none, 110_000 + 3_599_999), Next::Wait);
        assert_eq!(late(&running(), &none, 110_000 + 3_600_000), walltime);
        let waiting = pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]}));
        assert_eq!(late(&waiting, &none, 100_000 + 599_999), Next::Wait);
        let given_up = Next::GiveUp(GivenUp::NeverStarted { start_s: 600, text: "0/3 nodes".into() });
        assert_eq!(late(&waiting, &none, 100_000 + 600_000), given_up);
        let unbound = SeenPod { node: None, ..waiting };
        let given_up = Next::GiveUp(GivenUp::NoNode { start_s: 600, text: "0/3 nodes".into() });
        assert_eq!(late(&unbound, &none, 100_000 + 600_000), given_up);
        let podless = Entry { pod: None, ..open() };
        assert_eq!(check(&podless, &none, Some(&job()), &[], 600_999), Next::Wait);
        let next = check(&podless, &none, Some(&job()), &[], 601_000);
        assert!(matches!(next, Next::GiveUp(GivenUp::NoNode { start_s: 600, .. })), "{next:?}");
        let mut queued = podless;
        let spec = queued.work.as_mut().and_then(|it| it.job.spec.as_mut()).expect("a spec");
        spec.suspend = Some(true);
        assert_eq!(check(&queued, &none, Some(&job()), &[], 601_000), Next::Wait);
        let image = |reason: &str| pod(statuses(json!({"waiting": {"reason": reason, "message": "m"}}), json!({})));
        let text = |reason: &str| format!("{reason}: m");
        let stuck = Memory { stuck_since_ms: Some(110_000), ..Memory::default() };
        let pulling = image("ImagePullBackOff");
        assert_eq!(late(&pulling, &stuck, 110_001), Next::Wait);
        let given_up = Next::GiveUp(GivenUp::Image { step: 0, text: text("ImagePullBackOff") });
        assert_eq!(late(&pulling, &stuck, 110_000 + IMAGE_MS), given_up);
        let given_up = Next::GiveUp(GivenUp::Image { step: 0, text: text("InvalidImageName") });
        assert_eq!(late(&image("InvalidImageName"), &none, 110_001), given_up);
        let given_up = Next::GiveUp(GivenUp::Unstartable { step: 0, text: text("RunContainerError") });
        assert_eq!(late(&image("RunContainerError"), &stuck, 110_000 + IMAGE_MS), given_up);
    }

    #[test]
    fn a_job_that_has_gone_is_lost_after_a_while_and_not_before_its_pods() {
        let memory = Memory { known_at_ms: 2_000, missing_since_ms: Some(3_000), ..Memory::default() };
        assert_eq!(check(&open(), &memory, None, &[], 2_000), Next::Wait, "the look is older");
        assert_eq!(check(&open(), &memory, None, &[], 7_999), Next::Wait);
        assert_eq!(check(&open(), &memory, None, &[running()], 8_000), Next::Wait);
        assert_eq!(check(&open(), &memory, None, &[], 8_000), Next::Conclude { is_lost: true });
        let other = SeenJob { uid: "later".into(), ..job() };
        assert_eq!(check(&open(), &memory, Some(&other), &[], 8_000), Next::Conclude { is_lost: true });
    }
}
