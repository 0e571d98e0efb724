//! What workers write down: it survives their death, since what a process has written is the kernel's.

use std::{
    fs::File,
    ops::{Add, AddAssign},
    os::unix::fs::FileExt as _,
    path::Path,
};

use crate::{PROCESSES, file_of};

/// Pairs of numbers in the file of a worker, each written at once.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pair {
    /// Seconds served; nothing.
    Served,
    /// The next key of a task; units granted under the keys before it.
    Jobs(usize),
    /// The next key; units acknowledged under the keys before it.
    Pings,
    /// Units that may have been granted to a task; units that were.
    Calls(usize),
    /// The same, of leases out of Redis.
    Hits,
    /// The next key; units granted under the keys before it.
    Taps,
    /// The next key that nobody has tried; units that were refused after a try without an answer.
    Tried,
    /// Uses that Redis admitted; borrows that it answered.
    FromRedis,
    /// The next key; units granted under the keys before it.
    Tokens,
}

const PAIRS: u64 = 11;

impl Pair {
    const fn place(self) -> u64 {
        match self {
            Self::Served => 0,
            Self::Pings => 1,
            Self::Jobs(task) => 2 + task as u64,
            Self::Calls(task) => 4 + task as u64,
            Self::Taps => 6,
            Self::Tried => 7,
            Self::FromRedis => 8,
            Self::Tokens => 9,
            Self::Hits => 10,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    /// Goes on where the one before has ended.
    pub(crate) fn open(folder: &Path, worker: usize) -> Self {
        let path = file_of(folder, worker, "journal");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        if file.metadata().unwrap().len() == 0 {
            file.write_all_at(&[0; PAIRS as usize * 16], 0).unwrap();
        }
        Self(file)
    }

    pub(crate) fn read(&self, pair: Pair) -> (u64, u64) {
        let mut bytes = [0; 16];
        self.0.read_exact_at(&mut bytes, pair.place() * 16).unwrap();
        let number = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap());
        (number(&bytes[..8]), number(&bytes[8..]))
    }

    pub(crate) fn note(&self, pair: Pair, (first, second): (u64, u64)) {
        let bytes = [first.to_le_bytes(), second.to_le_bytes()].concat();
        self.0.write_all_at(&bytes, pair.place() * 16).unwrap();
    }
}

/// An answer of a worker's gate: when it was asked, when it answered, and what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) asked: u64,
    pub(crate) answered: u64,
    pub(crate) granted: bool,
}

impl Answer {
    pub(crate) fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (place, number) in [self.asked, self.answered, u64::from(self.granted)].into_iter().enumerate() {
            bytes[place * 8..place * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Self {
        let number = |place: usize| u64::from_le_bytes(bytes[place * 8..place * 8 + 8].try_into().unwrap());
        Self { asked: number(0), answered: number(1), granted: number(2) == 1 }
    }
}

/// Units that were granted, as far as is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Units {
    pub(crate) least: u64,
    /// With those that were not answered.
    pub(crate) most: u64,
}

impl Add for Units {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { least: self.least + other.least, most: self.most + other.most }
    }
}

impl AddAssign for Units {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What all workers have written down.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) jobs: u64,
    pub(crate) pings: u64,
    pub(crate) calls: Units,
    pub(crate) hits: Units,
    pub(crate) taps: u64,
    /// Taps that were refused and may have been counted.
    pub(crate) taps_in_doubt: u64,
    /// Taps that were admitted by Redis, in uses.
    pub(crate) admitted: u64,
    /// Borrows that Redis answered.
    pub(crate) borrowed: u64,
    pub(crate) tokens: u64,
    pub(crate) answers: Vec<Answer>,
}

impl Noted {
    pub(crate) fn read(folder: &Path) -> Self {
        let mut noted = Self::default();
        for worker in 0..PROCESSES {
            let journal = Journal::open(folder, worker);
            let units = |pair| {
                let (most, least) = journal.read(pair);
                Units { least, most }
            };
            noted.pings += journal.read(Pair::Pings).1;
            noted.taps += journal.read(Pair::Taps).1;
            noted.taps_in_doubt += journal.read(Pair::Tried).1;
            noted.hits += units(Pair::Hits);
            let (admitted, borrowed) = journal.read(Pair::FromRedis);
            (noted.admitted, noted.borrowed) = (noted.admitted + admitted, noted.borrowed + borrowed);
            noted.tokens += journal.read(Pair::Tokens).1;
            for task in 0..2 {
                noted.jobs += journal.read(Pair::Jobs(task)).1;
                noted.calls += units(Pair::Calls(task));
            }
            let bytes = std::fs::read(file_of(folder, worker, "answers")).unwrap_or_default();
            noted.answers.extend(bytes.chunks_exact(24).map(Answer::read));
        }
        noted
    }
}
