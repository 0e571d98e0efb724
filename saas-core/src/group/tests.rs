use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::join_all};
use tokio::sync::Semaphore;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// Flights that a test lets go one by one, and what each of them carried.
#[derive(Debug)]
struct Airport {
    clearance: Semaphore,
    flights: Mutex<Vec<(&'static str, Vec<u32>)>>,
}

/// Makes every flight of several fail with an unknown outcome.
const BROKEN: u32 = 666;
/// Refused by the database, alone or not.
const BAD: u32 = 13;

impl Airport {
    async fn fly(&self, key: &'static str, items: Vec<u32>) {
        self.clearance.acquire().await.unwrap().forget();
        self.flights.lock().unwrap().push((key, items));
    }

    fn refused() -> CoreError {
        CoreError::Conflict { constraint: "bad".into(), cause: "bad".into() }
    }
}

impl Shared for Airport {
    type Key = &'static str;
    type Item = u32;
    type Answer = u32;

    const ITEMS: usize = 4;
    const BYTES: usize = 100;

    fn bytes(item: &u32) -> usize {
        if *item == 90 { 90 } else { 10 }
    }

    async fn alone(&self, key: &&'static str, item: &u32) -> Result<u32, CoreError> {
        self.fly(key, vec![*item]).await;
        if *item == BAD { Err(Self::refused()) } else { Ok(item * 2) }
    }

    async fn together(&self, key: &&'static str, items: &[&u32]) -> Result<Vec<u32>, CoreError> {
        let items: Vec<u32> = items.iter().map(|item| **item).collect();
        self.fly(key, items.clone()).await;
        if items.contains(&BROKEN) {
            return Err(CoreError::OutcomeUnknown { cause: "gone".into() });
        }
        if items.contains(&BAD) {
            return Err(Self::refused());
        }
        Ok(items.iter().map(|item| item * 2).collect())
    }
}

fn group(room: usize) -> Arc<Group<Airport>> {
    let airport = Airport { clearance: Semaphore::new(0), flights: Mutex::default() };
    Arc::new(Group::new(airport, PATIENCE, room))
}

impl Group<Airport> {
    fn clear(&self, flights: usize) {
        self.work.clearance.add_permits(flights);
    }

    fn flown(&self) -> Vec<Vec<u32>> {
        self.work.flights.lock().unwrap().iter().map(|(_, items)| items.clone()).collect()
    }
}

/// The first alone, then the rest together behind it.
async fn after_one(group: &Arc<Group<Airport>>, items: impl IntoIterator<Item = u32>) -> Vec<Result<u32, CoreError>> {
    let mut first = Box::pin(group.join(&"acme", 1));
    assert!((&mut first).now_or_never().is_none());
    yield_now().await; // it is under way
    let mut rest: Vec<_> = items.into_iter().map(|item| Box::pin(group.join(&"acme", item))).collect();
    // Polled in this order, so they wait in this order.
    assert!(rest.iter_mut().all(|one| one.now_or_never().is_none()));
    group.clear(100);
    assert_eq!(first.await.unwrap(), 2);
    join_all(rest).await
}

#[tokio::test]
async fn an_item_flies_at_once_when_nothing_else_does() {
    let group = group(10);
    group.clear(3);
    for item in [1, 2, 3] {
        assert_eq!(group.join(&"acme", item).await.unwrap(), item * 2);
    }
    assert_eq!(group.flown(), [[1], [2], [3]]);
    assert!(group.queues().is_empty(), "nothing is kept of a key that is idle");
}

#[tokio::test]
async fn those_who_come_meanwhile_share_the_next_flight_in_their_order() {
    let group = group(10);
    let answers: Vec<u32> = after_one(&group, 2..8).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [4, 6, 8, 10, 12, 14]);
    assert_eq!(group.flown(), [vec![1], vec![2, 3, 4, 5], vec![6, 7]], "four at a time");
}

#[tokio::test]
async fn a_flight_carries_no_more_bytes_than_it_may() {
    let group = group(10);
    after_one(&group, [2, 90, 3]).await;
    assert_eq!(group.flown(), [vec![1], vec![2, 90], vec![3]]);
}

#[tokio::test]
async fn one_that_is_refused_fails_alone() {
    let group = group(10);
    let answers = after_one(&group, [2, BAD, 4]).await;
    assert_eq!(answers[0].as_ref().unwrap(), &4);
    assert_eq!(answers[1].as_ref().unwrap_err().code(), "conflict");
    assert_eq!(answers[2].as_ref().unwrap(), &8);
    assert_eq!(group.flown(), [vec![1], vec![2, BAD, 4], vec![2], vec![BAD], vec![4]]);
}

#[tokio::test]
async fn an_unknown_outcome_is_that_of_all_and_none_flies_again() {
    let group = group(10);
    for answer in after_one(&group, [2, BROKEN]).await {
        assert_eq!(answer.unwrap_err().code(), "outcome_unknown");
    }
    assert_eq!(group.flown(), [vec![1], vec![2, BROKEN]]);
}

#[tokio::test]
async fn a_caller_who_goes_away_or_is_not_polled_holds_up_nobody() {
    let group = group(10);
    let mut gone = Box::pin(group.join(&"acme", 1));
    assert!((&mut gone).now_or_never().is_none());
    let mut asleep = Box::pin(group.join(&"acme", 2));
    assert!((&mut asleep).now_or_never().is_none());
    let mut third = Box::pin(group.join(&"acme", 3));
    assert!((&mut third).now_or_never().is_none());
    drop(gone);
    group.clear(10);
    assert_eq!(third.await.unwrap(), 6);
    assert_eq!(group.flown(), [vec![1, 2, 3]], "none had flown when they had all come");
    assert_eq!(asleep.await.unwrap(), 4);
}

/// Like an airport, and a caller alone flies itself.
#[derive(Debug)]
struct Strip(Airport);

impl Shared for Strip {
    type Key = &'static str;
    type Item = u32;
    type Answer = u32;

    const ITEMS: usize = 4;
    const BYTES: usize = 100;
    const IN_PLACE: bool = true;

    fn bytes(item: &u32) -> usize {
        Airport::bytes(item)
    }

    async fn alone(&self, key: &&'static str, item: &u32) -> Result<u32, CoreError> {
        self.0.alone(key, item).await
    }

    async fn together(&self, key: &&'static str, items: &[&u32]) -> Result<Vec<u32>, CoreError> {
        self.0.together(key, items).await
    }
}

#[tokio::test]
async fn one_who_flies_in_place_is_answered_dropped_or_left_asleep_and_holds_up_nobody() {
    let airport = Airport { clearance: Semaphore::new(0), flights: Mutex::default() };
    let group = Arc::new(Group::new(Strip(airport), PATIENCE, 10));
    group.work.0.clearance.add_permits(2);
    for item in [1, 2] {
        // Nothing but this future: no other task has to run for it.
        assert_eq!(group.join(&"acme", item).now_or_never().unwrap().unwrap(), item * 2);
    }
    assert!(group.queues().is_empty(), "nothing is kept of a key that is idle");
    let mut asleep = Box::pin(group.join(&"acme", 3));
    assert!((&mut asleep).now_or_never().is_none());
    // Those who come beside it do not wait for it: the next flies at once, in a task, and the rest share.
    let mut rest: Vec<_> = (4..7).map(|item| Box::pin(group.join(&"acme", item))).collect();
    assert!(rest.iter_mut().all(|one| one.now_or_never().is_none()));
    drop(asleep);
    group.work.0.clearance.add_permits(10);
    let answers: Vec<u32> = join_all(rest).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [8, 10, 12]);
    // After a burst the next comes in a task, and the one behind it in place again.
    assert_eq!(group.join(&"acme", 7).await.unwrap(), 14);
    assert_eq!(group.join(&"acme", 8).now_or_never().unwrap().unwrap(), 16);
    let mut flown: Vec<u32> =
        group.work.0.flights.lock().unwrap().iter().flat_map(|(_, items)| items.clone()).collect();
    flown.sort_unstable();
    assert_eq!(flown, [1, 2, 3, 4, 5, 6, 7, 8], "the one whose caller went away, too");
}

#[tokio::test(start_paused = true)]
async fn a_flight_in_place_that_does_not_end_is_an_unknown_outcome() {
    let airport = Airport { clearance: Semaphore::new(0), flights: Mutex::default() };
    let group = Arc::new(Group::new(Strip(airport), PATIENCE, 10));
    assert_eq!(group.join(&"acme", 1).await.unwrap_err().code(), "outcome_unknown");
    assert!(group.queues().is_empty());
}

#[tokio::test]
async fn keys_fly_beside_each_other() {
    let group = group(10);
    let both = [group.join(&"acme", 1), group.join(&"globex", 2)];
    group.clear(2);
    for answer in join_all(both).await {
        answer.unwrap();
    }
    let mut flights = group.work.flights.lock().unwrap().clone();
    flights.sort_unstable();
    assert_eq!(flights, [("acme", vec![1]), ("globex", vec![2])]);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_does_not_end_holds_up_its_key_for_no_longer_than_the_patience() {
    let group = group(10);
    let first = tokio::spawn({
        let group = Arc::clone(&group);
        async move { group.join(&"acme", 1).await }
    });
    yield_now().await;
    let second = group.join(&"acme", 2);
    assert_eq!(first.await.unwrap().unwrap_err().code(), "outcome_unknown");
    group.clear(1);
    assert_eq!(second.await.unwrap(), 4);
}

#[tokio::test]
async fn more_than_there_is_room_for_are_refused_and_those_who_left_make_room() {
    let group = group(2);
    let mut waiting: Vec<_> = (1..4).map(|item| Box::pin(group.join(&"acme", item))).collect();
    for one in &mut waiting {
        assert!(one.now_or_never().is_none());
        yield_now().await; // the first is under way when the second comes
    }
    let refused = group.join(&"acme", 4).await.unwrap_err();
    assert_eq!(refused.code(), "unavailable");
    assert!(group.join(&"globex", 5).now_or_never().is_none(), "another key has room of its own");
    drop(waiting.pop());
    let mut fifth = Box::pin(group.join(&"acme", 5));
    assert!((&mut fifth).now_or_never().is_none());
    group.clear(10);
    assert_eq!(fifth.await.unwrap(), 10);
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let group = group(10);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ending = runtime();
    let (mut first, mut second) = (Box::pin(group.join(&"acme", 1)), Box::pin(group.join(&"acme", 2)));
    ending.block_on(async {
        assert!((&mut first).now_or_never().is_none());
        yield_now().await;
        assert!((&mut second).now_or_never().is_none());
    });
    drop(ending);
    let next = runtime();
    assert_eq!(next.block_on(first).unwrap_err().code(), "outcome_unknown");
    assert_eq!(next.block_on(second).unwrap_err().code(), "unavailable");
    group.clear(1);
    assert_eq!(next.block_on(group.join(&"acme", 3)).unwrap(), 6);
}
