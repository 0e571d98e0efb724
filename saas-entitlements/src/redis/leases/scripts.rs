//! What is asked of Redis: each question one script on one key, so that nothing is half-done.

use std::sync::atomic::AtomicU64;

use redis::{Script, ScriptInvocation};
use saas_core::LeaseToken;

use super::{
    super::{
        link::{Link, Missed},
        totals::add,
        words::{MOST, millis, rule},
    },
    RedisLeaseOptions,
    place::Place,
    stats::Totals,
};
use crate::{Ask, Report};

#[derive(Debug)]
struct Scripts {
    borrow: Script,
    put: Script,
    cancel: Script,
    report: Script,
    undo: Script,
    trim: Script,
    tick: Script,
    told: Script,
    peek: Script,
}

macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!(include_str!("../prelude.lua"), include_str!("place.lua"), $(include_str!($file)),+))
    };
}

/// A report that is to be made of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) pool: LeaseToken,
    pub(super) number: u64,
    pub(super) spent: u64,
    /// What of it is still needed; `None` for all.
    pub(super) keep: Option<u64>,
    pub(super) ending: bool,
}

/// An answer of a script.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: String,
    words: [String; 3],
    pub(super) orders: Vec<Order>,
}

impl Answer {
    /// One of the three words as a number. What is none was written by another version, and says nothing.
    pub(super) fn number(&self, at: usize) -> u64 {
        self.words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    pub(super) fn token(&self, at: usize) -> Option<LeaseToken> {
        self.words.get(at).and_then(|word| word.parse().ok())
    }
}

/// A refill of a pool that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refill {
    pub(super) pool: LeaseToken,
    pub(super) number: u64,
    pub(super) spent: u64,
}

/// The questions, on one link.
#[derive(Debug)]
pub(super) struct Shelf {
    link: Link,
    scripts: Scripts,
    options: RedisLeaseOptions,
    pub(super) totals: Totals,
}

impl Shelf {
    pub(super) fn new(link: Link, options: RedisLeaseOptions) -> Self {
        let scripts = Scripts {
            borrow: script!("top_up.lua", "pools.lua", "borrow.lua"),
            put: script!("pools.lua", "put.lua"),
            cancel: script!("pools.lua", "cancel.lua"),
            report: script!("pools.lua", "report.lua"),
            undo: script!("pools.lua", "undo.lua"),
            trim: script!("pools.lua", "trim.lua"),
            tick: script!("pools.lua", "tick.lua"),
            told: script!("pools.lua", "told.lua"),
            peek: script!("peek.lua"),
        };
        Self { link, scripts, options, totals: Totals::default() }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.link.is_asked()
    }

    /// Lends of a pool. `fills`: whether the caller fills it where there is too little.
    pub(super) async fn borrow(
        &self,
        place: &Place,
        ask: &Ask,
        question: LeaseToken,
        fills: bool,
    ) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.borrow, place);
        call.arg(rule(&ask.draw)).arg(&bytes(ask.lease)).arg(ask.number).arg(ask.spent).arg(ask.draw.units);
        call.arg(ask.want.min(MOST)).arg(ask.cost).arg(ask.life.as_millis().to_string()).arg(&bytes(question));
        if fills {
            call.arg(LeaseToken::mint_at(ask.draw.at).to_string());
        }
        self.ask(&call).await
    }

    /// Puts what PostgreSQL has lent into the pool, and lends of it.
    pub(super) async fn put(
        &self,
        place: &Place,
        ask: &Ask,
        question: LeaseToken,
        refill: Refill,
        (units, used): (u64, u64),
    ) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.put, place);
        call.arg(rule(&ask.draw)).arg(&bytes(ask.lease)).arg(ask.number).arg(ask.spent);
        call.arg(ask.want.min(MOST)).arg(ask.cost).arg(ask.life.as_millis().to_string()).arg(&bytes(question));
        call.arg(refill.pool.to_string()).arg(refill.number).arg(units).arg(used).arg(refill.spent);
        self.ask(&call).await
    }

    /// Gives up a refill that PostgreSQL did not make.
    pub(super) async fn cancel(&self, place: &Place, refill: Refill) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.cancel, place);
        call.arg(refill.pool.to_string()).arg(refill.number);
        self.ask(&call).await
    }

    pub(super) async fn report(&self, place: &Place, report: &Report) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.report, place);
        call.arg(&bytes(report.lease)).arg(report.number).arg(report.spent).arg(u8::from(report.ending));
        call.arg(report.life.as_millis().to_string());
        self.ask(&call).await
    }

    /// Ends a lease as if the borrow of this question had not been.
    pub(super) async fn undo(
        &self,
        place: &Place,
        lease: LeaseToken,
        (number, spent): (u64, u64),
        question: LeaseToken,
    ) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.undo, place);
        call.arg(&bytes(lease)).arg(number).arg(spent).arg(&bytes(question));
        self.ask(&call).await
    }

    /// Takes back what nobody holds; for one who wants so many units more, those who hold are asked to give back where that
    /// could be enough.
    pub(super) async fn trim(&self, place: &Place, wants: Option<(&[u8], u64)>) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.trim, place);
        let (lease, lacks) = wants.unwrap_or_default();
        call.arg(lease).arg(lacks);
        confirm(&mut call, place);
        self.ask(&call).await
    }

    /// Ends what is overdue, and says what is to be reported; `now`: whatever was reported when.
    pub(super) async fn tick(&self, place: &Place, now: bool) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.tick, place);
        if now {
            call.arg(0).arg(0);
        } else {
            call.arg(millis(self.options.tick / 2)).arg(millis(self.options.life / 4));
        }
        confirm(&mut call, place);
        self.ask(&call).await
    }

    /// Tells what PostgreSQL said to a report: that the pool lives on, or not; and what is used, where that is known.
    pub(super) async fn told(
        &self,
        place: &Place,
        order: &Order,
        is_over: bool,
        used: Option<u64>,
    ) -> Result<Answer, Missed> {
        let mut call = self.begin(&self.scripts.told, place);
        call.arg(order.pool.to_string()).arg(if is_over { "over" } else { "kept" });
        call.arg(used.map_or("-1".to_owned(), |used| used.to_string())).arg(order.spent);
        self.ask(&call).await
    }

    pub(super) async fn peek(&self, place: &Place) -> Result<Answer, Missed> {
        self.ask(&self.begin(&self.scripts.peek, place)).await
    }

    fn begin<'a>(&self, script: &'a Script, place: &Place) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&place.key).arg(millis(self.options.life));
        call
    }

    /// Asks, and asks once more when the answer was lost: no question does more by being asked twice.
    async fn ask(&self, call: &ScriptInvocation<'_>) -> Result<Answer, Missed> {
        let answered = match self.link.run(call).await {
            Err(Missed::Unknown(_)) => {
                add(&self.totals.unanswered, 1);
                // What was not sent this time may have been done the first.
                self.link.run(call).await.map_err(|missed| match missed {
                    Missed::NotSent => Missed::Unknown(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
                    unknown @ Missed::Unknown(_) => unknown,
                })
            }
            answered => answered,
        };
        let words = answered.inspect_err(|missed| {
            add(if missed.is_unknown() { &self.totals.unanswered } else { &self.totals.unasked }, 1);
            tracing::debug!(target: "saas.entitlements.lease.redis", ?missed, "Redis did not answer");
        })?;
        Ok(self.read(&words))
    }

    fn read(&self, words: &[String]) -> Answer {
        let counted = |word: &str| -> Option<&AtomicU64> {
            match word {
                "foreign" => Some(&self.totals.unreadable),
                "rewound" => Some(&self.totals.rewound),
                _ => None,
            }
        };
        let [outcome, one, two, three, orders @ ..] = words else {
            return Answer { outcome: String::new(), words: Default::default(), orders: Vec::new() };
        };
        if let Some(total) = counted(outcome).or_else(|| counted(three)) {
            add(total, 1);
        }
        let orders = orders.chunks_exact(5).filter_map(|order| {
            let number = |at: usize| order.get(at).and_then(|word| word.parse::<u64>().ok());
            let pool = order.first().and_then(|word| word.parse().ok())?;
            Some(Order { pool, number: number(1)?, spent: number(2)?, keep: number(3), ending: number(4)? == 1 })
        });
        let words = [one.clone(), two.clone(), three.clone()];
        Answer { outcome: outcome.clone(), words, orders: orders.collect() }
    }
}

/// How leases and questions are named in Redis: Lua spends time on each byte of a name.
pub(super) fn bytes(token: LeaseToken) -> [u8; 16] {
    token.as_uuid().into_bytes()
}

/// Passes which borrows were answered: what they have counted is certain.
fn confirm(call: &mut ScriptInvocation<'_>, place: &Place) {
    for (lease, number) in place.answers() {
        call.arg(&bytes(lease)).arg(number);
    }
}
