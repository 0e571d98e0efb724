//! All that is logged through `tracing` while tests run, at the finest level and by whatever library, is looked at as it is said:
//! no key, no signing secret and nobody's address may be in it.

use std::{
    env,
    fmt::{self, Write as _},
    io::{self, Write as _},
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// Set to anything, every process that starts a [`TestDatabase`](super::TestDatabase) listens.
const ASKED: &str = "SAAS_TEST_LEAKS";
/// How keys and signing secrets begin. A word for one of them, without a key behind it, is none.
const KEYS: [&str; 6] = ["whsec_", "sk_test_", "sk_live_", "rk_test_", "rk_live_", "Bearer "];
/// From how many characters on something behind such a beginning is taken for a key.
const KEY_LENGTH: usize = 8;

static ALSO: OnceLock<&[&str]> = OnceLock::new();
static HEARD: AtomicU64 = AtomicU64::new(0);

/// Listens to all that this process logs through `tracing` from here on, and aborts it at the first key, signing secret or mail address, or part of
/// `secrets`. Only the first call's secrets count. A thread with a subscriber of its own is not heard meanwhile.
///
/// # Panics
/// When the process has a global subscriber already.
#[expect(clippy::panic, reason = "a test program that cannot listen fails")]
pub fn listen(secrets: &'static [&'static str]) {
    ALSO.get_or_init(|| {
        if let Err(why) = tracing::subscriber::set_global_default(Ear::default()) {
            panic!("nothing can be listened to: {why}")
        }
        secrets
    });
}

/// How many lines and spans were listened to.
#[must_use]
pub fn heard() -> u64 {
    HEARD.load(Ordering::Relaxed)
}

/// Listens where `SAAS_TEST_LEAKS` is set, as `./dev test` does. For programs that start no test database themselves.
///
/// # Panics
/// When the process has a global subscriber already.
pub fn listen_if_asked() {
    if env::var_os(ASKED).is_some() {
        listen(&[]);
    }
}

/// The first key, signing secret or mail address in `text`, or part of what [`listen`] was told.
#[must_use]
pub fn leak(text: &str) -> Option<&str> {
    let also = ALSO.get().copied().unwrap_or_default();
    also.iter().copied().find(|secret| text.contains(secret)).or_else(|| key(text)).or_else(|| address(text))
}

fn key(text: &str) -> Option<&str> {
    let is_key = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./+=".contains(byte);
    KEYS.into_iter().flat_map(|begins| text.match_indices(begins)).find_map(|(at, begins)| {
        let rest = at + begins.len();
        let length = text.as_bytes()[rest..].iter().take_while(|byte| is_key(byte)).count();
        (length >= KEY_LENGTH).then(|| &text[at..rest + length])
    })
}

/// A mail address, unless it is surely nobody's: `.invalid` is reserved by RFC 2606.
fn address(text: &str) -> Option<&str> {
    let is_local = |byte: &u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(byte);
    let is_domain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-".contains(byte);
    text.match_indices('@').map(|(at, _)| at).find_map(|at| {
        let bytes = text.as_bytes();
        let begin = at - bytes[..at].iter().rev().take_while(|byte| is_local(byte)).count();
        let end = at + 1 + bytes[at + 1..].iter().take_while(|byte| is_domain(byte)).count();
        let domain = text[at + 1..end].trim_end_matches('.');
        let top = domain.rsplit_once('.').map_or("", |(_, top)| top);
        let is_top = top.len() >= 2 && top.bytes().all(|byte| byte.is_ascii_alphabetic()) && top != "invalid";
        let is_address = begin < at && is_top;
        is_address.then(|| &text[begin..end])
    })
}

/// Writes the fields of a line or a span as text.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(self.0, " {field}={}", error_chain(value));
    }
}

/// An error as `Display`, as `Debug`, and so on through its causes.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
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
    fn hear(metadata: Option<&Metadata<'_>>, write: impl FnOnce(&mut Fields<'_>)) {
        let mut text = metadata.map_or_else(String::new, |from| format!("{} {}", from.target(), from.name()));
        write(&mut Fields(&mut text));
        HEARD.fetch_add(1, Ordering::Relaxed);
        if let Some(leak) = leak(&text) {
            // Whoever said it may be a task whose panic nobody sees; and what a test prints by macro ends with the process.
            let _ = writeln!(io::stderr(), "{leak:?} is seen in a log: {text}");
            process::abort();
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

#[cfg(test)]
mod tests {
    use std::{env, os::unix::process::ExitStatusExt as _, process::Command};

    use super::{leak, listen};

    const SAYS: &str = "SAAS_TEST_SAYS";

    /// Runs itself again as the process that says it.
    #[test]
    fn a_key_in_a_log_ends_the_process_and_is_named() {
        if let Ok(said) = env::var(SAYS) {
            listen(&["a-part-of-it"]);
            tracing::trace!(said, "a line of some library");
            return;
        }
        let run = |said: &str| {
            let mut itself = Command::new(env::current_exe().unwrap());
            itself.args(["--exact", "testing::leaks::tests::a_key_in_a_log_ends_the_process_and_is_named"]);
            itself.env(SAYS, said).output().unwrap()
        };
        for said in ["sk_test_0123456789", "ada@lovelace.example", "not-a-part-of-it-but"] {
            let ended = run(said);
            assert_eq!(ended.status.signal(), Some(6), "{said}: {ended:?}");
            assert!(String::from_utf8_lossy(&ended.stderr).contains("is seen in a log"), "{said}: {ended:?}");
        }
        assert!(run("nothing of the kind").status.success());
    }

    #[test]
    fn what_must_not_be_said_is_recognised() {
        for said in [
            "key sk_test_0123456789",
            "whsec_rolled_1",
            "Authorization: Bearer abc.def-ghi",
            "to ada@lovelace.example, now",
            "<a.b+c@mail.x-y.org>.",
        ] {
            assert!(leak(said).is_some(), "{said}");
        }
        for said in [
            "plan pro@1",
            "postgres://saas_app@localhost/app",
            "a@127.0.0.1",
            "@example.com",
            "10 @ 3.50",
            "nobody@example.invalid",
            "a secret begins with whsec_",
            "sk_test_ or sk_live_",
        ] {
            assert_eq!(leak(said), None, "{said}");
        }
    }
}
