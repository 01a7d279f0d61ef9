//! Explanations: every pool of the federation with what each state and the capacity say of a job.

use certs::MemberState;
use federation::{Attempt, Ceiling, End, Fit, Job, NoPlacement, Placement, PoolId, Registry};
use policy::{Answer, DenialReason, Rule};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::tes::Requirements;
use crate::verdicts::Verdicts;

/// One pool's two answers as they are stored with a task. They are to be read; they permit nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolAnswers {
    /// The pool.
    pub pool: PoolId,
    /// May the job leave its home for this pool?
    pub export: Answer,
    /// Does the host take it?
    pub host: Answer,
    /// If both permit it only below a share of home's.
    pub limit: Option<LimitAnswer>,
}

/// From which share of home's on a pool is denied, and who denies it then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitAnswer {
    /// What home has to hold less than.
    pub below: Ceiling,
    /// The denial from there on.
    pub denial: Answer,
}

/// The answers behind verdicts.
pub fn answers(verdicts: &Verdicts) -> Vec<PoolAnswers> {
    let of = |it: &crate::verdicts::PoolVerdict| PoolAnswers {
        pool: it.pool,
        export: Answer::from(&*it.export),
        host: Answer::from(&*it.host),
        limit: it.limit.as_ref().map(|it| LimitAnswer { below: it.below, denial: Answer::from(&*it.denial) }),
    };
    verdicts.pools.iter().map(of).collect()
}

/// Every pool with both states' answers, and whether a job of this home fits there now. `job`: the job, if there is one and it
/// waits.
pub fn pools(
    registry: &Registry,
    pools: &[PoolAnswers],
    home: MemberState,
    job: Option<&Job>,
    requirements: &Requirements,
) -> Value {
    // Its candidates may have been decided again since the answers were kept.
    let below = |it: &PoolAnswers| match job {
        Some(job) => job.candidate(&it.pool)?.below,
        None => Some(it.limit.as_ref()?.below),
    };
    let one = |it: &PoolAnswers| {
        json!({
            "pool": it.pool,
            "state": it.pool.state(),
            "permitted": it.export.permitted && it.host.permitted,
            "export": answer(&it.export),
            "host": answer(&it.host),
            "limit": it.limit.as_ref().map(limit),
            "capacity": capacity(registry, &it.pool, home, below(it), requirements),
        })
    };
    pools.iter().map(one).collect()
}

/// One try to run a job.
pub fn attempt(attempt: &Attempt) -> Value {
    json!({
        "number": attempt.number,
        "pool": attempt.pool,
        "gpus": attempt.grant.gpus,
        "granted_at_revision": attempt.granted_at.0,
        "declined": declined(attempt),
        "end": attempt.end.as_ref().map(end),
    })
}

/// Why its host gave an attempt back, and what the job waits for there.
pub fn declined(attempt: &Attempt) -> Option<String> {
    let reason = attempt.declined.as_ref()?;
    Some(match attempt.below {
        Some(below) => format!("{reason}; it is taken while its home holds less than {below} of the pool"),
        None => reason.to_string(),
    })
}

/// One line for people that says how a dry run of a job of this home ends.
pub fn summary(
    registry: &Registry,
    home: MemberState,
    permitted: usize,
    placed: Result<Placement, NoPlacement>,
) -> String {
    let first = match placed {
        Ok(placement) => placement.candidates[0],
        Err(reason) => return reason.to_string(),
    };
    let pool = first.pool;
    if registry.offer(&pool).is_some_and(|offer| first.has_turn(offer, home)) {
        format!("{permitted} pool(s) are permitted by both states; the first choice is {pool}")
    } else {
        format!("{home} holds as much of {pool} as it may; a task waits until it holds less there")
    }
}

/// How an attempt ended, in words.
pub fn end(end: &End) -> String {
    match end {
        End::Complete => "complete".into(),
        End::ExecutorError { exit_code } => format!("its command ended with {exit_code}"),
        End::SystemError { reason } | End::NotPermitted { reason } | End::Lost { reason } => reason.to_string(),
        End::Canceled => "canceled".into(),
    }
}

/// A denial in one line, with the rule and its legal basis, for the one whose job it is.
pub fn denial(answer: &Answer) -> String {
    let because = answer.reason.as_ref().map_or_else(String::new, reason);
    let rules: Vec<String> = answer.rules.iter().map(|it| format!("{} ({})", it.title, it.law)).collect();
    if rules.is_empty() {
        format!("{} denies: {because}", answer.state)
    } else {
        format!("{} denies: {because}: {}", answer.state, rules.join("; "))
    }
}

fn answer(answer: &Answer) -> Value {
    let reason = answer.reason.as_ref().map_or_else(|| "permitted".to_owned(), reason);
    json!({
        "state": answer.state,
        "permitted": answer.permitted,
        "reason": reason,
        "rules": answer.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    json!({
        "id": rule.id,
        "title": rule.title,
        "law": rule.law,
        "since": rule.since,
        "contact": rule.contact,
    })
}

fn reason(reason: &DenialReason) -> String {
    match reason {
        DenialReason::Rule => "a rule forbids it".into(),
        DenialReason::NoPermit => "no rule permits it".into(),
        DenialReason::Error(policy) => {
            format!("the rule {policy} could not be evaluated, which counts as a denial")
        }
        DenialReason::Floor(rule) => format!("the federation's minimum rule {rule} forbids it"),
        DenialReason::PolicyMissing => "the state has published no policy that can be used".into(),
    }
}

fn limit(limit: &LimitAnswer) -> Value {
    json!({"below_percent": limit.below.percent(), "denial": answer(&limit.denial)})
}

fn capacity(
    registry: &Registry,
    pool: &PoolId,
    home: MemberState,
    below: Option<Ceiling>,
    requirements: &Requirements,
) -> String {
    let zones = &requirements.zones;
    if !zones.is_empty() && !zones.iter().any(|zone| zone.contains(pool)) {
        return "outside the zones that the task names".into();
    }
    let Some((offer, fit)) = registry.offer(pool).zip(registry.fit(pool, &requirements.shape)) else {
        return "not offered any more".into();
    };
    let share = offer.share_percent(home);
    match (fit, below) {
        (Fit::FitsNow | Fit::FitsLater { .. }, Some(below)) if share >= below.percent() => {
            format!("fits when {home} holds less than {below} of its GPUs; it holds {share} %")
        }
        (fit, _) => match fit {
            Fit::FitsNow => "fits now".into(),
            Fit::FitsLater { free } => format!("fits when others have ended; {free} GPUs are free"),
            Fit::Silent => "fits when its gateway is heard again; a majority of the states hears nothing of it".into(),
            Fit::TooLarge { largest_gang } => format!("too large; it has {largest_gang} GPUs in all"),
            Fit::NoTaskSlots => "takes no tasks without GPUs".into(),
            Fit::WalltimeTooLong { max_s } => format!("jobs run for at most {max_s} s there"),
            Fit::EndsTooSoon { .. } => "the offer ends before the job would".into(),
            Fit::TooLittleMemory { memory_gib } => format!("its devices have {memory_gib} GiB of memory"),
            Fit::WrongModel => "another device model".into(),
            Fit::Withdrawn => "withdrawn".into(),
        },
    }
}
