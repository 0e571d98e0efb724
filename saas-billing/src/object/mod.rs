//! The Stripe objects that decide what a tenant has (customer, checkout session, subscription, invoice), and those that say
//! where its money went (charge, refund, dispute, credit note).
//!
//! Owns our own reading of them, from raw JSON of any API version since 2019: the fields we need, in their old and their
//! new places, references as ids or expanded, unknown enum values kept. Promises that a value it cannot trust is an error
//! or an explicit gap, never a zero. Leaves order and merging to [`merge`](crate::merge).

mod charge;
mod checkout;
mod credit_note;
mod customer;
mod discount;
mod dispute;
mod id;
mod invoice;
mod open_enum;
mod refund;
mod subscription;
mod wire;

pub use charge::{Charge, ChargeStatus};
pub use checkout::{CheckoutSession, CheckoutStatus};
pub use credit_note::{CreditNote, CreditNoteStatus};
pub use customer::Customer;
pub use discount::{CouponDuration, Discount, DiscountTerms};
pub use dispute::{Dispute, DisputeStatus};
pub use id::{ObjectId, ObjectKind};
pub use invoice::{Collection, Invoice, InvoiceStatus};
pub use refund::{Refund, RefundStatus};
pub use subscription::{
    BillingMode, Interval, Pause, PauseBehavior, PauseReason, PausedStatus, PendingUpdate, Period, Price, Subscription,
    SubscriptionItem, SubscriptionStatus,
};
#[cfg(feature = "postgres")]
pub(crate) use wire::Reference;
pub(crate) use wire::Text;
pub use wire::Unreadable;
