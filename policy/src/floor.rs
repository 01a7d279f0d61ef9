//! The floor: the few rules that hold for every state, whatever its pack says.
//!
//! They are native code, so no pack, no overflow and no missing attribute can switch them off. They
//! run before a pack does, and bound every number and text that a pack will see.

use std::fmt;

use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::labels::Purpose;
use crate::request::{Action, Request};
use crate::rule::{Effect, Rule};
use crate::states;

/// More GPUs than any European site has: 6,000 nodes x 4 = 24,000.
const GPUS_MAX: u32 = 100_000;
/// Every GPU in a node of its own.
const NODES_MAX: u32 = GPUS_MAX;
/// 31 days, as `federation::limits` has it. A longer job checkpoints.
const WALLTIME_S_MAX: u32 = 31 * 24 * 3_600;
/// Worse than any grid: coal is about 1,000.
const CARBON_G_PER_KWH_MAX: u32 = 10_000;
/// 1,000 euro for a GPU-hour.
const PRICE_MILLI_EUR_MAX: u32 = 1_000_000;
/// As (EU) 2015/1502 has them: low, substantial, high.
const ASSURANCE_MAX: u8 = 2;
/// Bytes of a request's lists and texts. A token of 8 KiB carries 64 entitlements of 90 bytes and
/// their places; the factory's texts (16 certifications of 32 bytes, a name, a model) are 1 KiB.
pub(crate) const REQUEST_BYTES_MAX: usize = 12 * 1_024;

const CONTACT: &str = "the federation's secretariat";
const SINCE: &str = "2025-01-01";

/// A rule that holds for every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FloorRule {
    /// A state's pack is asked only about what that state decides.
    #[serde(rename = "F0")]
    OwnAffairs,
    /// No job for defence.
    #[serde(rename = "F1")]
    CivilOnly,
    /// Data about people stays where the law protects them.
    #[serde(rename = "F2")]
    PersonalData,
    /// Dual-use technology only for people who are known.
    #[serde(rename = "F3")]
    DualUse,
    /// Every number and text within its limits.
    #[serde(rename = "F4")]
    Limits,
}

impl FloorRule {
    /// `F2`
    pub fn id(self) -> &'static str {
        match self {
            FloorRule::OwnAffairs => "F0",
            FloorRule::CivilOnly => "F1",
            FloorRule::PersonalData => "F2",
            FloorRule::DualUse => "F3",
            FloorRule::Limits => "F4",
        }
    }

    fn title(self) -> &'static str {
        match self {
            FloorRule::OwnAffairs => {
                "A state decides about its own researchers' exports and its own factories, and nothing else"
            }
            FloorRule::CivilOnly => "The federation runs no jobs for defence",
            FloorRule::PersonalData => {
                "Personal and health data stay in the EEA and in states with an adequacy decision"
            }
            FloorRule::DualUse => "Dual-use technology only for researchers known with substantial assurance or better",
            FloorRule::Limits => "At most 100,000 GPUs for at most 31 days, and every other fact within its range",
        }
    }

    fn law(self) -> &'static str {
        match self {
            FloorRule::OwnAffairs => "Treaty on European Union, article 4(2)",
            FloorRule::CivilOnly => "Regulation (EU) 2021/1173, article 16(1): civilian applications",
            FloorRule::PersonalData => "Regulation (EU) 2016/679 (GDPR), articles 44 and 45",
            FloorRule::DualUse => "Regulation (EU) 2021/821, article 2; Implementing Regulation (EU) 2015/1502",
            FloorRule::Limits => "Operating rules of the federation",
        }
    }

    /// As an answer shows it.
    pub fn rule(self) -> Rule {
        Rule {
            id: self.id().into(),
            title: self.title().into(),
            law: self.law().into(),
            since: SINCE.into(),
            contact: CONTACT.into(),
            effect: Effect::Forbid,
        }
    }
}

impl fmt::Display for FloorRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.id())
    }
}

/// The first rule of the floor that `request` breaks when it is put to `asked`.
pub(crate) fn broken(asked: MemberState, request: &Request) -> Option<FloorRule> {
    let labels = &request.job.labels;
    let factory = request.factory.state;
    let protected = states::in_eea(factory) || states::adequacy(factory);
    let moves = request.action != Action::View;
    if request.concerned() != asked {
        Some(FloorRule::OwnAffairs)
    } else if moves && labels.purpose == Purpose::Defence {
        Some(FloorRule::CivilOnly)
    } else if moves && labels.data_class.is_personal() && !protected {
        Some(FloorRule::PersonalData)
    } else if moves && labels.dual_use && request.researcher.assurance < 1 {
        Some(FloorRule::DualUse)
    } else if !numbers_in_range(request) || request.bytes() > REQUEST_BYTES_MAX {
        Some(FloorRule::Limits)
    } else {
        None
    }
}

fn numbers_in_range(request: &Request) -> bool {
    let (job, factory) = (&request.job, &request.factory);
    job.gpus <= GPUS_MAX
        && job.nodes <= NODES_MAX
        && job.walltime_s <= WALLTIME_S_MAX
        && factory.carbon_g_per_kwh <= CARBON_G_PER_KWH_MAX
        && factory.price_milli_eur_per_gpu_hour <= PRICE_MILLI_EUR_MAX
        && request.researcher.assurance <= ASSURANCE_MAX
        && request.context.home_share_percent <= 100
}
