//! Plans as code: what is sold, from the file of the plan catalogue to products, prices, features and meters at Stripe.
//!
//! Owns the tables `products` and `prices` of that file ([`PriceList`]), the comparison with what Stripe has ([`SyncPlan`],
//! as data and in words), and [`apply`], which does what the comparison says. Promises that nothing a customer is on is
//! changed (a changed price is another price, which takes the lookup key over), that the same text applied again, by several
//! processes at once or after a kill at any step, ends in the same objects and no second ones, and that what Stripe cannot
//! express is refused before anything is sent. Which plan a price means stays with the catalogue;
//! [`Billing::apply_prices`](crate::Billing::apply_prices) remembers the ids.
//!
//! ```
//! use saas_billing::catalog::PriceList;
//! use saas_core::PlanCatalog;
//!
//! let text = r#"
//!     default_plan = "free"
//!     [plans.free]
//!     rank = 0
//!     [[plans.free.versions]]
//!     version = 1
//!     [plans.pro]
//!     rank = 10
//!     [[plans.pro.versions]]
//!     version = 1
//!     prices = ["pro-monthly"]
//!
//!     [products.pro]                  # of the plan or add-on of that name
//!     name = "Pro"
//!     [prices.pro-monthly]
//!     per = "seat"                    # flat, seat or usage
//!     interval = "month"
//!     amounts = { eur = "20.00", jpy = "3000", kwd = "6.500" }
//! "#;
//! let catalog = PlanCatalog::from_toml(text)?;
//! let list = PriceList::from_toml(text, &catalog)?;
//! let keys: Vec<_> = list.prices().iter().map(|price| price.lookup_key.as_str()).collect();
//! assert_eq!(keys, ["pro-monthly-eur", "pro-monthly-jpy", "pro-monthly-kwd"]);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod amount;
mod diff;
mod document;
mod fault;
mod found;
mod list;
mod sync;
#[cfg(test)]
mod tests;

pub use diff::{Cause, Difference, FieldDifference, OldPrices, Step, SubjectKind, SyncPlan};
pub use document::Per;
pub use fault::{PriceFault, PriceListError};
pub use found::KnownPrice;
pub use list::{PriceList, WantedPrice, WantedProduct};
pub use sync::{Applied, SyncError, apply, plan};
