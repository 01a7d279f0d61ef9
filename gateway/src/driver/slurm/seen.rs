//! What was last seen of a cluster: its jobs, what its pools lend, its partitions, and what is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use federation::{CapacityReport, PoolId, Reason, Timestamp};

use super::accounts::{Accounts, LocalName};
use super::capacity::{Lent, Own};
use super::dialect::{BadAnswer, Dialect, NoDialect, Partition, SlurmJob};
use super::next::Listed;
use super::rest::NoAnswer;
use super::token::NoToken;

/// A cluster that says nothing for this long lends nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// Memory of the last looks. Everything in it may be a moment old.
pub(super) struct Seen {
    pub dialect: Option<Dialect>,
    /// Our jobs by name; mostly one each.
    pub jobs: HashMap<String, Vec<SlurmJob>>,
    pub listed: Option<Listed>,
    /// What our jobs held, at the last look and at the one before.
    pub own: [Own; 2],
    pub partitions: Vec<Partition>,
    pub lent: BTreeMap<PoolId, (Lent, Timestamp)>,
    pub accounts: Arc<Accounts>,
    /// Users whose folders are as they should be; `None` until that was looked at.
    pub users: Option<Arc<BTreeSet<LocalName>>>,
    answered: Instant,
    has_answered: bool,
    trouble: Option<Trouble>,
    spool: Option<(Instant, String)>,
    /// Whether the reader was seen not to see a job that is there.
    are_jobs_hidden: bool,
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error(transparent)]
    Answer(#[from] BadAnswer),
    #[error(transparent)]
    Token(#[from] NoToken),
    #[error(transparent)]
    Dialect(#[from] NoDialect),
}

impl Trouble {
    /// What everybody may read of it: it names no host, path or person.
    fn public(&self) -> String {
        match self {
            Trouble::NoAnswer(_) => "Slurm does not answer".to_owned(),
            Trouble::Answer(BadAnswer::Unauthenticated) | Trouble::Token(_) => {
                "the gateway cannot prove to Slurm who it is".to_owned()
            }
            Trouble::Answer(BadAnswer::Slurm(error)) => {
                format!(
                    "Slurm answers with its error {}: its controller is down, or does not accept the token",
                    error.number
                )
            }
            Trouble::Answer(BadAnswer::Malformed(_)) => "Slurm's answers are not understood".to_owned(),
            Trouble::Dialect(none) => none.to_string(),
        }
    }
}

impl Seen {
    pub fn new(accounts: Accounts) -> Seen {
        Seen {
            dialect: None,
            jobs: HashMap::new(),
            listed: None,
            own: Default::default(),
            partitions: Vec::new(),
            lent: BTreeMap::new(),
            accounts: Arc::new(accounts),
            users: None,
            answered: Instant::now(),
            has_answered: false,
            trouble: None,
            spool: None,
            are_jobs_hidden: false,
        }
    }

    pub fn well(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            tracing::info!(%trouble, "Slurm answers again");
        }
        (self.answered, self.has_answered) = (Instant::now(), true);
    }

    pub fn unwell(&mut self, cluster: &str, trouble: Trouble) {
        if self.trouble.as_ref().map(ToString::to_string) != Some(trouble.to_string()) {
            tracing::warn!(cluster, %trouble, "Slurm could not be looked at");
        }
        // It may be another version when it comes back.
        self.dialect = None;
        self.trouble = Some(trouble);
    }

    pub fn is_well(&self) -> bool {
        self.has_answered && self.trouble.is_none()
    }

    pub fn spool_well(&mut self) {
        self.spool = None;
    }

    pub fn spool_unwell(&mut self, cluster: &str, reason: String) {
        if self.spool.as_ref().is_none_or(|(_, before)| *before != reason) {
            tracing::warn!(cluster, reason, "the spool cannot be used");
            let since = self.spool.take().map_or_else(Instant::now, |(since, _)| since);
            self.spool = Some((since, reason));
        }
    }

    pub fn jobs_are_hidden(&mut self, cluster: &str, reader: &LocalName) {
        if !self.are_jobs_hidden {
            tracing::error!(cluster, %reader, "this account does not see other accounts' jobs (PrivateData): it must");
        }
        self.are_jobs_hidden = true;
    }

    /// What a pool lends, as far as that may be believed; `None`: not known yet.
    pub fn report(&self, pool: PoolId, now: Timestamp) -> Option<CapacityReport> {
        let nothing = |problem: String| {
            Some(CapacityReport { pool, lendable: vec![], at: now, problem: Some(Reason::new(&problem)) })
        };
        if self.answered.elapsed() > SILENCE {
            let public = self.trouble.as_ref().map(Trouble::public);
            return nothing(public.unwrap_or_else(|| "Slurm does not answer".to_owned()));
        }
        if self.spool.as_ref().is_some_and(|(since, _)| since.elapsed() > SILENCE) {
            return nothing("the folder that the gateway shares with the nodes cannot be used".to_owned());
        }
        if self.are_jobs_hidden {
            return nothing("Slurm hides jobs from the gateway's account".to_owned());
        }
        let (lent, at) = self.lent.get(&pool)?;
        let problem = lent.problem.as_deref().map(Reason::new);
        Some(CapacityReport { pool, lendable: lent.lendable.clone(), at: *at, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::SlurmError;
    use super::*;

    #[test]
    fn silence_is_believed_after_a_while_and_says_why() {
        let pool = PoolId::parse("FR/jean-zay/h100-80").expect("a pool");
        let mut seen = Seen::new(Accounts::default());
        let report = |seen: &Seen| seen.report(pool, Timestamp(7));
        assert_eq!(report(&seen), None, "not known yet");
        seen.lent.insert(pool, (Lent::default(), Timestamp(3)));
        seen.well();
        assert_eq!(report(&seen).expect("a report").at, Timestamp(3));
        let error = SlurmError { number: -1, text: "at /secret".into() };
        seen.unwell("c", Trouble::Answer(error.into()));
        assert_eq!(report(&seen).expect("a report").problem, None, "running jobs stay, and nothing is hurried");
        seen.answered -= SILENCE * 2;
        let problem = report(&seen).expect("a report").problem.expect("a problem");
        assert!(problem.contains("error -1") && !problem.contains("secret"), "{problem}");
        seen.well();
        assert_eq!(report(&seen).expect("a report").problem, None);
    }
}
