//! Refusals: what Slurm has against a job, whether waiting helps, and what everybody may read of it.

use serde::{Deserialize, Serialize};

use super::dialect::SlurmError;

/// Why the driver itself ended a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GivenUp {
    /// Slurm did not take it, or took it and said that it will never run.
    Refused { number: i64, text: String },
    /// It waits for something that will not happen: Slurm's own word for it.
    NeverRuns { reason: String },
    /// It ran, and Slurm queued it again. An attempt runs once.
    Requeued,
}

/// Numbers that are about the job or the configuration: the same request will fail again.
/// Source: slurm_errno.h.
const FINAL: [(i64, &str); 26] = [
    (2000, "its partition does not exist"),
    (2002, "the account may not use the partition"),
    (2003, "the account may not use the partition"),
    (2004, "the partition has no such nodes"),
    (2005, "it asks for too many cores"),
    (2006, "it asks for too many nodes"),
    (2014, "no node can ever run a job of this size"),
    (2015, "it is beyond the limits of the partition"),
    (2023, "the request is not possible there"),
    (2025, "the request is not possible there"),
    (2029, "the pool's constraint names what no node has"),
    (2044, "it asks for too much memory"),
    (2045, "the Slurm account is not valid"),
    (2048, "the licenses are not valid"),
    (2051, "its time limit is not allowed"),
    (2052, "the account may not use the reservation"),
    (2053, "the pool's reservation does not exist"),
    (2066, "the pool's quality of service is not valid"),
    (2069, "it asks for an impossible number of cores"),
    (2072, "the pool's GPUs are not what Slurm calls them"),
    (2115, "the pool's GPUs are not what Slurm calls them"),
    (2119, "the pool's GPUs are not what Slurm calls them"),
    (2122, "the pool's GPUs are not what Slurm calls them"),
    (2130, "the account may not use the partition"),
    (2134, "the node has too few GPUs"),
    (9001, "slurmrestd does not understand the request"),
];
/// With a job id: the job is accepted and waits, for its release or for nodes that come back.
const ACCEPTED: [i64; 2] = [2042, 2068];
/// With a job id: the job waits for ever.
const NEVER: [i64; 2] = [2014, 2015];
/// A job of the same name is there already: a site may refuse duplicates itself.
const DUPLICATE: i64 = 2078;
/// Reasons to wait that do not pass by themselves. Source: squeue(1), JOB REASON CODES.
const HOPELESS: [&str; 10] = [
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionConfig",
    "DependencyNeverSatisfied",
    "MaxMemPerLimit",
];

/// Whether the same request will be refused again.
pub(super) fn is_final(error: &SlurmError) -> bool {
    FINAL.iter().any(|(number, _)| *number == error.number)
}

/// Whether an error says that there is no job of the request. slurmctld's own refusals do, and slurmrestd's of what it does
/// not understand. Any other may be slurmrestd's trouble with the answer: slurmctld may have taken the job before that.
pub(super) fn is_certain(error: &SlurmError) -> bool {
    matches!(error.number, 2_000..3_000 | 9_000..10_000) && error.number != DUPLICATE
}

/// Whether a job that Slurm has taken, with this remark, will never run.
pub(super) fn never_runs(remark: &SlurmError) -> bool {
    !ACCEPTED.contains(&remark.number) && NEVER.contains(&remark.number)
}

/// Whether a job that waits for this waits for ever.
pub(super) fn is_hopeless(reason: &str) -> bool {
    // Limits of an association or a quality of service on a single job: `AssocMaxWallDurationPerJobLimit`.
    HOPELESS.contains(&reason) || (reason.contains("Max") && reason.contains("PerJob"))
}

impl GivenUp {
    pub fn refused(error: &SlurmError) -> GivenUp {
        GivenUp::Refused { number: error.number, text: error.text.clone() }
    }

    /// What everybody reads: words of ours only.
    pub fn public(&self) -> String {
        match self {
            GivenUp::Refused { number, .. } => match FINAL.iter().find(|(known, _)| known == number) {
                Some((_, why)) => format!("the factory's Slurm refused the job: {why}"),
                None => format!("the factory's Slurm did not take the job (its error {number})"),
            },
            GivenUp::NeverRuns { .. } => "the factory's Slurm says that the job will never run".to_owned(),
            GivenUp::Requeued => "the factory's Slurm stopped the job and queued it again".to_owned(),
        }
    }

    /// What the task's researcher reads.
    pub fn line(&self) -> String {
        match self {
            GivenUp::Refused { number, text } => format!("Slurm: {text} (error {number})"),
            GivenUp::NeverRuns { reason } => {
                format!("Slurm: the job waited for {reason}, which does not pass; it was cancelled")
            }
            GivenUp::Requeued => "Slurm: the job was queued again after it had run; it was cancelled".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_job_is_final_and_what_is_about_the_moment_is_not() {
        let check = |number| is_final(&SlurmError { number, text: String::new() });
        for number in [2000, 2014, 2045, 2066, 9001] {
            assert!(check(number), "{number}");
        }
        // Nobody answers, a token is wrong, too many jobs, a standby, a limit that somebody else uses up.
        for number in [-1, 1007, 2007, 2009, 2027, 2050, 2078, 2017] {
            assert!(!check(number), "{number}");
        }
        let remark = |number| never_runs(&SlurmError { number, text: String::new() });
        assert!(remark(2015) && !remark(2042) && !remark(2068) && !remark(2050));
    }

    #[test]
    fn only_a_refusal_says_that_there_is_no_job() {
        let check = |number| is_certain(&SlurmError { number, text: String::new() });
        for number in [2000, 2014, 2050, 2190, 9001, 9202] {
            assert!(check(number), "{number}");
        }
        // The connection's own numbers, a receive that failed or took too long, a duplicate, no number at all.
        for number in [-1, 0, 11, 104, 110, 1003, 1802, 5004, 5005, 2078] {
            assert!(!check(number), "{number}");
        }
    }

    #[test]
    fn some_reasons_to_wait_do_not_pass() {
        for reason in ["PartitionTimeLimit", "BadConstraints", "AssocMaxWallDurationPerJobLimit", "QOSMaxGRESPerJob"] {
            assert!(is_hopeless(reason), "{reason}");
        }
        for reason in
            ["None", "Priority", "Resources", "JobHeldAdmin", "QOSMaxGRESPerUser", "PartitionDown", "BeginTime"]
        {
            assert!(!is_hopeless(reason), "{reason}");
        }
    }

    #[test]
    fn what_everybody_reads_is_ours() {
        let refused = GivenUp::Refused { number: 2053, text: "Requested reservation /secret is invalid".into() };
        assert!(!refused.public().contains("secret") && refused.public().contains("reservation"));
        assert!(refused.line().contains("secret"));
        let unknown = GivenUp::Refused { number: 2999, text: "secret".into() };
        assert_eq!(unknown.public(), "the factory's Slurm did not take the job (its error 2999)");
    }
}
