//! Clients of feature flag services, with their flags in memory and nobody at the other end.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::FutureExt;
use launchdarkly_server_sdk::{
    AttributeValue, Client as LdClient, ConfigBuilder, Context as LdContext, ContextBuilder, FlagBuilder,
    NullEventProcessorBuilder, TestData,
};
use open_feature::{
    EvaluationContext, EvaluationError, EvaluationErrorCode, EvaluationResult, StructValue,
    provider::{FeatureProvider, ProviderMetadata, ResolutionDetails},
};
use saas_benches::field::{self, FEATURES, PLANS};
use unleash_api_client::{
    client::{Client, ClientBuilder, FeatureKey},
    context::Context,
    http::{Request, Response, Transport},
};

fn plans_with(feature: usize) -> Vec<String> {
    (0..PLANS).filter(|plan| field::grants(*plan, feature)).map(|plan| format!("p{plan}")).collect()
}

static NAMES: [&str; FEATURES] = {
    const TEXT: &str = "f00f01f02f03f04f05f06f07f08f09f10f11f12f13f14f15f16f17f18f19f20f21f22f23f24\
        f25f26f27f28f29f30f31f32f33f34f35f36f37f38f39f40f41f42f43f44f45f46f47f48f49";
    let mut names = [""; FEATURES];
    let mut at = 0;
    while at < FEATURES {
        names[at] = TEXT.split_at(at * 3).1.split_at(3).0;
        at += 1;
    }
    names
};

/// `unleash-api-client`: a flag that is on for some plans, and a context with the plan.
pub(crate) struct Unleash {
    client: Client<Flag>,
    contexts: Vec<Context>,
}

#[derive(Debug, Clone, Copy)]
struct Flag(u8);

impl FeatureKey for Flag {
    fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }
}

#[derive(Debug)]
struct NoNetwork;

#[async_trait]
impl Transport for NoNetwork {
    async fn execute(&self, _: Request) -> anyhow::Result<Response> {
        anyhow::bail!("the benchmark does not use the network")
    }
}

impl Unleash {
    /// As it comes, it counts how often each flag was asked for; without, it does less than its service needs.
    pub(crate) fn new(counts: bool) -> anyhow::Result<Self> {
        let builder = ClientBuilder::default();
        let builder = if counts { builder } else { builder.disable_metric_submission() };
        let client =
            builder.into_client_with_transport::<Flag>("http://unused", "bench", "bench", None, Arc::new(NoNetwork))?;
        let feature = |feature: usize| {
            serde_json::json!({
                "name": NAMES[feature],
                "enabled": true,
                "strategies": [{
                    "name": "default",
                    "constraints": [{ "contextName": "plan", "operator": "IN", "values": plans_with(feature) }],
                }],
            })
        };
        let features: Vec<_> = (0..FEATURES).map(feature).collect();
        let features = serde_json::from_value(serde_json::json!({ "version": 2, "features": features }))?;
        client.memoize(features).map_err(|error| anyhow::anyhow!(error))?;
        let context =
            |plan| Context { properties: [("plan".to_owned(), format!("p{plan}"))].into(), ..Context::default() };
        Ok(Self { client, contexts: (0..PLANS).map(context).collect() })
    }

    pub(crate) fn ask(&self, plan: usize, feature: usize) -> bool {
        self.client.is_enabled(Flag(feature as u8), Some(&self.contexts[plan]), false)
    }
}

/// `open-feature` on a provider that is two maps: the tenant's bits by targeting key, the feature's place by name.
pub(crate) struct OpenFeature {
    client: open_feature::Client,
    contexts: Vec<EvaluationContext>,
}

struct InMemory {
    metadata: ProviderMetadata,
    tenants: HashMap<String, u64>,
    features: HashMap<&'static str, usize>,
}

impl OpenFeature {
    pub(crate) async fn new(tenants: usize) -> Self {
        let key = |tenant| field::tenant_id(tenant).to_string();
        let provider = InMemory {
            metadata: ProviderMetadata::new("in memory"),
            tenants: (0..tenants).map(|tenant| (key(tenant), field::bits(field::plan_of(tenant)))).collect(),
            features: NAMES.iter().enumerate().map(|(place, name)| (*name, place)).collect(),
        };
        let mut api = open_feature::OpenFeature::default();
        api.set_provider(provider).await;
        let contexts =
            (0..tenants).map(|tenant| EvaluationContext::default().with_targeting_key(key(tenant))).collect();
        Self { client: api.create_client(), contexts }
    }

    pub(crate) fn ask(&self, tenant: usize, feature: usize) -> bool {
        let asked = self.client.get_bool_value(NAMES[feature], Some(&self.contexts[tenant]), None);
        // Nothing in it waits.
        asked.now_or_never().and_then(Result::ok).unwrap_or(false)
    }
}

fn refused<T>() -> EvaluationResult<ResolutionDetails<T>> {
    Err(EvaluationError { code: EvaluationErrorCode::FlagNotFound, message: None })
}

#[async_trait]
impl FeatureProvider for InMemory {
    fn metadata(&self) -> &ProviderMetadata {
        &self.metadata
    }

    async fn resolve_bool_value(
        &self,
        key: &str,
        context: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<bool>> {
        let bits = context.targeting_key.as_ref().and_then(|tenant| self.tenants.get(tenant));
        match (bits, self.features.get(key)) {
            (Some(bits), Some(place)) => Ok(ResolutionDetails::new(bits >> place & 1 == 1)),
            _ => refused(),
        }
    }

    async fn resolve_int_value(&self, _: &str, _: &EvaluationContext) -> EvaluationResult<ResolutionDetails<i64>> {
        refused()
    }

    async fn resolve_float_value(&self, _: &str, _: &EvaluationContext) -> EvaluationResult<ResolutionDetails<f64>> {
        refused()
    }

    async fn resolve_string_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<String>> {
        refused()
    }

    async fn resolve_struct_value(
        &self,
        _: &str,
        _: &EvaluationContext,
    ) -> EvaluationResult<ResolutionDetails<StructValue>> {
        refused()
    }
}

/// `launchdarkly-server-sdk` with flags from its own test data, without events: a rule for some plans, and a context with
/// the plan.
pub(crate) struct LaunchDarkly {
    client: LdClient,
    contexts: Vec<LdContext>,
}

impl LaunchDarkly {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let data = TestData::new();
        for (feature, name) in NAMES.iter().enumerate() {
            let plans = plans_with(feature).into_iter().map(AttributeValue::from);
            data.update(
                FlagBuilder::new(*name)
                    .boolean_flag()
                    .on(true)
                    .fallthrough_variation(false)
                    .if_match("plan", plans)
                    .then_return(true),
            );
        }
        let config = ConfigBuilder::new("unused")
            .data_source(&data)
            .event_processor(&NullEventProcessorBuilder::new())
            .build()
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let client = LdClient::build(config).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        client.start_with_default_executor();
        let ready = client.wait_for_initialization(Duration::from_secs(10)).await;
        anyhow::ensure!(ready == Some(true), "the client did not start");
        let context = |plan: usize| {
            let mut builder = ContextBuilder::new(format!("anyone-{plan}"));
            builder.set_string("plan", format!("p{plan}"));
            builder.build().map_err(anyhow::Error::msg)
        };
        let contexts = (0..PLANS).map(context).collect::<Result<_, _>>().context("a context")?;
        Ok(Self { client, contexts })
    }

    pub(crate) fn ask(&self, plan: usize, feature: usize) -> bool {
        self.client.bool_variation(&self.contexts[plan], NAMES[feature], false)
    }
}
