//! The four Stripe objects that decide what a tenant has: customer, checkout session, subscription, invoice.
//!
//! Owns our own reading of them, from raw JSON of any API version since 2019: the fields we need, in their old and their
//! new places, references as ids or expanded, unknown enum values kept. Promises that a value it cannot trust is an error
//! or an explicit gap, never a zero. Leaves order and merging to [`merge`](crate::merge).

mod checkout;
mod customer;
mod id;
mod invoice;
mod open_enum;
mod subscription;
mod wire;

pub use checkout::{CheckoutSession, CheckoutStatus};
pub use customer::Customer;
pub use id::{ObjectId, ObjectKind};
pub use invoice::{Collection, Invoice, InvoiceStatus};
pub use subscription::{
    Interval, Pause, PauseBehavior, Period, Price, Subscription, SubscriptionItem, SubscriptionStatus,
};
pub(crate) use wire::Text;
pub use wire::Unreadable;
