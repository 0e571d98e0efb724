//! Policy engines at their best: their cost rises with the number of policies, so they get as few as make sense.
//!
//! They find out which plan a tenant is on, as the gate does: a tenant is a member of its plan. The names of tenants and
//! features are ready-made.

use std::collections::HashSet;

use casbin::{CoreApi, DefaultModel, Enforcer, MemoryAdapter, MgmtApi, RbacApi};
use cedar_policy::{Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicySet, Request};
use saas_benches::field::{self, FEATURES};

/// `cedar-policy` with one policy.
pub(crate) struct Cedar {
    authorizer: Authorizer,
    policies: PolicySet,
    entities: Entities,
    tenants: Vec<EntityUid>,
    action: EntityUid,
    features: Vec<EntityUid>,
}

impl Cedar {
    pub(crate) fn new(tenants: usize) -> anyhow::Result<Self> {
        let policies = r#"permit(principal in Plan::"p1", action == Action::"use", resource == Feature::"f00");"#;
        let uid = |text: String| -> anyhow::Result<EntityUid> { Ok(text.parse()?) };
        let ids: Vec<_> = (0..tenants)
            .map(|tenant| uid(format!("Tenant::\"{}\"", field::tenant_id(tenant))))
            .collect::<Result<_, _>>()?;
        let on_plan = |(tenant, id): (usize, &EntityUid)| -> anyhow::Result<Entity> {
            let plan = uid(format!("Plan::\"p{}\"", field::plan_of(tenant)))?;
            Ok(Entity::new_no_attrs(id.clone(), HashSet::from([plan])))
        };
        let entities: Vec<_> = ids.iter().enumerate().map(on_plan).collect::<Result<_, _>>()?;
        Ok(Self {
            authorizer: Authorizer::new(),
            policies: policies.parse()?,
            entities: Entities::from_entities(entities, None)?,
            tenants: ids,
            action: uid("Action::\"use\"".to_owned())?,
            features: (0..FEATURES).map(|f| uid(format!("Feature::\"f{f:02}\""))).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn ask(&self, tenant: usize, feature: usize) -> bool {
        let (tenant, feature) = (self.tenants[tenant].clone(), self.features[feature].clone());
        let request = Request::new(tenant, self.action.clone(), feature, Context::empty(), None);
        let decide = |request| self.authorizer.is_authorized(&request, &self.policies, &self.entities).decision();
        request.map(decide).is_ok_and(|decision| decision == Decision::Allow)
    }
}

const MODEL: &str = "
[request_definition]
r = sub, obj

[policy_definition]
p = sub, obj

[role_definition]
g = _, _

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = g(r.sub, p.sub) && r.obj == p.obj
";

/// `casbin` with four policies.
pub(crate) struct Casbin {
    enforcer: Enforcer,
    tenants: Vec<String>,
    features: Vec<String>,
}

impl Casbin {
    pub(crate) async fn new(tenants: usize) -> anyhow::Result<Self> {
        let mut enforcer = Enforcer::new(DefaultModel::from_str(MODEL).await?, MemoryAdapter::default()).await?;
        for plan in 0..4 {
            enforcer.add_policy(vec![format!("p{plan}"), "f00".to_owned()]).await?;
        }
        let tenants: Vec<_> = (0..tenants).map(|tenant| field::tenant_id(tenant).to_string()).collect();
        for (tenant, id) in tenants.iter().enumerate() {
            enforcer.add_role_for_user(id, &format!("p{}", field::plan_of(tenant)), None).await?;
        }
        let features = (0..FEATURES).map(|feature| format!("f{feature:02}")).collect();
        Ok(Self { enforcer, tenants, features })
    }

    pub(crate) fn ask(&self, tenant: usize, feature: usize) -> bool {
        self.enforcer.enforce((self.tenants[tenant].as_str(), self.features[feature].as_str())).unwrap_or(false)
    }
}
