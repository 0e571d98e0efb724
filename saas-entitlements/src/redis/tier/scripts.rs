//! What is asked of Redis: each question one script, so that nothing is half-done.
//!
//! All keys of one script have the tenant as their hash tag, and so one slot of a cluster.

use std::time::Duration;

use chrono::{DateTime, Utc};
use redis::{Script, ScriptInvocation};
use saas_core::{IdempotencyKey, LeaseToken, MeterKey, TenantId, UsageEventId, plan::Window};

use super::{
    super::{
        link::{Link, Missed},
        words::{millis, rule},
    },
    TierOptions,
    uses::Use,
};
use crate::Draw;

/// Settled uses leave at once; this is for those that nobody comes for.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);
/// The most uses of a window that wait to be settled.
pub(super) const MOST_PENDING: usize = 10_000;
/// How long PostgreSQL may take to lend the slice that a place is reserved for.
const OPEN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Scripts {
    take: Script,
    open: Script,
    put: Script,
    collect: Script,
    done: Script,
    remember: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("../prelude.lua"), include_str!("slice.lua"), include_str!($file)))
    };
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            take: script!("take.lua"),
            open: script!("open.lua"),
            put: script!("put.lua"),
            collect: script!("collect.lua"),
            done: script!("done.lua"),
            remember: script!("remember.lua"),
        }
    }
}

/// The names of a window's keys.
#[derive(Debug, Clone)]
pub(super) struct Names {
    slice: String,
    pending: String,
}

impl Names {
    pub(super) fn new(
        options: &TierOptions,
        tenant: TenantId,
        counter: &MeterKey,
        window: Window,
        start: DateTime<Utc>,
    ) -> Self {
        let name =
            |what| format!("{}:{{{tenant}}}:{what}:{counter}:{window}:{}", options.prefix, start.timestamp_micros());
        Self { slice: name("slice"), pending: name("pending") }
    }
}

fn key_name(options: &TierOptions, tenant: TenantId, meter: &MeterKey, key: &IdempotencyKey) -> String {
    format!("{}:{{{tenant}}}:key:{meter}:{key}", options.prefix)
}

/// What became of a use.
#[derive(Debug)]
pub(super) enum Taken {
    /// It was admitted from this slice; so much of the slice, and used before it, was taken before.
    Admitted { token: LeaseToken, before: u64 },
    /// Its key is known, with this amount, by the use of this id.
    Known { amount: String, id: String },
    /// There is no slice to take it from: why.
    Unserved(Unserved),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unserved {
    /// None, or too little of it, or of another rule.
    Empty,
    /// Of a history of Redis that is over.
    Rewound,
    /// What is there is nobody's of ours.
    Foreign,
}

/// What ending a slice gave back.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// The slice that was ended, and what of it nobody can take any more.
    pub(super) ended: Option<(LeaseToken, u64)>,
    /// Whether the place that was reserved is given up: the slice cannot come into it any more.
    pub(super) unopened: bool,
    /// Uses that are not settled.
    pub(super) uses: Vec<(LeaseToken, Use)>,
    /// Values that are not ours.
    pub(super) foreign: u64,
    /// Whether a slice was found whose history is over.
    pub(super) rewound: bool,
}

/// Which slice to end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    /// None: only look.
    None,
    /// Whichever there is.
    Any,
    /// That one.
    Of(LeaseToken),
    /// The one that may have come into the place of this nonce, or the place.
    Doubtful { token: LeaseToken, nonce: LeaseToken },
}

/// The questions, on one link.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) link: Link,
    scripts: Scripts,
    options: TierOptions,
}

impl Shelf {
    pub(super) fn new(link: Link, options: TierOptions) -> Self {
        Self { link, scripts: Scripts::new(), options }
    }

    pub(super) async fn take(&self, tenant: TenantId, names: &Names, draw: &Draw, used: &Use) -> Result<Taken, Missed> {
        let key = key_name(&self.options, tenant, &draw.meter, &draw.key);
        let mut call = self.scripts.take.prepare_invoke();
        call.key(&names.slice).key(&names.pending).key(key);
        call.arg(rule(draw)).arg(draw.units).arg(used.id.to_string()).arg(draw.amount).arg(used.to_json());
        call.arg(millis(self.options.remembered)).arg(millis(KEEP)).arg(MOST_PENDING);
        let answer = self.link.run(&call).await?;
        let mut words = answer.iter().map(String::as_str);
        let mut word = || words.next().unwrap_or_default();
        Ok(match word() {
            "taken" => {
                let token = word().parse();
                let (base, taken) = (word().parse::<u64>(), word().parse::<u64>());
                match (token, base, taken) {
                    (Ok(token), Ok(base), Ok(taken)) => Taken::Admitted { token, before: base.saturating_add(taken) },
                    // The checksum holds and the content does not: another version wrote it.
                    _ => Taken::Unserved(Unserved::Foreign),
                }
            }
            "known" => Taken::Known { amount: word().to_owned(), id: word().to_owned() },
            "foreign" => Taken::Unserved(Unserved::Foreign),
            "rewound" => Taken::Unserved(Unserved::Rewound),
            _ => Taken::Unserved(Unserved::Empty),
        })
    }

    /// Reserves the place of a slice; `false`: somebody else fills it, or has.
    pub(super) async fn open(&self, names: &Names, nonce: LeaseToken) -> Result<bool, Missed> {
        let mut call = self.scripts.open.prepare_invoke();
        call.key(&names.slice).arg(nonce.to_string()).arg(millis(OPEN));
        self.is(&call, "open").await
    }

    /// Fills the reserved place, once however often it is asked; `false`: it is not reserved any more.
    pub(super) async fn put(
        &self,
        names: &Names,
        nonce: LeaseToken,
        token: LeaseToken,
        rule: &str,
        (lent, base): (u64, u64),
    ) -> Result<bool, Missed> {
        let mut call = self.scripts.put.prepare_invoke();
        call.key(&names.slice).arg(nonce.to_string()).arg(token.to_string()).arg(rule);
        call.arg(lent).arg(base).arg(millis(self.options.life_in_redis()));
        self.is(&call, "put").await
    }

    /// Ends a slice, and reads what is not settled.
    pub(super) async fn collect(&self, names: &Names, ending: Ending) -> Result<Collected, Missed> {
        let (which, nonce) = match ending {
            Ending::None => ("peek".to_owned(), String::new()),
            Ending::Any => ("end".to_owned(), String::new()),
            Ending::Of(token) => (token.to_string(), String::new()),
            Ending::Doubtful { token, nonce } => (token.to_string(), nonce.to_string()),
        };
        let mut call = self.scripts.collect.prepare_invoke();
        call.key(&names.slice).key(&names.pending).arg(which).arg(nonce).arg(MOST_PENDING);
        let answer = self.link.run(&call).await?;
        let [outcome, token, left, foreign, uses @ ..] = answer.as_slice() else { return Ok(Collected::default()) };
        let mut collected = Collected {
            unopened: outcome == "unopened",
            rewound: outcome == "rewound",
            foreign: foreign.parse().unwrap_or(0) + u64::from(outcome == "foreign"),
            ..Collected::default()
        };
        if outcome == "ended"
            && let (Ok(token), Ok(left)) = (token.parse(), left.parse())
        {
            collected.ended = Some((token, left));
        }
        for use_ in uses.chunks_exact(3) {
            match (use_[0].parse(), Use::from_json(&use_[2])) {
                (Ok(token), Some(read)) if read.id.to_string() == use_[1] => collected.uses.push((token, read)),
                _ => collected.foreign += 1,
            }
        }
        Ok(collected)
    }

    /// Forgets settled uses, and lets the slice that they are of live on.
    pub(super) async fn done(&self, names: &Names, token: LeaseToken, ids: &[UsageEventId]) -> Result<(), Missed> {
        let mut call = self.scripts.done.prepare_invoke();
        call.key(&names.slice).key(&names.pending);
        call.arg(token.to_string()).arg(millis(self.options.life_in_redis()));
        for id in ids {
            call.arg(id.to_string());
        }
        self.is(&call, "done").await.map(drop)
    }

    /// Keeps the key of what PostgreSQL counted.
    pub(super) async fn remember(
        &self,
        tenant: TenantId,
        meter: &MeterKey,
        key: &IdempotencyKey,
        amount: &str,
    ) -> Result<(), Missed> {
        let mut call = self.scripts.remember.prepare_invoke();
        call.key(key_name(&self.options, tenant, meter, key)).arg(amount).arg(millis(self.options.remembered));
        self.is(&call, "done").await.map(drop)
    }

    async fn is(&self, call: &ScriptInvocation<'_>, outcome: &str) -> Result<bool, Missed> {
        Ok(self.link.run(call).await?.first().is_some_and(|word| word == outcome))
    }
}
