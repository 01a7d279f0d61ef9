//! What every member answers from its own replica: capacity, members, policies, health.
//!
//! Each answer names the revision that it was read at; figures carry their age.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use certs::MemberState;
use federation::limits::REPORT_EVERY_MS;
use federation::{OfferState, Registry, Revision, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Asked};
use crate::error::{Code, Problem};
use crate::home::now;

/// How long a read waits for a revision or for the leader.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A host that has missed so many reports is silent, and what it lent may not be there.
const SILENT_MS: u64 = 10 * REPORT_EVERY_MS;

/// How fresh a read has to be.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    consistency: Option<String>,
    revision: Option<u64>,
}

impl Freshness {
    async fn wait(&self, api: &Api) -> Result<(), Problem> {
        let late = || {
            Problem::new(
                Code::NoLeader,
                "this gateway could not learn in time how fresh its replica is; ask again, or \
                 without `consistency` for what it knows now",
            )
        };
        match self.consistency.as_deref() {
            None | Some("local") => {}
            Some("linearizable") => {
                api.consensus.linearize(READ_TIMEOUT).await.map_err(|_| late())?;
            }
            Some(_) => {
                return Err(Problem::new(Code::BadQuery, "consistency is `local` or `linearizable`"));
            }
        }
        if let Some(revision) = self.revision {
            api.consensus.wait_for(Revision(revision), READ_TIMEOUT).await.map_err(|_| late())?;
        }
        Ok(())
    }
}

/// Every pool with its figures and their age.
pub async fn capacity(State(api): State<Api>, Asked(freshness): Asked<Freshness>) -> Result<Response, Problem> {
    freshness.wait(&api).await?;
    let now = now();
    Ok(answer(&api, |registry| {
        let pools: Vec<Value> = registry.offers().map(|it| pool(registry, it, now)).collect();
        json!({"pools": pools})
    }))
}

fn pool(registry: &Registry, state: &OfferState, now: Timestamp) -> Value {
    let offer = &state.offer;
    let report = state.report.as_ref();
    json!({
        "pool": offer.pool,
        "state": offer.pool.factory.state,
        "factory": offer.pool.factory,
        "city": offer.city,
        "model": offer.model.name,
        "vendor": offer.model.vendor,
        "memory_gib": offer.model.memory_gib,
        "nodes": offer.nodes,
        "gpus_per_node": offer.gpus_per_node,
        "gpus": offer.gpus(),
        "gpus_free": state.ledger.free_gpus(),
        "largest_free_on_a_node": state.largest_free_on_a_node(),
        "largest_gang": state.ledger.free_gpus(),
        "jobs_queued": registry.demand(&offer.pool).1,
        "price_milli_eur_per_gpu_hour": offer.price_milli_eur_per_gpu_hour,
        "withdrawn": state.withdrawn,
        "quiet": state.quiet,
        "certifications": offer.certifications,
        "carbon_g_per_kwh": offer.carbon_g_per_kwh,
        "age_ms": report.map(|it| now.0.saturating_sub(it.at.0)),
        "clock_ahead_ms": report.map_or(0, |it| it.at.0.saturating_sub(now.0)),
        "problem": problem(state, now),
    })
}

/// What the host says is wrong with the pool, or that nothing is heard of it: this gateway may be the one that is cut off.
/// Of a pool that is withdrawn nothing is reported any more.
fn problem(state: &OfferState, now: Timestamp) -> Option<String> {
    if state.quiet {
        return Some("most states have not heard of its gateway for a while: it gets no new work".into());
    }
    let report = state.report.as_ref()?;
    let silent_ms = now.0.saturating_sub(report.at.0);
    if silent_ms > SILENT_MS && !state.withdrawn {
        let age_s = silent_ms / 1_000;
        return Some(format!(
            "its latest report is {age_s} s old: no later one has reached this gateway, or its clock is behind"
        ));
    }
    report.problem.as_ref().map(ToString::to_string)
}

/// Every member state with its gateways.
pub async fn members(State(api): State<Api>, Asked(freshness): Asked<Freshness>) -> Result<Response, Problem> {
    freshness.wait(&api).await?;
    Ok(answer(&api, |registry| {
        let members: Vec<Value> = registry
            .members()
            .map(|member| {
                let gateways: Vec<Value> =
                    member.gateways.iter().map(|it| json!({"name": it.id.name, "api_url": it.api_url})).collect();
                json!({"state": member.state, "gateways": gateways})
            })
            .collect();
        json!({"federation": registry.federation(), "members": members})
    }))
}

/// Every state's pack, without its text.
pub async fn policies(State(api): State<Api>, Asked(freshness): Asked<Freshness>) -> Result<Response, Problem> {
    freshness.wait(&api).await?;
    Ok(answer(&api, |registry| {
        let packs: Vec<Value> = registry
            .packs()
            .map(|(state, pack)| {
                json!({
                    "state": state,
                    "sequence": pack.sequence,
                    "digest": pack.digest,
                    "title": pack.source.title,
                    "contact": pack.source.contact,
                })
            })
            .collect();
        json!({"policies": packs})
    }))
}

/// One state's pack with its text.
pub async fn policy(State(api): State<Api>, Path(state): Path<String>) -> Result<Response, Problem> {
    let none = || Problem::new(Code::NotFound, "that state has published no policy");
    let state = MemberState::parse(&state).map_err(|_| none())?;
    let found = api.consensus.read(|registry| {
        let pack = registry.pack(state)?;
        Some(json!({
            "state": state,
            "sequence": pack.sequence,
            "digest": pack.digest,
            "title": pack.source.title,
            "contact": pack.source.contact,
            "cedar": pack.source.cedar,
            "revision": registry.revision().0,
        }))
    });
    Ok(Json(found.ok_or_else(none)?).into_response())
}

/// Whether this gateway can place jobs, and goes on doing so. Open to everybody and therefore terse.
pub async fn health(State(api): State<Api>) -> Response {
    let leader = api.consensus.leader();
    let (revision, packs) = api.consensus.read(|registry| (registry.revision(), registry.packs().count()));
    let status = match leader {
        _ if api.tasks.is_closed() => "stopping",
        Some(_) => "ok",
        None => "no-leader",
    };
    Json(json!({
        "status": status,
        "state": api.entry.me.state,
        "gateway": api.entry.me.name,
        "leader": leader,
        "revision": revision.0,
        "packs": packs,
        "warnings": api.warnings.read(),
        "load": api.entry.under_way.load(std::time::Instant::now()).as_str(),
        "submission_stages": api.stages.read(),
    }))
    .into_response()
}

fn answer(api: &Api, read: impl FnOnce(&Registry) -> Value) -> Response {
    let (revision, mut body) = api.consensus.read(|registry| (registry.revision().0, read(registry)));
    body["revision"] = revision.into();
    ([("entente-revision", revision.to_string())], Json(body)).into_response()
}
