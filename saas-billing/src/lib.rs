//! Stripe billing whose state does not depend on the order of events.
//!
//! Stripe delivers events late, twice, in any order, or never. This crate stores each delivery before it looks inside,
//! merges what the deliveries say about each object so that order and repetition cannot matter, and derives from the merged
//! objects what a tenant has: its plan, whether it is paid, since when it is not.
//!
//! ```
//! # #[cfg(feature = "postgres")] {
//! use std::sync::Arc;
//! use saas_billing::{Billing, BillingConfig, Mode, SigningSecrets, WebhookProcessor};
//! use saas_billing::{object::Interval, testing::{Chaos, CheckoutRequest, StripeSimulator}};
//! use saas_core::{PlanCatalog, subscription::PlanSource, testing::TestDatabase};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let database = TestDatabase::start(&[&saas_core::SCHEMA, &saas_billing::SCHEMA]).await;
//! let clock = database.clock().clone();
//! let catalog = PlanCatalog::from_toml(r#"
//!     default_plan = "free"
//!     [plans.free]
//!     rank = 0
//!     [[plans.free.versions]]
//!     version = 1
//!     [plans.pro]
//!     rank = 10
//!     [[plans.pro.versions]]
//!     version = 1
//!     prices = ["price_pro"]
//! "#)?;
//! // A Stripe without an account; with one, the secret is the endpoint's `whsec_…`.
//! let stripe = StripeSimulator::new("whsec_0123456789abcdef", clock.clone())?;
//! stripe.create_price("price_pro", 2000, "eur", &Interval::Month);
//! let config = BillingConfig::new(catalog, SigningSecrets::new(vec![stripe.secret()])?, Mode::Test);
//! let tenants = Arc::new(database.tenants().clone());
//! let billing = Billing::new(config, tenants, database.system().clone(), Arc::new(clock.clone()));
//!
//! // A tenant opens a checkout, which is remembered as its own, and pays.
//! let acme = database.create_tenant("acme").await;
//! let session = stripe.checkout(CheckoutRequest::new("price_pro"));
//! billing.record_checkout(&acme, &session).await?;
//! stripe.complete_checkout(&session)?;
//!
//! // The webhook route: raw bytes and one header, whatever the web framework. Shuffled and repeated here.
//! for delivery in stripe.deliveries_through(Chaos::shuffled(42).duplicating(50)) {
//!     let _accepted = billing.process(&delivery.body, &delivery.signature).await?;
//! }
//! // The worker.
//! while billing.apply_pending(50).await?.total() > 0 {}
//! let _ = billing.fetch_pending(&stripe, 10).await?;
//!
//! // What the entitlements ask.
//! let assignment = billing.plan_of(&acme, saas_core::Clock::now(&clock)).await?;
//! assert_eq!(assignment.plan.as_str(), "pro");
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! # }
//! ```
//!
//! # From a delivery to a plan
//! 1. [`WebhookProcessor::process`]: size limit, signature over the raw bytes ([`signature`]), envelope ([`event`]), one
//!    durable insert. Then the answer 200. Endpoints for web frameworks: `web` (features `tower` and `actix`).
//! 2. [`Billing::apply_pending`]: reads the object ([`object`]), merges it ([`merge`]), derives ([`derive`](mod@derive)),
//!    and commits that with the revision, the audit row and the mark on the receipt. An event of a customer that no tenant
//!    is linked to yet is parked; one that cannot be read or fails too often becomes a dead letter
//!    ([`Billing::list_stuck`], [`Billing::replay`]).
//!    What is done about each type of event stands in one table ([`event::TABLE`]).
//! 3. [`Billing::fetch_pending`]: reads from Stripe what no event tells for certain. After an outage,
//!    [`Billing::back_fill`] stores the events that were never delivered, and a run of [`Billing::start_reconcile`] and
//!    [`Billing::reconcile_step`] finds and mends what no event told at all.
//! 4. Writes ([`command`]): a row fixes the idempotency key, whoever asks sends it, the outbox sends it again, and what Stripe
//!    answers goes through the merge of 2. [`PaymentProvider`] is the port; `StripeApi` (feature `stripe`) and the simulator
//!    implement it.
//!    What is sold comes from the catalogue's file ([`catalog`]), and usage that is charged from its batches ([`usage`]).
//! 5. [`PlanSource`](saas_core::subscription::PlanSource): [`Billing`] answers from what was derived; grace runs out at
//!    read time, so no job has to fire.
//! 6. [`dunning`]: while an invoice is not paid, [`dunning::DunningHandler`] sends what the policy says and when.
//!
//! [`Billing::webhook_health`] says whether all that works, [`Billing::list_notices`] what an operator should know,
//! [`Billing::list_alerts`] which tenants need one.
//!
//! What happened to money is written beside that, in the same transaction: [`ledger`] in whole minor units ([`money`]),
//! [`revenue`] per month. Call [`Billing::roll_revenue`] from a worker, so that what time alone changes is recorded, and
//! [`Billing::verify_ledgers`] once a day.
#![cfg_attr(feature = "testing", recursion_limit = "256")]
// Money is counted, never measured.
#![deny(clippy::float_arithmetic)]

#[cfg(feature = "postgres")]
mod alerts;
#[cfg(feature = "postgres")]
mod apply;
#[cfg(feature = "postgres")]
mod back_fill;
#[cfg(feature = "postgres")]
mod billing;
pub mod catalog;
#[cfg(feature = "postgres")]
pub mod command;
#[cfg(feature = "postgres")]
mod config;
#[cfg(feature = "postgres")]
mod dependents;
pub mod derive;
#[cfg(feature = "postgres")]
mod door;
pub mod dunning;
mod error;
pub mod event;
#[cfg(feature = "postgres")]
mod fetching;
#[cfg(feature = "postgres")]
mod group;
#[cfg(feature = "postgres")]
mod health;
#[cfg(feature = "postgres")]
mod intake;
pub mod ledger;
pub mod merge;
mod mode;
pub mod money;
#[cfg(feature = "postgres")]
mod notices;
pub mod object;
#[cfg(feature = "postgres")]
mod place;
mod port;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod prices;
pub mod provider;
#[cfg(feature = "postgres")]
mod purging;
#[cfg(feature = "postgres")]
mod receipts;
#[cfg(feature = "postgres")]
mod reconcile;
#[cfg(feature = "postgres")]
mod rederive;
#[cfg(feature = "postgres")]
mod reread;
pub mod revenue;
#[cfg(feature = "postgres")]
mod seat;
#[cfg(feature = "postgres")]
mod secrets;
#[cfg(feature = "postgres")]
mod settle;
pub mod signature;
#[cfg(feature = "postgres")]
mod sitting;
#[cfg(feature = "stripe")]
pub mod stripe;
#[cfg(feature = "postgres")]
pub mod subscription;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "postgres")]
mod together;
#[cfg(feature = "postgres")]
pub mod usage;
#[cfg(any(feature = "tower", feature = "actix"))]
pub mod web;

#[cfg(feature = "postgres")]
pub use alerts::{AlertCursor, TenantAlerts};
#[cfg(feature = "postgres")]
pub use apply::Applied;
#[cfg(feature = "postgres")]
pub use back_fill::BackFilled;
#[cfg(feature = "postgres")]
pub use billing::Billing;
#[cfg(feature = "postgres")]
pub use config::BillingConfig;
#[cfg(feature = "postgres")]
pub use dependents::LiveBilling;
#[cfg(feature = "postgres")]
pub use door::DoorHealth;
pub use error::BillingError;
#[cfg(feature = "postgres")]
pub use fetching::FetchPass;
#[cfg(feature = "postgres")]
pub use health::{EndpointHealth, WebhookAlarm, WebhookHealth};
pub use mode::Mode;
#[cfg(feature = "postgres")]
pub use notices::{NoticeCursor, OperatorNotice};
pub use object::ObjectId;
pub use port::{Accepted, WebhookProcessor};
pub use provider::{Fetched, ObjectSource, PaymentProvider, ProviderError};
#[cfg(feature = "postgres")]
pub use receipts::{InboxHealth, Receipt, ReceiptCursor, Stuck};
#[cfg(feature = "postgres")]
pub use reconcile::{Drift, FieldDrift, ReconcileList, ReconcileRun};
#[cfg(feature = "postgres")]
pub use rederive::{RederiveCursor, Rederived};
#[cfg(feature = "postgres")]
pub use seat::{Occupancy, OverviewMembers, Seat, SeatPolicy, SeatRepair, SeatReport, Seats};
pub use signature::{SIGNATURE_HEADER, SignatureError, SigningSecrets, StripeSecret};

/// The tables of this crate. Migrate [`saas_core::SCHEMA`] first.
#[cfg(feature = "postgres")]
pub static SCHEMA: saas_core::Schema = saas_core::schema!("billing": 1 "0001_inbox", 2 "0002_state", 3 "0003_retention", 4 "0004_ledger", 5 "0005_revenue", 6 "0006_command", 7 "0007_request", 8 "0008_seat_trial", 9 "0009_reconcile", 10 "0010_dunning", 11 "0011_price_usage", 12 "0012_notice");
