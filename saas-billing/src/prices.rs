//! What is sold, at Stripe and in the database: applied together, and looked up by name.

use std::sync::{PoisonError, RwLock};

use saas_core::{Actor, InvalidInput, PlanCatalog, SystemTx};
use sqlx::PgConnection;

use crate::{
    billing::{ACTOR, Billing},
    catalog::{self, Applied, OldPrices, PriceList, SyncPlan},
    derive::{Alert, Derived, TenantObjects, derive},
    error::BillingError,
    money::Currency,
    object::ObjectId,
    postgres::price,
    provider::PaymentProvider,
};

/// The catalogue with the ids of its prices, as far as this process has heard of them.
#[derive(Debug)]
pub(crate) struct Prices(RwLock<PlanCatalog>);

impl Prices {
    pub(crate) fn new(catalog: PlanCatalog) -> Self {
        Self(RwLock::new(catalog))
    }

    fn present(&self) -> PlanCatalog {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, ids: Vec<(String, String)>) -> PlanCatalog {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_known = |id: &str| present.plan_for_price(id).is_some() || present.addon_for_price(id).is_some();
        if ids.iter().any(|(id, _)| !is_known(id)) {
            *present = present.with_price_ids(ids);
        }
        present.clone()
    }
}

impl Billing {
    /// The catalogue, which knows the ids of the prices that it calls by a name.
    pub(crate) fn catalog(&self) -> PlanCatalog {
        self.prices.present()
    }

    /// Says what [`apply_prices`](Self::apply_prices) would do, and changes nothing.
    ///
    /// # Errors
    /// As [`catalog::plan`].
    pub async fn plan_prices(
        &self,
        provider: &dyn PaymentProvider,
        list: &PriceList,
        old: OldPrices,
    ) -> Result<SyncPlan, BillingError> {
        Ok(catalog::plan(provider, list, self.config.mode, old).await?)
    }

    /// Brings Stripe to what the list says, and remembers which price means what. Run it before the release that sells them;
    /// any number of times, and in any number of processes at once.
    ///
    /// # Errors
    /// As [`catalog::apply`], and when the database does not answer. Call it again: what is done is not done twice.
    pub async fn apply_prices(
        &self,
        provider: &dyn PaymentProvider,
        list: &PriceList,
        old: OldPrices,
        actor: &Actor,
    ) -> Result<Applied, BillingError> {
        let applied = catalog::apply(provider, list, self.config.mode, old).await?;
        let mut tx = SystemTx::begin(&self.system, actor.clone(), "remember the prices of the catalogue").await?;
        price::put(&mut tx, &self.scope, &applied.known, self.clock.now()).await?;
        tx.commit().await?;
        for difference in &applied.plan.differences {
            tracing::info!(target: "saas.billing.catalog", live = self.scope.livemode, "{difference}");
        }
        self.prices.learn(applied.known.iter().map(|one| (one.id.to_string(), one.name.clone())).collect());
        Ok(applied)
    }

    /// The price that is sold under a name of the catalogue in a currency: what a checkout is opened with.
    ///
    /// # Errors
    /// [`Invalid`](BillingError::Invalid) when there is none; `apply_prices` makes it.
    pub async fn price(&self, name: &str, currency: Currency) -> Result<ObjectId, BillingError> {
        let mut tx = SystemTx::begin(&self.system, ACTOR, "look up a price of the catalogue").await?;
        let found = price::current(&mut tx, &self.scope, (name, currency)).await?;
        tx.commit().await?;
        let Some(id) = found else {
            let why = "is not sold in this currency";
            return Err(
                InvalidInput::new(format!("the price {name:?} in {currency}"), why, "apply the price list").into()
            );
        };
        if self.catalog().plan_for_price(id.as_str()).is_none() {
            self.prices.learn(vec![(id.to_string(), name.to_owned())]);
        }
        Ok(id)
    }

    /// Derives by the catalogue; where a price is unknown, by what another process may have remembered since.
    pub(crate) async fn derive_in(
        &self,
        connection: &mut PgConnection,
        objects: &TenantObjects,
    ) -> Result<Derived, saas_core::CoreError> {
        let derived = derive(objects, &self.catalog());
        if !derived.alerts.iter().any(|alert| matches!(alert, Alert::UnknownPrice { .. })) {
            return Ok(derived);
        }
        let names = price::names(connection, &self.scope).await?;
        Ok(derive(objects, &self.prices.learn(names)))
    }
}
