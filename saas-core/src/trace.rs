//! What a trace says about a tenant: ids, never payloads.

use tracing::{Span, field};

use crate::{TenantContext, outbox::Job};

/// The span of one request or job of a tenant, with the fields `tenant`, `request`, `actor` and, where there is one,
/// `role`.
///
/// Instrument the work with it, and every event below carries the tenant:
/// ```
/// use saas_core::{Actor, RequestContext, SystemClock, TenantId, trace};
///
/// let ctx = RequestContext::new(TenantId::mint(&SystemClock), Actor::system("import"), &SystemClock);
/// trace::span(&ctx).in_scope(|| { /* whatever logs in here names the tenant */ });
/// ```
#[must_use]
pub fn span(ctx: &dyn TenantContext) -> Span {
    let span = tracing::info_span!(
        target: "saas.request",
        "saas.request",
        tenant = %ctx.tenant(),
        request = %ctx.request(),
        actor = %ctx.actor(),
        role = field::Empty,
    );
    if let Some(role) = ctx.role() {
        span.record("role", field::display(role));
    }
    span
}

/// The span around one try of a job, with the fields `tenant`, `job`, `topic` and `attempt`. The worker runs handlers in it.
#[must_use]
pub fn job_span(job: &Job) -> Span {
    tracing::info_span!(
        target: "saas.outbox",
        "saas.outbox.job",
        tenant = %job.tenant,
        job = %job.id,
        topic = %job.topic,
        attempt = job.attempt,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        fmt::Debug,
        sync::{Arc, Mutex},
    };

    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    use super::*;
    use crate::{Actor, RequestContext, RoleName, SystemClock, TenantId};

    /// Keeps the fields of the span that was opened last, and counts the events inside of it.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Recorder(pub(crate) Arc<Mutex<Recorded>>);

    #[derive(Debug, Default)]
    pub(crate) struct Recorded {
        pub(crate) fields: BTreeMap<String, String>,
        entered: usize,
        pub(crate) events_inside: usize,
    }

    impl Visit for Recorded {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.fields.insert(field.name().to_owned(), format!("{value:?}"));
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let mut recorded = self.0.lock().unwrap();
            recorded.fields.clear();
            span.record(&mut *recorded);
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, values: &Record<'_>) {
            values.record(&mut *self.0.lock().unwrap());
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            let mut recorded = self.0.lock().unwrap();
            recorded.events_inside += recorded.entered;
        }

        fn enter(&self, _: &Id) {
            self.0.lock().unwrap().entered += 1;
        }

        fn exit(&self, _: &Id) {
            self.0.lock().unwrap().entered -= 1;
        }
    }

    #[test]
    fn what_is_logged_for_a_request_stands_under_its_tenant() {
        let ctx = RequestContext::new(TenantId::mint(&SystemClock), Actor::system("import"), &SystemClock);
        let with_role = ctx.clone().with_role(RoleName::from_static("owner"));
        for (ctx, role) in [(&ctx, None), (&with_role, Some("owner"))] {
            let recorder = Recorder::default();
            tracing::subscriber::with_default(recorder.clone(), || {
                span(ctx).in_scope(|| tracing::info!("something happened"));
            });
            let recorded = recorder.0.lock().unwrap();
            assert_eq!(recorded.fields["tenant"], ctx.tenant().to_string());
            assert_eq!(recorded.fields["request"], ctx.request().to_string());
            assert_eq!(recorded.fields["actor"], "system:import");
            assert_eq!(recorded.fields.get("role").map(String::as_str), role);
            assert_eq!(recorded.events_inside, 1);
        }
    }
}
