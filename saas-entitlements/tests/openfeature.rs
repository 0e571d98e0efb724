//! What OpenFeature's specification says about evaluation holds through its own client.
#![cfg(feature = "openfeature")]
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::Arc;

use open_feature::{EvaluationContext, EvaluationErrorCode, EvaluationReason, OpenFeature, Value};
use saas_core::{PlanCatalog, PlanKey, TenantId, TestClock, subscription::PlanAssignment};
use saas_entitlements::{Entitlements, OpenFeatureProvider, memory::MemorySource};

const PLANS: &str = r#"
    default_plan = "free"
    [features]
    export = { kind = "boolean", fail = "closed" }
    seats = { kind = "integer", fail = "closed" }
    support = { kind = "text", fail = "closed" }
    theme = { kind = "json", fail = "closed" }
    beta = { kind = "boolean", fail = "closed", rollout = { percent = 0 } }
    [plans.free]
    rank = 0
    versions = [{ version = 1 }]
    [plans.pro]
    rank = 1
    versions = [{ version = 1, grants = { export = true, seats = 5, support = "mail", beta = true, theme = { dark = true, sizes = [1, 2.5] } } }]
"#;

async fn client() -> (open_feature::Client, EvaluationContext, EvaluationContext) {
    let clock = TestClock::starting("2026-01-15T12:00:00Z");
    let source = MemorySource::new();
    let [pro, free] = ["pro", "free"].map(|plan| {
        let tenant = TenantId::mint(&clock);
        source.put_plan(tenant, PlanAssignment::active(plan.parse::<PlanKey>().unwrap()));
        EvaluationContext::default().with_targeting_key(tenant.to_string())
    });
    let gate = Entitlements::new(PlanCatalog::from_toml(PLANS).unwrap(), Arc::new(source), Arc::new(clock));
    let mut api = OpenFeature::default();
    api.set_provider(OpenFeatureProvider::new(gate)).await;
    (api.create_client(), pro, free)
}

#[tokio::test]
async fn each_kind_resolves_with_value_variant_reason_and_metadata() {
    let (client, pro, free) = client().await;
    let on = client.get_bool_details("export", Some(&pro), None).await.unwrap();
    assert_eq!((on.value, on.variant.as_deref()), (true, Some("on")));
    assert_eq!((on.flag_key.as_str(), on.reason), ("export", Some(EvaluationReason::TargetingMatch)));
    assert_eq!(on.flag_metadata.values["plan"], "pro@1".into());
    assert_eq!(on.flag_metadata.values["revision"], 1_i64.into());
    let off = client.get_bool_details("export", Some(&free), None).await.unwrap();
    assert_eq!((off.value, off.variant.as_deref()), (false, Some("off")));
    assert_eq!(client.get_int_value("seats", Some(&pro), None).await, Ok(5));
    assert_eq!(client.get_string_value("support", Some(&pro), None).await, Ok("mail".to_owned()));
    let split = client.get_bool_details("beta", Some(&pro), None).await.unwrap();
    assert_eq!((split.value, split.reason), (false, Some(EvaluationReason::Split)));
    let stranger = EvaluationContext::default().with_targeting_key("01900000-0000-7000-8000-000000000001");
    let unknown = client.get_bool_details("export", Some(&stranger), None).await.unwrap();
    assert_eq!((unknown.value, unknown.reason), (false, Some(EvaluationReason::Default)));
}

/// What an adopter makes of a structure.
#[derive(Debug, PartialEq)]
struct Theme {
    dark: bool,
    sizes: Vec<Value>,
}

impl TryFrom<open_feature::StructValue> for Theme {
    type Error = String;

    fn try_from(mut value: open_feature::StructValue) -> Result<Self, String> {
        match (value.fields.remove("dark"), value.fields.remove("sizes")) {
            (Some(Value::Bool(dark)), Some(Value::Array(sizes))) => Ok(Self { dark, sizes }),
            other => Err(format!("{other:?}")),
        }
    }
}

#[tokio::test]
async fn a_structure_keeps_its_types() {
    let (client, pro, _) = client().await;
    let theme: Theme = client.get_struct_value("theme", Some(&pro), None).await.unwrap();
    assert_eq!(theme, Theme { dark: true, sizes: vec![Value::Int(1), Value::Float(2.5)] });
}

#[tokio::test]
async fn abnormal_evaluation_is_an_error_with_the_codes_of_the_specification() {
    let (client, pro, free) = client().await;
    let code = |result: Result<bool, open_feature::EvaluationError>| result.unwrap_err().code;
    for unknown in ["nothing-such", "Not A Key", ""] {
        let found = client.get_bool_value(unknown, Some(&pro), None).await;
        assert_eq!(code(found), EvaluationErrorCode::FlagNotFound, "{unknown:?}");
    }
    assert_eq!(code(client.get_bool_value("seats", Some(&pro), None).await), EvaluationErrorCode::TypeMismatch);
    assert_eq!(code(client.get_bool_value("export", None, None).await), EvaluationErrorCode::TargetingKeyMissing);
    let nobody = EvaluationContext::default().with_targeting_key("acme");
    assert_eq!(code(client.get_bool_value("export", Some(&nobody), None).await), EvaluationErrorCode::InvalidContext);
    let float = client.get_float_value("seats", Some(&pro), None).await.unwrap_err();
    assert_eq!(float.code, EvaluationErrorCode::TypeMismatch);
    let off = client.get_int_value("seats", Some(&free), None).await.unwrap_err();
    assert_eq!(off.code, EvaluationErrorCode::General("FEATURE_OFF".to_owned()));
    assert!(off.message.unwrap().starts_with("`seats` is off"), "and says why");
}

#[tokio::test]
async fn the_clients_context_is_used_and_that_of_the_call_goes_first() {
    let (mut client, pro, free) = client().await;
    client.set_evaluation_context(pro);
    assert_eq!(client.get_bool_value("export", None, None).await, Ok(true));
    assert_eq!(client.get_bool_value("export", Some(&free), None).await, Ok(false));
}
