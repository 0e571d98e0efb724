//! A TCP proxy that makes the network visible and bad: it delays, counts, cuts, and falls silent, on command.
//!
//! Threads and the operating system's clock, no async runtime: delays of a tenth of a millisecond hold, a test's paused
//! or blocked runtime does not stall the network, and every command takes effect from any thread.

mod link;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use link::Link;

/// How a connection ends when it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// An orderly end of stream (FIN), as when a server shuts down.
    Close,
    /// A reset (RST), as when a server or a middle box vanishes. What was on its way is lost.
    Reset,
}

/// A proxy on a free loopback port, until dropped; dropping it resets its connections.
///
/// ```
/// use std::{io::{Read, Write}, net::{TcpListener, TcpStream}};
/// use saas_core::testing::Proxy;
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let proxy = Proxy::start(server.local_addr()?)?;
/// let mut client = TcpStream::connect(proxy.address())?;
/// let (mut peer, _) = server.accept()?;
///
/// client.write_all(b"ping")?;
/// peer.read_exact(&mut [0; 4])?;
/// peer.write_all(b"pong")?;
/// client.read_exact(&mut [0; 4])?;
/// assert_eq!(proxy.flights(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens, and forwards every connection to `target`.
    ///
    /// # Errors
    /// When `target` has no address or no loopback port is free. Whether `target` answers shows with each connection.
    pub fn start(target: impl ToSocketAddrs) -> io::Result<Self> {
        let target = target.to_socket_addrs()?.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        let accept = move || accept(&listener, target, &accepting);
        let listening = Some(thread::Builder::new().name("saas-proxy".to_owned()).spawn(accept)?);
        Ok(Self { address, shared, listening })
    }

    /// Where to connect instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on every byte takes `each_way` longer, in each direction; bytes still arrive in order, and throughput stays.
    pub fn delay(&self, each_way: Duration) {
        self.shared.delay_nanos.store(u64::try_from(each_way.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Answers seen so far: one for each unbroken burst of client bytes that server bytes followed.
    ///
    /// On a protocol of questions and answers these are the round trips that a client waits for.
    #[must_use]
    pub fn flights(&self) -> u64 {
        self.shared.flights.load(Ordering::SeqCst)
    }

    /// Bytes read from all clients so far.
    #[must_use]
    pub fn client_bytes(&self) -> u64 {
        self.shared.client_bytes.load(Ordering::SeqCst)
    }

    /// Bytes read from the target so far.
    #[must_use]
    pub fn server_bytes(&self) -> u64 {
        self.shared.server_bytes.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Ends every connection accepted so far; new ones are served.
    pub fn cut(&self, how: Cut) {
        self.shared.cut(how);
    }

    /// Ends, once `delay` has passed, every connection that is open then. Returns at once.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub fn cut_after(&self, delay: Duration, how: Cut) -> io::Result<()> {
        let shared = Arc::downgrade(&self.shared);
        let wait_and_cut = move || {
            thread::sleep(delay);
            if let Some(shared) = Weak::upgrade(&shared) {
                shared.cut(how);
            }
        };
        thread::Builder::new().name("saas-proxy-cut".to_owned()).spawn(wait_and_cut).map(drop)
    }

    /// Lets `answers` more answers pass, then resets the connection of the next one in its place.
    ///
    /// The server has received the question and may have acted on it; the client will never know.
    pub fn cut_instead_of_answer(&self, answers: u64) {
        self.shared.last_flight.store(self.flights().saturating_add(answers), Ordering::SeqCst);
    }

    /// Holds every answer back from now on; questions still reach the target, and connections stay open.
    pub fn stop_answering(&self) {
        *self.shared.silence() = true;
    }

    /// Delivers what was held back, and answers as before.
    pub fn resume_answering(&self) {
        *self.shared.silence() = false;
        self.shared.silence_ended.notify_all();
    }

    /// Resets every new connection at once, as a server that is down.
    pub fn refuse_connections(&self) {
        self.shared.refusing.store(true, Ordering::SeqCst);
    }

    /// Serves new connections again.
    pub fn accept_connections(&self) {
        self.shared.refusing.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            drop(listening.join());
        }
        self.shared.cut(Cut::Reset);
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Proxy");
        debug.field("address", &self.address).field("connections", &self.connections());
        debug.field("flights", &self.flights()).finish_non_exhaustive()
    }
}

/// What the handle, the listener and the connections have in common.
struct Shared {
    delay_nanos: AtomicU64,
    flights: AtomicU64,
    /// The number of flights at which the next answer is withheld and its connection reset.
    last_flight: AtomicU64,
    client_bytes: AtomicU64,
    server_bytes: AtomicU64,
    connections: AtomicU64,
    refusing: AtomicBool,
    stopped: AtomicBool,
    silent: Mutex<bool>,
    silence_ended: Condvar,
    links: Mutex<Vec<Weak<Link>>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            delay_nanos: AtomicU64::new(0),
            flights: AtomicU64::new(0),
            last_flight: AtomicU64::new(u64::MAX),
            client_bytes: AtomicU64::new(0),
            server_bytes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            silent: Mutex::new(false),
            silence_ended: Condvar::new(),
            links: Mutex::new(Vec::new()),
        }
    }
}

impl Shared {
    fn delay(&self) -> Duration {
        Duration::from_nanos(self.delay_nanos.load(Ordering::Relaxed))
    }

    fn silence(&self) -> MutexGuard<'_, bool> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, how: Cut) {
        for link in self.links().drain(..).filter_map(|link| link.upgrade()) {
            link.cut(how);
        }
        // An answer held back must not keep its connection alive.
        drop(self.silence());
        self.silence_ended.notify_all();
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if shared.refusing.load(Ordering::SeqCst) {
            link::reset_on_close(&client);
            continue;
        }
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let Ok(server) = TcpStream::connect(target) else {
            link::reset_on_close(&client);
            continue;
        };
        let mut links = shared.links();
        links.retain(|link| link.strong_count() > 0);
        if let Ok(link) = Link::start(client, server, shared) {
            links.push(link);
        }
    }
}

#[cfg(test)]
mod tests;
