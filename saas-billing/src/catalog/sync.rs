//! Reads Stripe, compares, and does what is to be done, until nothing is.

use std::collections::BTreeMap;

use saas_core::{ErrorKind, IdempotencyKey};
use sha2::{Digest, Sha256};

use super::{
    PriceList, PriceListError,
    diff::{OldPrices, Step, SyncPlan},
    found::{Found, KnownPrice, NAME, PER, SAID, Unread},
    list::WantedPrice,
};
use crate::{
    mode::Mode,
    object::ObjectId,
    provider::{Command, NewPrice, PaymentProvider, ProviderError},
};

/// Rounds of reading and doing: another process may do the same meanwhile, and keys can be spent.
const ROUNDS: u32 = 4;

/// Why a catalogue was not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The list cannot be had at Stripe. Nothing was sent.
    #[error(transparent)]
    List(#[from] PriceListError),
    /// Stripe said no, or nothing. What was done stays; apply again.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The key or the account is of the other mode. Nothing was sent.
    #[error("the account is of the other mode than {wanted:?}; pass the key of that mode")]
    OtherMode {
        /// The mode that was asked for.
        wanted: Mode,
    },
    /// Something changes the account's catalogue as often as this does.
    #[error(
        "Stripe's catalogue still differs after {ROUNDS} rounds: {first}; see who else changes it, then apply again"
    )]
    Unsettled {
        /// The first difference that is left.
        first: String,
    },
}

impl SyncError {
    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::List(why) => why.kind(),
            Self::Provider(why) => why.kind(),
            Self::OtherMode { .. } => ErrorKind::Misconfigured,
            Self::Unsettled { .. } => ErrorKind::Conflict,
        }
    }

    /// A stable name for logs and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::List(why) => why.code(),
            Self::Provider(why) => why.code(),
            Self::OtherMode { .. } => "other_mode",
            Self::Unsettled { .. } => "catalog_unsettled",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What differed at first, and was done about it.
    pub plan: SyncPlan,
    /// Every price that was ever sold under a name of the file.
    pub known: Vec<KnownPrice>,
}

/// Compares the list with what Stripe has, and changes nothing.
///
/// # Errors
/// - [`SyncError::List`]: Stripe has a meter of that name that counts otherwise.
/// - [`SyncError::OtherMode`], [`SyncError::Provider`].
pub async fn plan(
    provider: &dyn PaymentProvider,
    list: &PriceList,
    mode: Mode,
    old: OldPrices,
) -> Result<SyncPlan, SyncError> {
    let (plan, _) = look(provider, list, mode, old).await?;
    Ok(plan)
}

/// Does what [`plan`] says. Safe to call again after any error, after a kill, and in several processes at once: what is made is
/// named by the text, so it is made once.
///
/// # Errors
/// As [`plan`], and [`SyncError::Unsettled`]. What was done until then stays, and is found by the next call.
#[tracing::instrument(name = "saas.billing.catalog.apply", level = "debug", skip_all)]
pub async fn apply(
    provider: &dyn PaymentProvider,
    list: &PriceList,
    mode: Mode,
    old: OldPrices,
) -> Result<Applied, SyncError> {
    let mut first = None;
    for round in 0..ROUNDS {
        let (plan, found) = look(provider, list, mode, old).await?;
        if plan.is_empty() {
            let known = plan.known.clone();
            return Ok(Applied { plan: first.unwrap_or(plan), known });
        }
        let mut names = Names::of(&found);
        for difference in &plan.differences {
            match names.act(provider, &difference.step, round).await {
                Ok(()) => {}
                // Somebody else has done it meanwhile, or Stripe has saved a failure: the next round looks.
                Err(ProviderError::Refused { code, .. }) if code == "resource_already_exists" => break,
                Err(why) if why.is_key_spent() => break,
                Err(why) => return Err(why.into()),
            }
        }
        first.get_or_insert(plan);
    }
    let (plan, _) = look(provider, list, mode, old).await?;
    match plan.differences.first() {
        None => Ok(Applied { known: plan.known.clone(), plan: first.unwrap_or(plan) }),
        Some(difference) => Err(SyncError::Unsettled { first: difference.to_string() }),
    }
}

async fn look(
    provider: &dyn PaymentProvider,
    list: &PriceList,
    mode: Mode,
    old: OldPrices,
) -> Result<(SyncPlan, Found), SyncError> {
    if provider.mode() != mode {
        return Err(SyncError::OtherMode { wanted: mode });
    }
    let found = Found::read(provider, list, mode).await.map_err(|why| match why {
        Unread::Provider(why) => SyncError::Provider(why),
        Unread::OtherMode => SyncError::OtherMode { wanted: mode },
    })?;
    Ok((SyncPlan::of(list, &found, old)?, found))
}

/// Stripe's ids of what steps call by name.
struct Names {
    meters: BTreeMap<String, ObjectId>,
    features: BTreeMap<String, ObjectId>,
}

impl Names {
    fn of(found: &Found) -> Self {
        let meter = |name: &str| found.meter(name).map(|meter| (name.to_owned(), meter.id.clone()));
        let meters = found.meters.iter().filter_map(|one| meter(&one.event_name)).collect();
        let features = found.features.iter().map(|one| (one.lookup_key.clone(), one.id.clone())).collect();
        Self { meters, features }
    }

    async fn act(&mut self, provider: &dyn PaymentProvider, step: &Step, round: u32) -> Result<(), ProviderError> {
        let missing = || ProviderError::Missing { id: None };
        let command = match step {
            Step::CreateMeter(new) => Command::CreateMeter(new.clone()),
            Step::RenameMeter { meter, name } => Command::RenameMeter { meter: meter.clone(), name: name.clone() },
            Step::ReactivateMeter(meter) => Command::ReactivateMeter(meter.clone()),
            Step::CreateFeature(new) => Command::CreateFeature(new.clone()),
            Step::ChangeFeature { feature, name } => {
                let metadata = BTreeMap::from([(SAID.to_owned(), name.clone())]);
                Command::ChangeFeature { feature: feature.clone(), name: name.clone(), metadata }
            }
            Step::CreateProduct(new) => Command::CreateProduct(new.clone()),
            Step::ChangeProduct(new) => Command::ChangeProduct(new.clone()),
            Step::AttachFeature { product, lookup_key } => {
                let feature = self.features.get(lookup_key).cloned().ok_or_else(missing)?;
                Command::AttachFeature { product: product.clone(), feature }
            }
            Step::DetachFeature { product, attachment } => {
                Command::DetachFeature { product: product.clone(), attachment: attachment.clone() }
            }
            Step::CreatePrice { price, replaces } => self.new_price(price, replaces.is_some())?,
            Step::OfferPrice { price, id } => Command::OfferPrice {
                price: id.clone(),
                lookup_key: price.lookup_key.clone(),
                metadata: metadata(price),
            },
            Step::ArchivePrice(id) => Command::ArchivePrice(id.clone()),
        };
        let key = match step {
            Step::CreatePrice { replaces, .. } => price_key(&command, replaces.as_ref(), round)?,
            // Stripe makes one of a name, and saying a thing twice is saying it.
            _ => named(format!("saas-catalog-{:032x}", fastrand::u128(..)))?,
        };
        let reply = provider.execute(&command, &key).await?;
        match step {
            Step::CreateMeter(new) => drop(self.meters.insert(new.event_name.clone(), reply.id()?)),
            Step::CreateFeature(new) => drop(self.features.insert(new.lookup_key.clone(), reply.id()?)),
            _ => {}
        }
        Ok(())
    }

    fn new_price(&self, price: &WantedPrice, takes_over_key: bool) -> Result<Command, ProviderError> {
        let meter = match &price.meter {
            Some(name) => Some(self.meters.get(name).cloned().ok_or(ProviderError::Missing { id: None })?),
            None => None,
        };
        Ok(Command::CreatePrice(NewPrice {
            product: price.product.clone(),
            currency: price.currency.as_str().to_owned(),
            interval: price.interval.clone(),
            by: price.by.clone(),
            meter,
            lookup_key: price.lookup_key.clone(),
            takes_over_key,
            metadata: metadata(price),
        }))
    }
}

fn metadata(price: &WantedPrice) -> BTreeMap<String, String> {
    [(NAME, price.name.as_str()), (PER, price.per.as_str())]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into()
}

/// The key of a price is the same for whoever makes the same price in the same state, so that one is made: two that take a key
/// over would both be. The state is what it replaces.
fn price_key(command: &Command, replaces: Option<&ObjectId>, round: u32) -> Result<IdempotencyKey, ProviderError> {
    let unwritable = |_| ProviderError::Unreadable { what: "a command that cannot be written down" };
    let command = serde_json::to_vec(command).map_err(unwritable)?;
    let state = replaces.map(ObjectId::as_str).unwrap_or_default();
    let hash = Sha256::new().chain_update(command).chain_update([0]).chain_update(state).finalize();
    named(format!("saas-catalog-{}-{round}", hex::encode(hash)))
}

fn named(key: String) -> Result<IdempotencyKey, ProviderError> {
    IdempotencyKey::try_from(key).map_err(|_| ProviderError::Unreadable { what: "an idempotency key" })
}
