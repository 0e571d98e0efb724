//! The parts that loom drives.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
pub(super) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering, fence},
};
use loom::{sync::atomic::AtomicUsize, thread};

/// One bucket, so that three tenants are too many.
pub(super) const WINDOW: usize = 1;

/// In words.
const STACK: usize = 0x8000;

/// `arc_swap`'s: a pointer that is released by who stores it and acquired by who loads it, and no more than that.
#[derive(Debug)]
pub(super) struct ArcSwapOption<T> {
    /// How many had been stored.
    last: AtomicUsize,
    stored: std::sync::Mutex<Vec<Option<Arc<T>>>>,
}

impl<T> ArcSwapOption<T> {
    pub(super) fn empty() -> Self {
        Self { last: AtomicUsize::new(0), stored: std::sync::Mutex::default() }
    }

    pub(super) fn load(&self) -> Option<Arc<T>> {
        let last = self.last.load(Ordering::Acquire).checked_sub(1)?;
        self.stored.lock().unwrap()[last].clone()
    }

    pub(super) fn load_full(&self) -> Option<Arc<T>> {
        self.load()
    }

    pub(super) fn store(&self, new: Option<Arc<T>>) {
        let mut stored = self.stored.lock().unwrap();
        stored.push(new);
        let last = stored.len();
        drop(stored);
        self.last.store(last, Ordering::Release);
    }
}

/// Runs what waits by holding its thread up: nothing here is ever pending.
pub(super) fn run<T>(task: impl Future<Output = T>) -> T {
    task.now_or_never().unwrap()
}

/// A runtime that gives each task a thread.
pub(super) struct Handle;

impl Handle {
    pub(super) fn try_current() -> Result<Self, Infallible> {
        Ok(Self)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        spawn(move || run(task));
    }
}

/// A thread with room for a load: loom's own have 32 KiB.
pub(super) fn spawn(body: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(STACK).spawn(body).unwrap()
}

pub(super) async fn sleep(_: Duration) {
    thread::yield_now();
}

/// No load takes that long.
pub(super) async fn timeout<T>(_: Duration, task: impl Future<Output = T>) -> Result<T, PoisonError<()>> {
    Ok(task.await)
}

/// tokio's channel of one value, as far as loads use it.
pub(super) mod watch {
    use loom::sync::Condvar;

    use super::{Arc, Mutex};

    #[derive(Debug)]
    struct Shared<T> {
        /// The value, and whether there may be another.
        state: Mutex<(T, bool)>,
        changed: Condvar,
    }

    pub(in super::super) struct Sender<T>(Arc<Shared<T>>);

    #[derive(Debug)]
    pub(in super::super) struct Receiver<T>(Arc<Shared<T>>);

    pub(in super::super) fn channel<T>(first: T) -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Shared { state: Mutex::new((first, true)), changed: Condvar::new() });
        (Sender(Arc::clone(&shared)), Receiver(shared))
    }

    impl<T> Sender<T> {
        pub(in super::super) fn send(&self, value: T) -> Result<(), T> {
            self.0.state.lock().unwrap().0 = value;
            self.0.changed.notify_all();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.state.lock().unwrap().1 = false;
            self.0.changed.notify_all();
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<T: Clone> Receiver<T> {
        pub(in super::super) async fn wait_for(&mut self, is_it: impl Fn(&T) -> bool) -> Result<T, ()> {
            let mut state = self.0.state.lock().unwrap();
            loop {
                match &*state {
                    (value, _) if is_it(value) => return Ok(value.clone()),
                    (_, false) => return Err(()),
                    (_, true) => state = self.0.changed.wait(state).unwrap(),
                }
            }
        }
    }
}
