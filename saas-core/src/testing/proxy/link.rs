//! One proxied connection: two directions, each a reader that stamps what it reads and a writer that waits for the stamp.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use socket2::SockRef;

use super::{Cut, Shared};

const CHUNK: usize = 64 * 1024;

/// Both ends of a connection. Its threads hold the only strong references: when they end, the sockets close.
pub(super) struct Link {
    client: TcpStream,
    server: TcpStream,
    cut: AtomicBool,
    /// Client bytes have passed that no answer has followed yet.
    asked: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Question,
    Answer,
}

struct Chunk {
    bytes: Vec<u8>,
    due: Instant,
}

impl Link {
    /// Starts forwarding in both directions.
    pub(super) fn start(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> io::Result<Weak<Self>> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let link = Arc::new(Self { client, server, cut: AtomicBool::new(false), asked: AtomicBool::new(false) });
        for direction in [Direction::Question, Direction::Answer] {
            let (sender, receiver) = channel();
            let (reader, reader_shared) = (Arc::clone(&link), Arc::clone(shared));
            let (writer, writer_shared) = (Arc::clone(&link), Arc::clone(shared));
            thread::Builder::new().spawn(move || reader.read(direction, &reader_shared, &sender))?;
            thread::Builder::new().spawn(move || writer.write(direction, &writer_shared, &receiver))?;
        }
        Ok(Arc::downgrade(&link))
    }

    /// Ends the connection; what has not been written is dropped.
    pub(super) fn cut(&self, how: Cut) {
        self.cut.store(true, Ordering::SeqCst);
        for socket in [&self.client, &self.server] {
            // Ending the read side only wakes our own reader and sends nothing; a reset goes out with the last close.
            // Errors mean that the peer was faster, which is an end too.
            drop(match how {
                Cut::Close => socket.shutdown(Shutdown::Both),
                Cut::Reset => {
                    reset_on_close(socket);
                    socket.shutdown(Shutdown::Read)
                }
            });
        }
    }

    fn read(&self, direction: Direction, shared: &Shared, chunks: &Sender<Chunk>) {
        let mut source = match direction {
            Direction::Question => &self.client,
            Direction::Answer => &self.server,
        };
        let mut buffer = vec![0; CHUNK];
        loop {
            let bytes = match source.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => buffer.get(..length).unwrap_or_default().to_vec(),
            };
            if self.cut.load(Ordering::SeqCst) || !self.count(direction, shared, bytes.len()) {
                return;
            }
            if chunks.send(Chunk { bytes, due: Instant::now() + shared.delay() }).is_err() {
                return;
            }
        }
    }

    /// Whether these bytes may pass.
    fn count(&self, direction: Direction, shared: &Shared, length: usize) -> bool {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        match direction {
            Direction::Question => {
                shared.client_bytes.fetch_add(length, Ordering::SeqCst);
                self.asked.store(true, Ordering::SeqCst);
            }
            Direction::Answer => {
                if self.asked.load(Ordering::SeqCst)
                    && shared.flights.load(Ordering::SeqCst) >= shared.last_flight.load(Ordering::SeqCst)
                {
                    shared.last_flight.store(u64::MAX, Ordering::SeqCst);
                    self.cut(Cut::Reset);
                    return false;
                }
                shared.server_bytes.fetch_add(length, Ordering::SeqCst);
                if self.asked.swap(false, Ordering::SeqCst) {
                    shared.flights.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        true
    }

    fn write(&self, direction: Direction, shared: &Shared, chunks: &Receiver<Chunk>) {
        let mut sink = match direction {
            Direction::Question => &self.server,
            Direction::Answer => &self.client,
        };
        while let Ok(chunk) = chunks.recv() {
            thread::sleep(chunk.due.saturating_duration_since(Instant::now()));
            if direction == Direction::Answer {
                self.wait_out_silence(shared);
            }
            if self.cut.load(Ordering::SeqCst) || sink.write_all(&chunk.bytes).is_err() {
                return;
            }
        }
        // The reader met the end of its stream: pass it on, unless this is a cut, which ends both ends by itself.
        if !self.cut.load(Ordering::SeqCst) {
            drop(sink.shutdown(Shutdown::Write));
        }
    }

    fn wait_out_silence(&self, shared: &Shared) {
        let silent = shared.silence();
        drop(shared.silence_ended.wait_while(silent, |silent| *silent && !self.cut.load(Ordering::SeqCst)));
    }
}

/// Makes the end of this socket a reset instead of an orderly close.
pub(super) fn reset_on_close(socket: &TcpStream) {
    // It fails only on a socket that has ended already.
    drop(SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)));
}
