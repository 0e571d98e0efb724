//! Policy engines at their best: their cost rises with the number of policies, so they get as few as make sense.

use casbin::{CoreApi, DefaultModel, Enforcer, MemoryAdapter, MgmtApi};
use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request};
use saas_benches::field::{FEATURES, PLANS};

/// `cedar-policy` with one policy and ready-made requests.
pub(crate) struct Cedar {
    authorizer: Authorizer,
    policies: PolicySet,
    entities: Entities,
    /// By plan and feature.
    requests: Vec<Vec<Request>>,
}

impl Cedar {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let policies = r#"permit(principal == Plan::"p1", action == Action::"use", resource == Feature::"f00");"#;
        let request = |plan: usize, feature: usize| -> anyhow::Result<Request> {
            let principal: EntityUid = format!("Plan::\"p{plan}\"").parse()?;
            let resource: EntityUid = format!("Feature::\"f{feature:02}\"").parse()?;
            Ok(Request::new(principal, "Action::\"use\"".parse()?, resource, Context::empty(), None)?)
        };
        let requests = (0..PLANS)
            .map(|plan| (0..FEATURES).map(|feature| request(plan, feature)).collect())
            .collect::<Result<_, _>>()?;
        Ok(Self { authorizer: Authorizer::new(), policies: policies.parse()?, entities: Entities::empty(), requests })
    }

    pub(crate) fn ask(&self, plan: usize, feature: usize) -> bool {
        let response = self.authorizer.is_authorized(&self.requests[plan][feature], &self.policies, &self.entities);
        response.decision() == Decision::Allow
    }
}

const MODEL: &str = "
[request_definition]
r = sub, obj

[policy_definition]
p = sub, obj

[policy_effect]
e = some(where (p.eft == allow))

[matchers]
m = r.sub == p.sub && r.obj == p.obj
";

/// `casbin` with four policies, without roles.
pub(crate) struct Casbin {
    enforcer: Enforcer,
    plans: Vec<String>,
    features: Vec<String>,
}

impl Casbin {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let mut enforcer = Enforcer::new(DefaultModel::from_str(MODEL).await?, MemoryAdapter::default()).await?;
        for plan in 0..4 {
            enforcer.add_policy(vec![format!("p{plan}"), "f00".to_owned()]).await?;
        }
        let plans = (0..PLANS).map(|plan| format!("p{plan}")).collect();
        let features = (0..FEATURES).map(|feature| format!("f{feature:02}")).collect();
        Ok(Self { enforcer, plans, features })
    }

    pub(crate) fn ask(&self, plan: usize, feature: usize) -> bool {
        self.enforcer.enforce((self.plans[plan].as_str(), self.features[feature].as_str())).unwrap_or(false)
    }
}
