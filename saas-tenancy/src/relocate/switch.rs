//! From two places that are nearly equal to one home.
//!
//! While the gate holds the lock of the door, the tenant's transactions wait; none is refused yet, and if the mover dies the
//! lock is gone with its session and they go on at the source. Only when nothing is left to carry over is the door closed,
//! by the session that has held the lock all along; three round trips later the placement has changed.

use std::time::{Duration, Instant};

use super::{
    Endpoint, MoveError, Side, carry, door, numbers,
    record::{Control, Record},
    report::{Audit, Listener, Phase, tell},
    session::{Lock, Session},
    sides::{self, Sides},
    state::State,
};

/// A round that is over so soon is worth no further one before the freeze.
const SHORT_ROUND: Duration = Duration::from_millis(100);
/// A round that takes no longer may be the one for which the tenant waits, where rounds do not get shorter.
const BEARABLE_ROUND: Duration = Duration::from_millis(400);
const ROUNDS_TO_SHORTEN: u32 = 5;
/// A busy machine, or a tenant that writes as fast as the target takes it.
const LAST_RESORT_ROUND: Duration = Duration::from_millis(800);
const ROUNDS_BEFORE_LAST_RESORT: u32 = 25;
const MAX_ROUNDS: u32 = 60;
/// How long the tenant's new transactions may have to wait for its running ones before the mover lets them pass.
const FREEZE_PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to freeze.
const FREEZE_PAUSE: Duration = Duration::from_millis(500);
const FREEZE_TRIES: u32 = 20;

/// Carries changes over, freezes, drains, switches. Afterwards the tenant is at home in the target.
pub(super) async fn catch_up_and_switch(
    control: &Control,
    sides: &mut Sides,
    record: &mut Record,
    to: &Endpoint,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    if record.state != State::CatchingUp {
        control.advance(record, State::CatchingUp).await?;
    }
    // Opened before the freeze; holds a view of the target as it is at the switch.
    let mut auditor = Session::open(to, Side::Target).await?;
    for attempt in 1..=FREEZE_TRIES {
        catch_up(sides, record, listener).await?;
        tell(listener, Phase::Freeze, "");
        let frozen = Instant::now();
        let is_frozen = sides.gate.lock(record.tenant, Lock::Door, FREEZE_PATIENCE).await?.is_some();
        if is_frozen {
            switch(control, sides, record, &mut auditor, listener).await?;
        }
        // Those who came while it was tried in vain have waited, too.
        record.report.freeze = record.report.freeze.max(frozen.elapsed());
        if is_frozen {
            tell(listener, Phase::Switched, "");
            control.advance(record, State::Switched).await?;
            audit(sides, record, &mut auditor, listener).await?;
            return control.advance(record, State::Switched).await;
        }
        tokio::time::sleep(FREEZE_PAUSE * attempt).await;
    }
    Err(MoveError::Busy { what: "the tenant".into() })
}

async fn catch_up(sides: &mut Sides, record: &mut Record, listener: Listener<'_>) -> Result<(), MoveError> {
    let mut left = 0;
    for round in 1..=MAX_ROUNDS {
        let begun = Instant::now();
        left = carry(sides, record, Phase::CatchUp, listener).await?;
        let enough = match round {
            ..ROUNDS_TO_SHORTEN => SHORT_ROUND,
            ROUNDS_TO_SHORTEN..ROUNDS_BEFORE_LAST_RESORT => BEARABLE_ROUND,
            ROUNDS_BEFORE_LAST_RESORT.. => LAST_RESORT_ROUND,
        };
        if left == 0 || begun.elapsed() <= enough {
            return Ok(());
        }
    }
    Err(MoveError::CannotKeepUp { rounds: record.report.rounds, left })
}

async fn carry(sides: &mut Sides, record: &mut Record, phase: Phase, listener: Listener<'_>) -> Result<u64, MoveError> {
    let rows = carry::round(sides, record, phase, listener).await?;
    record.report.rounds += 1;
    record.report.carried_over += rows;
    Ok(rows)
}

/// Nothing of the tenant is under way at the source, and nothing begins.
async fn switch(
    control: &Control,
    sides: &mut Sides,
    record: &mut Record,
    auditor: &mut Session,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let (tenant, generation) = (record.tenant, record.generation);
    door::look(&mut sides.gate, tenant, generation).await?;
    carry(sides, record, Phase::Drain, listener).await?;
    sides.require_unchanged(record).await?;
    numbers::carry(sides).await?;
    auditor.begin_snapshot().await?;
    auditor.run("select 1").await?;
    tell(listener, Phase::Close, "");
    control.advance(record, State::Switching).await?;
    // Until this ends nobody else changes the tenant's status, so no door is left behind that tells a former one.
    let (turn, door) = control.take_turn(record, State::Switched).await?;
    door::close(&mut sides.gate, tenant, generation).await?;
    door::open_target(&mut sides.target, tenant, generation, door).await?;
    tell(listener, Phase::Switch, "");
    control.switch(turn, record).await?;
    Ok(sides.gate.unlock().await?)
}

/// Opens the source again after a switch that did not happen.
pub(super) async fn reopen(control: &Control, sides: &mut Sides, record: &mut Record) -> Result<(), MoveError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if sides.gate.lock(record.tenant, Lock::Door, PATIENCE).await?.is_none() {
        return Err(MoveError::Busy { what: "the tenant's door".into() });
    }
    let (turn, door) = control.take_turn(record, State::CatchingUp).await?;
    let Sides { gate, target, is_one_database, .. } = sides;
    door::reopen(gate, target, *is_one_database, record.tenant, record.generation, door).await?;
    turn.commit().await?;
    record.state = State::CatchingUp;
    Ok(sides.gate.unlock().await?)
}

/// Compares the closed source with the target as it was at the switch, table by table.
///
/// It need not hold up the tenant: that every table was equal when it arrived, and every change when it was carried over, is
/// known already. This asks once more, of all rows at once.
async fn audit(
    sides: &mut Sides,
    record: &mut Record,
    auditor: &mut Session,
    listener: Listener<'_>,
) -> Result<(), MoveError> {
    let mut unequal = Vec::new();
    for table in sides.tables.clone() {
        tell(listener, Phase::Audit, &table.name);
        let (here, there) = tokio::join!(
            sides::checksum(&mut sides.source, &table.source, record.tenant, None, None),
            sides::checksum(auditor, &table.target, record.tenant, None, None),
        );
        if here? != there? {
            unequal.push(table.name);
        }
    }
    record.report.audit = if unequal.is_empty() { Audit::Equal } else { Audit::Unequal { tables: unequal } };
    Ok(())
}
