//! Explanations: every pool of the federation with what each state and the capacity say of a job.

use federation::{Attempt, End, Fit, PoolId, Registry};
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
}

/// The answers behind verdicts.
pub fn answers(verdicts: &Verdicts) -> Vec<PoolAnswers> {
    let of = |it: &crate::verdicts::PoolVerdict| PoolAnswers {
        pool: it.pool,
        export: Answer::from(&*it.export),
        host: Answer::from(&*it.host),
    };
    verdicts.pools.iter().map(of).collect()
}

/// Every pool with both states' answers, and whether the job fits there now.
pub fn pools(registry: &Registry, pools: &[PoolAnswers], requirements: &Requirements) -> Value {
    let one = |it: &PoolAnswers| {
        json!({
            "pool": it.pool,
            "state": it.pool.state(),
            "permitted": it.export.permitted && it.host.permitted,
            "export": answer(&it.export),
            "host": answer(&it.host),
            "capacity": capacity(registry, &it.pool, requirements),
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
        "declined": attempt.declined,
        "end": attempt.end.as_ref().map(end),
    })
}

/// One line for people that says how a dry run ends.
pub fn summary(permitted: usize, placement: Result<&PoolId, String>) -> String {
    match placement {
        Ok(first) => format!("{permitted} pool(s) are permitted by both states; the first choice is {first}"),
        Err(reason) => reason,
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

fn capacity(registry: &Registry, pool: &PoolId, requirements: &Requirements) -> String {
    let zones = &requirements.zones;
    if !zones.is_empty() && !zones.iter().any(|zone| zone.contains(pool)) {
        return "outside the zones that the task names".into();
    }
    match registry.fit(pool, &requirements.shape) {
        None => "not offered any more".into(),
        Some(fit) => match fit {
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
