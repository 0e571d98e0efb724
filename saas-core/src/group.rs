//! Group commit: what comes in while a flight is under way shares the next.
//!
//! A flight is a trip to the database and back, with its flush to disk. Alone, an item flies at once and by itself. While one
//! flies, others of its key wait together, and one flight serves them all: each of them costs a fraction of a flight of its
//! own, and the other connections of the pool stay free. Promises that an answer is given only after the item's own commit;
//! that an item which the database refuses fails alone; that a caller who goes away, or is not polled, holds up nobody and
//! takes nobody along; that a flight which never ends holds up its key for no longer than the patience.
//!
//! What an item is, and how one or several of them fly, is said by an implementation of [`Shared`].

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot, task::yield_now};

use crate::CoreError;

/// Keys that are remembered after a burst, at most.
const REMEMBERED: usize = 1_024;

/// Work that several callers can have done in one flight.
pub trait Shared: fmt::Debug + Send + Sync + 'static {
    /// Items of one key fly one flight after the other, and share them.
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static;
    /// What one caller brings.
    type Item: Send + Sync + 'static;
    /// What that caller gets.
    type Answer: Send + 'static;

    /// Items of one flight, at most.
    const ITEMS: usize;
    /// Bytes of one flight, at most, unless a single item has more.
    const BYTES: usize;
    /// Whether a caller with nobody beside it flies itself, which saves two changes of task. For one message that the server ends
    /// by itself, so that a caller who is not polled holds no lock: a transaction is flown by a task of its own. When the caller
    /// goes away, a task flies on.
    const IN_PLACE: bool = false;

    /// Roughly how much of a message the item takes.
    fn bytes(item: &Self::Item) -> usize;

    /// Flies one item.
    fn alone(&self, key: &Self::Key, item: &Self::Item)
    -> impl Future<Output = Result<Self::Answer, CoreError>> + Send;

    /// Flies several, at most [`ITEMS`](Self::ITEMS), and answers each of them in their order.
    ///
    /// After [`OutcomeUnknown`](CoreError::OutcomeUnknown) all of them hear that. Any other error says that nothing was done,
    /// or that it does no harm to do it again: each of them then flies alone, so that only the one to blame fails.
    fn together(
        &self,
        key: &Self::Key,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, CoreError>> + Send;
}

/// The way to the database for items that may share flights. Make one per process and kind of work.
pub struct Group<S: Shared> {
    work: S,
    /// How long a flight may take.
    patience: Duration,
    /// Items of one key that may wait.
    room: usize,
    queues: Mutex<HashMap<S::Key, Queue<S>>>,
}

/// Of one key: there while something flies, and for a while after a burst.
struct Queue<S: Shared> {
    waiting: VecDeque<Waiting<S>>,
    /// Whether a task flies, or is about to.
    flying: bool,
    /// Whether a caller flies itself. Others do not wait for it: nobody knows whether it is polled.
    in_place: bool,
    /// Items of the last flight: more than one in a burst.
    last: usize,
}

struct Waiting<S: Shared> {
    item: S::Item,
    done: oneshot::Sender<Result<S::Answer, CoreError>>,
}

impl<S: Shared> Group<S> {
    /// A group whose flights are given up after `patience`, and where at most `room` items of one key wait.
    #[must_use]
    pub fn new(work: S, patience: Duration, room: usize) -> Self {
        Self { work, patience, room, queues: Mutex::default() }
    }

    /// Has an item done, alone or with others of its key.
    ///
    /// # Errors
    /// - Those of the work, for this item.
    /// - [`Unavailable`](CoreError::Unavailable): too many wait, or there is no tokio runtime; nothing was done.
    /// - [`OutcomeUnknown`](CoreError::OutcomeUnknown): the flight did not end in time.
    pub async fn join(self: &Arc<Self>, key: &S::Key, item: S::Item) -> Result<S::Answer, CoreError> {
        if let (true, Ok(runtime)) = (S::IN_PLACE, Handle::try_current())
            && let Some(place) = self.place(key)
        {
            return InPlace { flight: Some(Box::pin(place.fly(item))), runtime }.await;
        }
        let answer = self.enter(key, item)?;
        answer.await.unwrap_or_else(|gone| Err(CoreError::OutcomeUnknown { cause: Box::new(gone) }))
    }

    /// The right to fly in place, where nothing flies and the last flight was no burst's.
    fn place(self: &Arc<Self>, key: &S::Key) -> Option<Place<S>> {
        let mut queues = self.queues();
        let queue = queues.entry(key.clone()).or_insert_with(Queue::new);
        if queue.flying || queue.last > 1 || std::mem::replace(&mut queue.in_place, true) {
            return None;
        }
        Some(Place { group: Arc::clone(self), key: key.clone() })
    }

    /// A place among those who wait, and a flight for them unless there is one.
    fn enter(
        self: &Arc<Self>,
        key: &S::Key,
        item: S::Item,
    ) -> Result<oneshot::Receiver<Result<S::Answer, CoreError>>, CoreError> {
        let runtime = Handle::try_current().map_err(|none| CoreError::Unavailable { cause: Box::new(none) })?;
        let mut queues = self.queues();
        let queue = queues.entry(key.clone()).or_insert_with(Queue::new);
        if queue.waiting.len() >= self.room {
            // Whoever gave up has been told so.
            queue.waiting.retain(|waiting| !waiting.done.is_closed());
            if queue.waiting.len() >= self.room {
                let why = format!("{} others wait for the same row already", queue.waiting.len());
                return Err(CoreError::Unavailable { cause: why.into() });
            }
        }
        let (done, answer) = oneshot::channel();
        queue.waiting.push_back(Waiting { item, done });
        if !std::mem::replace(&mut queue.flying, true) {
            drop(queues);
            let slot = Slot { group: Arc::clone(self), key: key.clone(), begun: false };
            drop(runtime.spawn(slot.serve()));
        }
        Ok(answer)
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<S::Key, Queue<S>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Shared> Queue<S> {
    const fn new() -> Self {
        Self { waiting: VecDeque::new(), flying: false, in_place: false, last: 0 }
    }

    /// Those who fly next.
    fn board(&mut self) -> Vec<Waiting<S>> {
        let mut bytes = 0;
        let fits = |waiting: &&Waiting<S>| {
            bytes += S::bytes(&waiting.item);
            bytes <= S::BYTES
        };
        let fitting = self.waiting.iter().take(S::ITEMS).take_while(fits).count();
        let count = fitting.max(1).min(self.waiting.len());
        self.last = count;
        self.waiting.drain(..count).collect()
    }
}

/// The right of a caller to fly itself.
struct Place<S: Shared> {
    group: Arc<Group<S>>,
    key: S::Key,
}

impl<S: Shared> Place<S> {
    async fn fly(self, item: S::Item) -> Result<S::Answer, CoreError> {
        let flight = self.group.work.alone(&self.key, &item);
        let answer = tokio::time::timeout(self.group.patience, flight).await;
        answer.unwrap_or_else(|late| Err(CoreError::OutcomeUnknown { cause: Box::new(late) }))
    }
}

impl<S: Shared> Drop for Place<S> {
    fn drop(&mut self) {
        let mut queues = self.group.queues();
        let Some(queue) = queues.get_mut(&self.key) else { return };
        queue.in_place = false;
        if !queue.flying && queue.last <= 1 {
            queues.remove(&self.key);
        }
    }
}

/// A flight that its caller polls. When the caller goes away, a task flies on: a connection that was left in the middle of an
/// answer would be the next one's.
struct InPlace<T: Send + 'static> {
    flight: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    runtime: Handle,
}

impl<T: Send + 'static> Future for InPlace<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(flight) = &mut self.flight else { return Poll::Pending };
        let answer = std::task::ready!(flight.as_mut().poll(context));
        self.flight = None;
        Poll::Ready(answer)
    }
}

impl<T: Send + 'static> Drop for InPlace<T> {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            drop(self.runtime.spawn(flight));
        }
    }
}

/// The right to fly for a key, which one task at a time has. Dropped, however that comes about, it goes to those who wait.
struct Slot<S: Shared> {
    group: Arc<Group<S>>,
    key: S::Key,
    /// Whether its task has run at all: one that never did was dropped by a runtime that is shutting down.
    begun: bool,
}

impl<S: Shared> Drop for Slot<S> {
    fn drop(&mut self) {
        let mut queues = self.group.queues();
        let remembered = queues.len() <= REMEMBERED;
        let Some(queue) = queues.get_mut(&self.key) else { return };
        match Handle::try_current() {
            Ok(runtime) if self.begun && !queue.waiting.is_empty() => {
                drop(queues); // A runtime that is shutting down drops the task on the spot, which comes back here.
                let slot = Self { group: Arc::clone(&self.group), key: self.key.clone(), begun: false };
                drop(runtime.spawn(slot.serve()));
            }
            Ok(_) | Err(_) => {
                // Nobody waits, or nobody will be served: those who wait hear that nothing was done.
                for waiting in queue.waiting.drain(..) {
                    let over = CoreError::Unavailable { cause: "the runtime is shutting down".into() };
                    drop(waiting.done.send(Err(over)));
                }
                queue.flying = false;
                if !queue.in_place && (queue.last <= 1 || !remembered) {
                    queues.remove(&self.key);
                }
            }
        }
    }
}

impl<S: Shared> Slot<S> {
    /// Flies until nobody waits.
    async fn serve(mut self) {
        self.begun = true;
        loop {
            if self.awaits_more() {
                // Those who were just answered, and those who are being read, get to the queue first.
                yield_now().await;
                yield_now().await;
            }
            let batch = self.group.queues().get_mut(&self.key).map(Queue::board).unwrap_or_default();
            if batch.is_empty() {
                return;
            }
            if tokio::time::timeout(self.group.patience, self.fly(batch)).await.is_err() {
                tracing::error!(target: "saas.group", key = ?self.key, work = ?self.group.work, "a flight did not end in time");
            }
        }
    }

    /// In a burst, unless those who wait fill a flight already.
    fn awaits_more(&self) -> bool {
        self.group.queues().get(&self.key).is_some_and(|queue| queue.last > 1 && queue.waiting.len() < S::ITEMS)
    }

    async fn fly(&self, batch: Vec<Waiting<S>>) {
        if batch.len() > 1 {
            let items: Vec<&S::Item> = batch.iter().map(|waiting| &waiting.item).collect();
            match self.group.work.together(&self.key, &items).await {
                Ok(answers) if answers.len() == batch.len() => {
                    for (waiting, answer) in batch.into_iter().zip(answers) {
                        // Whoever asked may have gone.
                        drop(waiting.done.send(Ok(answer)));
                    }
                    return;
                }
                Ok(_) => return, // Nobody can say whose answers these are: dropped, all of them hear that.
                Err(error @ CoreError::OutcomeUnknown { .. }) => {
                    let cause = Arc::new(error);
                    for waiting in batch {
                        let error = CoreError::OutcomeUnknown { cause: Box::new(Arc::clone(&cause)) };
                        drop(waiting.done.send(Err(error)));
                    }
                    return;
                }
                Err(_) => {}
            }
        }
        for waiting in batch {
            let answer = self.group.work.alone(&self.key, &waiting.item).await;
            drop(waiting.done.send(answer));
        }
    }
}

impl<S: Shared> fmt::Debug for Group<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("work", &self.work).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
