//! Requests: everything that one state is asked about one job and one factory.
//!
//! Nothing here is trusted to be in range; the floor refuses what is not, before any pack sees it.

use std::fmt;

use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// What a state is asked to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The home state lets the job leave for the factory.
    Export,
    /// The factory's state takes the job.
    Host,
    /// The factory's state lets the viewer see the factory and its jobs.
    View,
}

impl Action {
    /// Every action, in order.
    pub const ALL: [Action; 3] = [Action::Export, Action::Host, Action::View];

    /// As in packs: `export`.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Export => "export",
            Action::Host => "host",
            Action::View => "view",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// What the home state attests about a researcher.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResearcherFacts {
    /// The state that vouches for the researcher.
    pub home: MemberState,
    /// How well the person is known: 0 low, 1 substantial, 2 high. Source: (EU) 2015/1502.
    pub assurance: u8,
    /// AARC-G069 URNs.
    pub entitlements: Vec<String>,
    /// What the home state has cleared the researcher for, such as `dual-use`. Packs see it with its grantor,
    /// `FR:dual-use`: which states' clearances count is for each pack to say.
    pub clearances: Vec<String>,
    /// Where the researcher lives, if that is attested.
    pub residency: Option<MemberState>,
}

/// What a job asks for and says about itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobFacts {
    /// GPUs in all.
    pub gpus: u32,
    /// Nodes that the GPUs are spread over; 0 if the pool may decide.
    pub nodes: u32,
    /// Longest time it may run, in seconds.
    pub walltime_s: u32,
    /// What the submitter says about it.
    pub labels: Labels,
    /// The states that its inputs come from.
    pub input_states: Vec<MemberState>,
}

impl JobFacts {
    /// Hours of one GPU that it may take at most, begun hours counted.
    pub fn gpu_hours(&self) -> u64 {
        (u64::from(self.gpus) * u64::from(self.walltime_s)).div_ceil(3_600)
    }
}

/// What a factory's state says about a factory and one of its pools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FactoryFacts {
    /// The state that runs it.
    pub state: MemberState,
    /// Its name there, such as `jean-zay`.
    pub name: String,
    /// Such as `HDS`, `C5`, `SecNumCloud`.
    pub certifications: Vec<String>,
    /// Grams of CO2 per kWh of its power.
    pub carbon_g_per_kwh: u32,
    /// Thousandths of a euro for an hour of one GPU.
    pub price_milli_eur_per_gpu_hour: u32,
    /// The pool's device model, such as `H100-80`.
    pub model: String,
}

/// What depends on the moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContextFacts {
    /// Share of the pool's GPUs that jobs of the researcher's home state hold now: 0 to 100.
    pub home_share_percent: u32,
}

/// One question to one state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Request {
    /// What is asked for.
    pub action: Action,
    /// For whom.
    pub researcher: ResearcherFacts,
    /// With which job.
    pub job: JobFacts,
    /// Where.
    pub factory: FactoryFacts,
    /// When.
    pub context: ContextFacts,
}

impl Request {
    /// The only state whose pack has a say in this: home for [`Action::Export`], else the factory's.
    pub fn concerned(&self) -> MemberState {
        match self.action {
            Action::Export => self.researcher.home,
            Action::Host | Action::View => self.factory.state,
        }
    }

    /// Bytes of its lists and texts.
    pub(crate) fn bytes(&self) -> usize {
        let (researcher, factory) = (&self.researcher, &self.factory);
        let lists = [&researcher.entitlements, &researcher.clearances, &factory.certifications];
        let listed: usize = lists.into_iter().flatten().map(|it| size_of::<String>() + it.len()).sum();
        let inputs = size_of_val(self.job.input_states.as_slice());
        let project = self.job.labels.project.as_ref().map_or(0, String::len);
        listed + inputs + project + factory.name.len() + factory.model.len()
    }
}
