//! A Stripe to develop and test against: no account, no network, its own clock.
//!
//! Owns customers, prices, checkout, subscriptions, invoices, meters, a clock that it advances through renewals, retries and
//! trials, and the events about all that: correctly signed, pretty-printed, with Stripe's shapes, whole-second `created`
//! and `previous_attributes`. Promises that the same calls give the same bytes. One state has two doors: calls in the
//! process ([`StripeSimulator`] is a [`PaymentProvider`](crate::PaymentProvider)), and Stripe's API over HTTP
//! ([`SimulatorServer`]) with pages that a browser can click. Deliveries can be shuffled, repeated, delayed and dropped by a
//! seed; calls can fail in every way that calls fail ([`Fault`]). A history that it lets happen ([`Story`], [`Scenario`]) can be
//! put through all orders, repetitions and kills ([`Permutations`]).

mod acts;
mod api;
mod change;
mod chaos;
mod checkout;
mod coupon;
mod door;
mod engine;
mod fault;
mod hooks;
mod money;
mod pages;
mod payload;
mod permute;
mod pricing;
mod scenario;
mod server;
mod simulator;
mod story;
mod world;

pub use chaos::Chaos;
pub use checkout::{CheckoutRequest, Purchase};
pub use coupon::{Coupon, Lasts};
pub use fault::Fault;
pub use hooks::{Delivered, WebhookSender};
pub use money::NoteOutcome;
pub use payload::PayloadShape;
pub use permute::{
    Agreed, Course, Difference, Divergence, Permutations, Step, Subject, SubjectError, Unproven, orders,
};
pub use scenario::{Scenario, Worlds, cut_after};
pub use server::SimulatorServer;
pub use simulator::{Delivery, StripeSimulator};
pub use story::Story;
pub use world::AfterRetries;
