//! All that is logged while these tests run, at the finest level and by whatever library, is looked at as it is said: no key, no
//! signing secret and nobody's address may be in it.

use std::{
    fmt::{self, Write as _},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use crate::shop::{OPERATOR, Shop};

/// What must not be seen, also in part: the keys and signing secrets of all tests.
pub(crate) const SECRETS: [&str; 6] =
    ["whsec_test", "whsec_rolled", "0123456789abcdef", "fedcba9876543210", "sk_test_", "Bearer"];

static HEARD: AtomicU64 = AtomicU64::new(0);

/// Listens to the whole process from here on. A test that has a subscriber of its own is not heard meanwhile.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Ear::default()).unwrap());
}

/// What a text must not have in it.
pub(crate) fn leak(text: &str) -> Option<&str> {
    SECRETS.into_iter().find(|secret| text.contains(secret)).or_else(|| address(text))
}

/// A mail address.
fn address(text: &str) -> Option<&str> {
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(&byte);
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    text.match_indices('@').map(|(at, _)| at).find_map(|at| {
        let bytes = text.as_bytes();
        let begin = at - bytes[..at].iter().rev().take_while(|byte| is_local(**byte)).count();
        let end = at + 1 + bytes[at + 1..].iter().take_while(|byte| is_domain(**byte)).count();
        let domain = text[at + 1..end].trim_end_matches('.');
        let top = domain.rsplit_once('.').map_or("", |(_, top)| top);
        let is_address = begin < at && top.len() >= 2 && top.bytes().all(|byte| byte.is_ascii_alphabetic());
        is_address.then(|| &text[begin..end])
    })
}

/// Writes fields as text.
pub(crate) struct Line<'a>(pub(crate) &'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(self.0, " {field}={}", chain(value));
    }
}

/// An error as `Display`, as `Debug`, and so on through its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} / {error:?}");
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, " <- {cause} / {cause:?}");
        next = cause.source();
    }
    text
}

#[derive(Debug, Default)]
struct Ear {
    spans: AtomicU64,
}

impl Ear {
    fn hear(metadata: Option<&Metadata<'_>>, write: impl FnOnce(&mut Line<'_>)) {
        let mut text = metadata.map_or_else(String::new, |from| format!("{} {}", from.target(), from.name()));
        write(&mut Line(&mut text));
        HEARD.fetch_add(1, Ordering::Relaxed);
        if let Some(leak) = leak(&text) {
            // Whoever said it may be a task whose panic nobody sees.
            eprintln!("{leak:?} is seen in a log: {text}");
            std::process::abort();
        }
    }
}

impl Subscriber for Ear {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        Self::hear(Some(span.metadata()), |line| span.record(line));
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        Self::hear(None, |line| values.record(line));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        Self::hear(Some(event.metadata()), |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn what_must_not_be_said_is_recognised() {
    for said in ["key sk_test_1", "to ada@lovelace.example, now", "<a.b+c@mail.x-y.org>.", "x 0123456789abcdef0 y"] {
        assert!(leak(said).is_some(), "{said}");
    }
    for said in ["plan pro@1", "postgres://saas_app@localhost/app", "a@127.0.0.1", "@example.com", "10 @ 3.50"] {
        assert_eq!(leak(said), None, "{said}");
    }
}

// W38, f-B25
#[tokio::test]
async fn what_the_tests_log_is_heard() {
    let before = HEARD.load(Ordering::Relaxed);
    let shop = Shop::open().await;
    let _ = shop.billing.inbox_health(&OPERATOR).await.unwrap();
    let (_, _) = shop.buyer("acme").await;
    shop.deliver_all().await;
    assert!(HEARD.load(Ordering::Relaxed) > before);
}
