//! What shows that a domain is a tenant's: the port to DNS, and the rule.

use std::fmt;

use async_trait::async_trait;
use saas_core::{Cause, DomainToken};

use super::DomainName;

/// Reads what is published about a domain. Implement it over your DNS library, or over HTTPS.
///
/// # Contract
/// - *Whole*: every value that is published, each as one text (the strings of one TXT record joined); none is `Ok(vec![])`,
///   as NXDOMAIN is. Not having got an answer is an error: a tenant must not lose a domain because a resolver was down.
/// - *Fresh*: asks the domain's own name servers, or a cache no older than a minute. A domain that has moved must not be
///   proven by what its last owner published.
/// - *Where*: TXT records of [`challenge`](DomainName::challenge); or, for proof by HTTP, the lines of
///   `https://<domain>/.well-known/saas-challenge`: public addresses only, no redirect to another host, at most 4 KiB.
///   Whoever can serve that file owns the site, not the domain: prefer DNS.
/// - *Bounded*: gives up after some seconds.
///
/// ```
/// use saas_tenancy::domain::{DomainName, DomainProof, ProofError};
///
/// # #[derive(Debug)] struct Resolver;
/// # impl Resolver {
/// #     async fn txt(&self, _: String) -> Result<Option<Vec<String>>, std::io::Error> { Ok(None) }
/// # }
/// #[derive(Debug)]
/// struct Dns(Resolver); // of the library that you use
///
/// #[async_trait::async_trait]
/// impl DomainProof for Dns {
///     async fn published(&self, domain: &DomainName) -> Result<Vec<String>, ProofError> {
///         let records = self.0.txt(domain.challenge()).await.map_err(ProofError::new)?;
///         Ok(records.unwrap_or_default()) // no such name: nothing is published
///     }
/// }
/// ```
#[async_trait]
pub trait DomainProof: fmt::Debug + Send + Sync + 'static {
    /// The values that are published for the domain.
    async fn published(&self, domain: &DomainName) -> Result<Vec<String>, ProofError>;
}

/// Nobody said what is published.
#[derive(Debug, thiserror::Error)]
#[error("the proof could not be read")]
pub struct ProofError {
    #[source]
    cause: Cause,
}

impl ProofError {
    /// The cause, for logs.
    pub fn new(cause: impl Into<Cause>) -> Self {
        Self { cause: cause.into() }
    }
}

/// What a tenant publishes: `saas-domain-verification=` and its token.
#[must_use]
pub fn value_for(token: DomainToken) -> String {
    format!("{PREFIX}{}", token.as_uuid().simple())
}

const PREFIX: &str = "saas-domain-verification=";

/// What the published values say about one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    Proven,
    Missing,
    Contested,
}

/// The claim is proven when its value stands there and no other claim's does. So whoever takes a domain over must be able
/// to remove what its last owner published, and the answer depends on nothing but DNS, which anybody can read: it does not
/// tell one tenant what another one claims.
pub(super) fn judge(published: &[String], token: DomainToken) -> Finding {
    let mine = value_for(token);
    let mut finding = Finding::Missing;
    for value in published.iter().map(|value| value.trim()).filter(|value| value.starts_with(PREFIX)) {
        if value != mine {
            return Finding::Contested;
        }
        finding = Finding::Proven;
    }
    finding
}

#[cfg(test)]
mod tests {
    use saas_core::SystemClock;

    use super::*;

    #[test]
    fn a_claim_is_proven_by_its_value_and_no_other() {
        let (mine, other) = (DomainToken::mint(&SystemClock), DomainToken::mint(&SystemClock));
        let (mine_is, other_is) = (value_for(mine), value_for(other));
        let judged = |values: &[&str]| judge(&values.iter().map(ToString::to_string).collect::<Vec<_>>(), mine);
        assert_eq!(judged(&[]), Finding::Missing);
        assert_eq!(judged(&["v=spf1 -all", "google-site-verification=x"]), Finding::Missing);
        assert_eq!(judged(&["v=spf1 -all", &mine_is]), Finding::Proven);
        assert_eq!(judged(&[&mine_is, &format!(" {mine_is} ")]), Finding::Proven);
        assert_eq!(judged(&[&other_is]), Finding::Contested);
        for values in [[&mine_is, &other_is], [&other_is, &mine_is]] {
            assert_eq!(judged(&values.map(String::as_str)), Finding::Contested);
        }
        assert_eq!(judged(&[&format!("{mine_is}0")]), Finding::Contested, "a prefix is not the value");
        assert_eq!(judged(&[&mine_is.to_uppercase()]), Finding::Missing);
    }
}
