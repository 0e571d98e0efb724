//! Idempotency keys: a repeated request gets the answer of the first one, and its effect happens once.
//!
//! The key, the effect and the answer commit together, so there is no moment at which one exists without the others.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::{CoreError, IdempotencyKey, SystemTx, TenantTx};

/// Whether the work is still to be done.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// First sight of this key: do the work, then call [`complete`] in the same transaction.
    New,
    /// The work was done before; this was its answer. `None` when the first caller committed without one.
    Replay(Option<Vec<u8>>),
}

/// Claims a key for a request, or finds the answer that was given.
///
/// Waits for a concurrent transaction that holds the same key, at most as long as the role's `lock_timeout` (10 seconds
/// unless changed): if that one commits, this one replays.
///
/// # Errors
/// [`KeyReused`](CoreError::KeyReused) when the key came with another `request` before;
/// [`Unavailable`](CoreError::Unavailable) when the first caller is still at work.
pub async fn claim(
    tx: &mut TenantTx,
    key: &IdempotencyKey,
    request: &[u8],
    now: DateTime<Utc>,
) -> Result<Claim, CoreError> {
    let tenant = tx.tenant().as_uuid();
    let fingerprint = Sha256::digest(request);
    let inserted = sqlx::query(
        "insert into saas.idempotency_key (tenant_id, key, fingerprint, created_at)
         values ($1, $2, $3, $4)
         on conflict (tenant_id, key) do nothing",
    )
    .bind(tenant)
    .bind(key.as_str())
    .bind(fingerprint.as_slice())
    .bind(now)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    if inserted.rows_affected() == 1 {
        return Ok(Claim::New);
    }
    let (stored, response): (Vec<u8>, Option<Vec<u8>>) =
        sqlx::query_as("select fingerprint, response from saas.idempotency_key where tenant_id = $1 and key = $2")
            .bind(tenant)
            .bind(key.as_str())
            .fetch_one(&mut **tx)
            .await
            .map_err(CoreError::from_database)?;
    if stored != fingerprint.as_slice() {
        return Err(CoreError::KeyReused { key: key.as_str().to_owned() });
    }
    Ok(Claim::Replay(response))
}

/// Stores the answer beside the effect.
///
/// # Errors
/// [`NotFound`](CoreError::NotFound) when the key was not claimed in this transaction.
pub async fn complete(tx: &mut TenantTx, key: &IdempotencyKey, response: &[u8]) -> Result<(), CoreError> {
    let updated = sqlx::query(
        "update saas.idempotency_key
         set response = $3
         where tenant_id = $1 and key = $2 and xmin = pg_current_xact_id()::xid",
    )
    .bind(tx.tenant().as_uuid())
    .bind(key.as_str())
    .bind(response)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    if updated.rows_affected() == 1 { Ok(()) } else { Err(CoreError::NotFound { what: "claimed idempotency key" }) }
}

/// Removes keys that were claimed before `before`, at most 10,000 a call, and says how many. Call it until it says 0.
///
/// A request that comes again after its key was removed is a new request: keep keys longer than any client retries.
///
/// # Errors
/// When the database does not answer.
pub async fn purge_in(tx: &mut SystemTx, before: DateTime<Utc>) -> Result<u64, CoreError> {
    let deleted = sqlx::query(
        "delete from saas.idempotency_key
         where (tenant_id, key) in (
            select tenant_id, key from saas.idempotency_key where created_at < $1 order by created_at limit 10000)",
    )
    .bind(before)
    .execute(&mut **tx)
    .await
    .map_err(CoreError::from_database)?;
    Ok(deleted.rows_affected())
}
