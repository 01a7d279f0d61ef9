//! Namesakes: which of the jobs that have an attempt's name is its own, and which are to end.
//!
//! A try whose answer was lost may be carried out after another was made: then Slurm has the attempt twice, and the one that
//! starts first runs it, whichever Slurm told us of. Anybody can call a job as he likes.
//! Invariant: what holds nodes may be running the task, so it is never a stray; a second one that does ends by itself,
//! because the right to start is given once.

use super::dialect::{JobState, SlurmJob};
use super::entry::Known;

/// The job that an attempt is followed by: one that holds nodes before any other, the one that Slurm told us of before
/// any other of its user's, and then the oldest.
pub(super) fn own<'a>(named: &'a [SlurmJob], user: &str, known: Option<Known>) -> Option<&'a SlurmJob> {
    let ours = named.iter().filter(|job| is_known(job, known) || job.user == user);
    ours.min_by_key(|job| (job.state != JobState::Holding, !is_known(job, known), job.submit_time, job.id))
}

/// Those that wait beside it. They would run nothing; they only take room.
pub(super) fn strays(named: &[SlurmJob], user: &str, known: Known) -> Vec<u32> {
    let waits = |job: &&SlurmJob| job.state == JobState::Waiting && job.user == user && job.id != known.id;
    named.iter().filter(waits).map(|job| job.id).collect()
}

/// The number that Slurm gave us is ours whatever the host of slurmrestd calls the account.
fn is_known(job: &SlurmJob, known: Option<Known>) -> bool {
    known.is_some_and(|known| job.id == known.id && job.submit_time >= known.submit_time.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{Ending, Exit};
    use super::*;

    fn job(id: u32, user: &str, state: JobState) -> SlurmJob {
        SlurmJob {
            id,
            name: "ent-x.1".into(),
            user: user.into(),
            state,
            reason: "None".into(),
            exit: Exit::default(),
            submit_time: u64::from(id),
            start_time: 0,
            nodes: String::new(),
            gres: vec![],
            restarts: 0,
            time_limit_min: None,
        }
    }

    fn known(id: u32) -> Known {
        Known { id, submit_time: Some(u64::from(id)) }
    }

    #[test]
    fn what_runs_is_followed_and_what_waits_beside_it_is_ended() {
        const ENDED: JobState = JobState::Ended(Ending::Completed);
        use JobState::{Holding, Waiting};
        // The first was carried out late, after the second was asked for: each is of its submission's second.
        for (first, second, followed, ended) in [
            (Holding, Waiting, 7, vec![8]),
            (Holding, Holding, 8, vec![]),
            (Holding, ENDED, 7, vec![]),
            (Waiting, Holding, 8, vec![7]),
            (Waiting, Waiting, 8, vec![7]),
            (Waiting, ENDED, 8, vec![7]),
            (ENDED, Waiting, 8, vec![]),
            (ENDED, ENDED, 8, vec![]),
        ] {
            let named = [job(7, "alice", first), job(8, "alice", second)];
            let own = own(&named, "alice", Some(known(8))).map(|it| it.id);
            assert_eq!(own, Some(followed), "{first:?} and {second:?}");
            assert_eq!(strays(&named, "alice", known(followed)), ended, "{first:?} and {second:?}");
        }
    }

    #[test]
    fn a_name_alone_is_nobodys() {
        let named =
            [job(6, "bob", JobState::Holding), job(7, "alice", JobState::Waiting), job(8, "alice", JobState::Waiting)];
        assert_eq!(own(&named, "alice", None).map(|it| it.id), Some(7), "the oldest");
        assert_eq!(own(&named[..1], "alice", None), None);
        assert_eq!(strays(&named, "alice", known(7)), [8]);
        // A number of an earlier life of slurmctld's.
        let older = Known { id: 6, submit_time: Some(90) };
        assert_eq!(own(&named[..1], "alice", Some(older)), None);
        assert_eq!(own(&named[..1], "alice", Some(Known { id: 6, submit_time: None })).map(|it| it.id), Some(6));
    }
}
