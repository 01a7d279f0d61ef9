//! The vocabulary: the schema that packs are written in, and requests as Cedar sees them.
//!
//! Invariant: what is built here from a request has every attribute of the schema, of its type.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request as CedarRequest,
    RestrictedExpression as Value, Schema, Validator,
};
use certs::MemberState;

use crate::labels::{DataClass, Purpose};
use crate::request::{Action, FactoryFacts, Request, ResearcherFacts};
use crate::states;

/// What never changes, made once.
pub(crate) struct Vocabulary {
    pub(crate) validator: Validator,
    pub(crate) authorizer: Authorizer,
    schema: Schema,
    researcher: EntityTypeName,
    factory: EntityTypeName,
    actions: [EntityUid; Action::ALL.len()],
    classes: [EntityUid; DataClass::ALL.len()],
    purposes: [EntityUid; Purpose::ALL.len()],
}

/// A request that packs cannot be asked about.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request does not fit the schema: {0}")]
pub(crate) struct BadRequest(String);

/// The one vocabulary.
pub(crate) fn vocabulary() -> &'static Vocabulary {
    static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(Vocabulary::new);
    &VOCABULARY
}

impl Vocabulary {
    fn new() -> Vocabulary {
        let (schema, _warnings) = Schema::from_cedarschema_str(include_str!("../packs/entente.cedarschema"))
            .expect("invariant: the shipped schema is well-formed");
        let name = |name: &str| -> EntityTypeName { name.parse().expect("invariant: names of the schema are names") };
        let uid = |kind: &str, id: &str| EntityUid::from_type_name_and_id(name(kind), EntityId::new(id));
        Vocabulary {
            validator: Validator::new(schema.clone()),
            authorizer: Authorizer::new(),
            schema,
            researcher: name("Researcher"),
            factory: name("Factory"),
            actions: Action::ALL.map(|it| uid("Action", it.as_str())),
            classes: DataClass::ALL.map(|it| uid("DataClass", it.as_str())),
            purposes: Purpose::ALL.map(|it| uid("Purpose", it.as_str())),
        }
    }

    /// A request as Cedar sees it, checked against the schema.
    ///
    /// The entities are not checked again each time: which attributes they have, and of which types,
    /// depends on this file alone, and the test below checks it.
    pub(crate) fn question(&self, request: &Request) -> Result<(CedarRequest, Entities), BadRequest> {
        let researcher = self.researcher(&request.researcher)?;
        let factory = self.factory(&request.factory)?;
        let context = Context::from_pairs(self.job(request)).map_err(bad)?;
        let action = self.actions[request.action as usize].clone();
        let question =
            CedarRequest::new(researcher.uid(), action, factory.uid(), context, Some(&self.schema)).map_err(bad)?;
        let entities = Entities::from_entities([researcher, factory], None).map_err(bad)?;
        Ok((question, entities))
    }

    fn researcher(&self, facts: &ResearcherFacts) -> Result<Entity, BadRequest> {
        let id = EntityId::new(facts.home.as_str());
        let residency = facts.residency.as_ref().map_or("", MemberState::as_str);
        // The grantor is the home whatever a text says, so no gateway speaks of another state's clearances.
        let clearances: Vec<String> = facts.clearances.iter().map(|it| format!("{}:{it}", facts.home)).collect();
        let attributes = [
            ("home", text(facts.home.as_str())),
            ("home_in_eu", Value::new_bool(states::in_eu(facts.home))),
            ("home_in_eea", Value::new_bool(states::in_eea(facts.home))),
            ("home_adequacy", Value::new_bool(states::adequacy(facts.home))),
            ("assurance", Value::new_long(facts.assurance.into())),
            ("entitlements", texts(&facts.entitlements)),
            ("clearances", texts(&clearances)),
            ("residency", text(residency)),
        ];
        entity(EntityUid::from_type_name_and_id(self.researcher.clone(), id), attributes)
    }

    fn factory(&self, facts: &FactoryFacts) -> Result<Entity, BadRequest> {
        let id = EntityId::new(format!("{}/{}", facts.state, facts.name));
        let attributes = [
            ("state", text(facts.state.as_str())),
            ("name", text(&facts.name)),
            ("in_eu", Value::new_bool(states::in_eu(facts.state))),
            ("in_eea", Value::new_bool(states::in_eea(facts.state))),
            ("adequacy", Value::new_bool(states::adequacy(facts.state))),
            ("certifications", texts(&facts.certifications)),
            ("carbon_g_per_kwh", Value::new_long(facts.carbon_g_per_kwh.into())),
            ("price_milli_eur_per_gpu_hour", Value::new_long(facts.price_milli_eur_per_gpu_hour.into())),
            ("model", text(&facts.model)),
        ];
        entity(EntityUid::from_type_name_and_id(self.factory.clone(), id), attributes)
    }

    fn job(&self, request: &Request) -> [(String, Value); 10] {
        let (job, labels) = (&request.job, &request.job.labels);
        // At most 2^64 / 3,600, far below the largest `Long`.
        let gpu_hours = i64::try_from(job.gpu_hours()).expect("invariant: 2^64 / 3,600 < 2^63");
        [
            ("gpus", Value::new_long(job.gpus.into())),
            ("nodes", Value::new_long(job.nodes.into())),
            ("walltime_s", Value::new_long(job.walltime_s.into())),
            ("gpu_hours", Value::new_long(gpu_hours)),
            ("data_class", Value::new_entity_uid(self.classes[labels.data_class as usize].clone())),
            ("purpose", Value::new_entity_uid(self.purposes[labels.purpose as usize].clone())),
            ("dual_use", Value::new_bool(labels.dual_use)),
            ("project", text(labels.project.as_deref().unwrap_or_default())),
            ("input_states", texts(&job.input_states)),
            ("home_share_percent", Value::new_long(request.context.home_share_percent.into())),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }
}

fn entity<const N: usize>(uid: EntityUid, attributes: [(&str, Value); N]) -> Result<Entity, BadRequest> {
    let attributes: HashMap<String, Value> =
        attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Entity::new(uid, attributes, HashSet::new()).map_err(bad)
}

fn text(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

fn texts(list: &[impl ToString]) -> Value {
    Value::new_set(list.iter().map(|it| Value::new_string(it.to_string())))
}

fn bad(error: impl ToString) -> BadRequest {
    BadRequest(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Labels;
    use crate::request::{ContextFacts, JobFacts};

    fn check(list: &[&str], residency: Option<&str>) {
        let state = |code| MemberState::parse(code).unwrap();
        let list: Vec<String> = list.iter().map(|it| (*it).to_owned()).collect();
        let request = Request {
            action: Action::Host,
            researcher: ResearcherFacts {
                home: state("FI"),
                assurance: 2,
                entitlements: list.clone(),
                clearances: list.clone(),
                residency: residency.map(state),
            },
            job: JobFacts {
                gpus: 1,
                nodes: 1,
                walltime_s: 1,
                labels: Labels {
                    data_class: DataClass::Health,
                    purpose: Purpose::Defence,
                    dual_use: true,
                    project: None,
                },
                input_states: residency.map(state).into_iter().collect(),
            },
            factory: FactoryFacts {
                state: state("FR"),
                name: "a \"name\"".into(),
                certifications: list,
                carbon_g_per_kwh: 1,
                price_milli_eur_per_gpu_hour: 1,
                model: String::new(),
            },
            context: ContextFacts { home_share_percent: 1 },
        };
        let vocabulary = vocabulary();
        let (_question, entities) = vocabulary.question(&request).expect("a request that fits");
        assert_eq!(entities.len(), 2);
        Entities::from_entities(entities, Some(&vocabulary.schema)).expect("entities that fit");
    }

    #[test]
    fn whatever_is_known_requests_and_entities_fit_the_schema() {
        check(&[], None);
        check(&["HDS"], Some("FI"));
        check(&["HDS", "C5", "HDS"], Some("US"));
    }
}
