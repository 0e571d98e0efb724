//! The signing secrets that count at present, and how they change while the program runs.

use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};
use saas_core::{Actor, InvalidInput};

use crate::{
    billing::Billing,
    signature::{SigningSecrets, StripeSecret},
};

/// Stripe lets an old secret sign for a day at most; a delivery that it began to try then may come a little later.
const MAX_OVERLAP: TimeDelta = TimeDelta::days(7);

/// What the next delivery is checked against.
#[derive(Debug)]
pub(crate) struct PresentSecrets(RwLock<Arc<SigningSecrets>>);

impl PresentSecrets {
    pub(crate) fn new(secrets: SigningSecrets) -> Self {
        Self(RwLock::new(Arc::new(secrets)))
    }

    /// Those of this moment. A delivery is checked against one set, whatever is changed meanwhile.
    pub(crate) fn get(&self) -> Arc<SigningSecrets> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(
        &self,
        change: impl FnOnce(&SigningSecrets) -> Result<SigningSecrets, InvalidInput>,
    ) -> Result<(), InvalidInput> {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *present = Arc::new(change(&present)?);
        Ok(())
    }
}

impl Billing {
    /// Accepts a new signing secret from the next delivery on, and those of before for `overlap` longer: then only the new
    /// one. For this process and all clones of this service in it; every process of the application has to be told.
    ///
    /// Roll the secret in Stripe's dashboard with the old one expiring later, call this, and choose an overlap no shorter
    /// than what was chosen there. Calling it again with the same secret leaves one.
    ///
    /// # Errors
    /// When the overlap is negative or longer than a week, or more than eight secrets would count; nothing is changed then.
    pub fn roll_secret(&self, actor: &Actor, new: StripeSecret, overlap: TimeDelta) -> Result<(), InvalidInput> {
        if overlap < TimeDelta::zero() || overlap > MAX_OVERLAP {
            return Err(InvalidInput::new(
                "the overlap of two signing secrets",
                "is negative or longer than a week",
                "use what was chosen at Stripe, at most a day, and some minutes more",
            ));
        }
        let now = self.clock.now();
        let until: DateTime<Utc> = now + overlap;
        self.secrets.change(|present| present.rolled(new, until, now))?;
        tracing::info!(target: "saas.billing.webhook.secret", %actor, %until, "a new signing secret; the old ones end");
        Ok(())
    }

    /// Accepts these secrets and no others from the next delivery on, as after reading the configuration anew. For this
    /// process and all clones of this service in it.
    pub fn replace_secrets(&self, actor: &Actor, secrets: SigningSecrets) {
        // What is replaced cannot be in the way.
        let _ = self.secrets.change(|_| Ok(secrets));
        tracing::info!(target: "saas.billing.webhook.secret", %actor, "the signing secrets were replaced");
    }
}
