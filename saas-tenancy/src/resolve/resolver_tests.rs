use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::resolve::Claims;

const ID: &str = "018f2d5e-0000-7000-8000-000000000001";

fn rules(resolver: Resolver) -> Rules {
    resolver.check().unwrap()
}

/// The names under a resolver, as text; `-` for unknown and `!` for a bad host.
fn read(rules: &Rules, path: &str, headers: &[(&str, &str)]) -> String {
    shown(rules.read(&RequestView::new(path, &headers)))
}

fn shown(names: Result<Vec<Name>, ResolveError>) -> String {
    match names {
        Ok(names) => names
            .iter()
            .map(|name| match name {
                Name::Id(id) => format!("id {id}"),
                Name::Slug(slug) => format!("slug {slug}"),
                Name::Domain(domain) => format!("domain {domain}"),
            })
            .collect::<Vec<_>>()
            .join(", "),
        Err(ResolveError::Unknown) => "-".to_owned(),
        Err(ResolveError::BadHost(_)) => "!".to_owned(),
        Err(other) => unreachable!("{other}"),
    }
}

#[test]
fn a_subdomain_names_a_slug_and_the_vendors_own_hosts_nobody() {
    let rules = rules(Resolver::subdomain("example.com").with_reserved(["Shop"]));
    for (host, names) in [
        ("acme.example.com", "slug acme"),
        ("ACME.Example.com.:8443", "slug acme"),
        ("example.com", "-"),
        ("www.example.com", "-"),
        ("api.example.com", "-"),
        ("shop.example.com", "-"),
        ("a.acme.example.com", "-"),
        ("acme.example.org", "-"),
        ("acmeexample.com", "-"),
        ("xn--acme-xyz.example.com", "-"),
        ("127.0.0.1", "-"),
        ("acme_.example.com", "!"),
        ("acme.example.com, evil.example", "!"),
        ("user@acme.example.com", "!"),
        ("", "!"),
    ] {
        assert_eq!(read(&rules, "/", &[("host", host)]), names, "{host}");
    }
    assert_eq!(read(&rules, "/", &[]), "!");
    assert_eq!(read(&rules, "/", &[("host", "acme.example.com"), ("Host", "acme.example.com")]), "!");
}

#[test]
fn a_reserved_subdomain_leaves_the_word_to_another_source_and_a_nested_one_does_not() {
    let rules = rules(Resolver::subdomain("example.com").or(Resolver::header("X-Tenant")));
    let by_header = |host| read(&rules, "/", &[("host", host), ("x-tenant", "acme")]);
    for host in ["example.com", "www.example.com", "elsewhere.net"] {
        assert_eq!(by_header(host), "slug acme", "{host}");
    }
    for host in ["a.b.example.com", "-.example.com", "ab.example.com"] {
        assert!(["-", "!"].contains(&by_header(host).as_str()), "{host}");
    }
    assert_eq!(by_header("acme.example.com"), "slug acme", "the same name twice is one");
    assert_eq!(by_header("globex.example.com"), "slug globex, slug acme", "two names are looked up, and must agree");
}

#[test]
fn header_and_path_take_a_slug_or_an_id_in_its_usual_form() {
    let rules = rules(Resolver::header("x-tenant").or(Resolver::path("/t/{tenant}")));
    let id = format!("id {ID}");
    for (text, names) in [
        ("acme", "slug acme"),
        (ID, id.as_str()),
        (&ID.to_uppercase(), &id),
        (&ID.replace('-', ""), "-"),
        (&format!("{{{ID}}}"), "-"),
        (&format!("urn:uuid:{ID}"), "-"),
        ("Acme", "-"),
        ("admin", "-"),
        (" acme", "-"),
        ("acme,globex", "-"),
        ("", "-"),
        ("%61cme", "-"),
    ] {
        assert_eq!(read(&rules, "/", &[("x-tenant", text)]), names, "header {text}");
        for path in [format!("/t/{text}"), format!("/t/{text}/projects")] {
            assert_eq!(read(&rules, &path, &[]), names, "{path}");
        }
    }
    assert_eq!(read(&rules, "/", &[("x-tenant", "acme"), ("x-tenant", "acme")]), "-");
    for path in ["/", "/t", "/T/acme", "//t/acme", "/x/t/acme"] {
        assert_eq!(read(&rules, path, &[("x-tenant", "globex")]), "slug globex", "{path} names nobody");
    }
    assert_eq!(read(&rules, "/t//acme", &[("x-tenant", "acme")]), "-");
}

#[test]
fn any_other_host_is_a_domain_that_must_be_known() {
    let resolver = Resolver::subdomain("example.com").or(Resolver::custom_domain()).with_own_host("localhost");
    let rules = rules(resolver.or(Resolver::header("x-tenant")));
    for (host, names) in [
        ("app.customer.com", "domain app.customer.com, slug acme"),
        ("acme.example.com", "slug acme"),
        ("example.com", "slug acme"),
        ("localhost:3000", "slug acme"),
        ("127.0.0.1:3000", "slug acme"),
        ("intranet", "-"),
        ("printer.local", "-"),
    ] {
        assert_eq!(read(&rules, "/", &[("host", host), ("x-tenant", "acme")]), names, "{host}");
    }
}

#[test]
fn a_forwarded_host_counts_only_where_it_is_trusted() {
    let headers: &[(&str, &str)] = &[("host", "acme.example.com"), ("x-forwarded-host", "globex.example.com")];
    let plain = rules(Resolver::subdomain("example.com"));
    assert_eq!(read(&plain, "/", headers), "slug acme");
    let trusting = rules(Resolver::subdomain("example.com").trusting_forwarded_host());
    assert_eq!(read(&trusting, "/", headers), "slug globex");
    assert_eq!(read(&trusting, "/", &[("host", "acme.example.com")]), "slug acme");
    for forwarded in ["globex.example.com, acme.example.com", ""] {
        assert_eq!(read(&trusting, "/", &[("host", "acme.example.com"), ("x-forwarded-host", forwarded)]), "!");
    }
}

#[test]
fn request_line_and_host_header_must_name_the_same_host() {
    let rules = rules(Resolver::subdomain("example.com"));
    let with = |authority, headers: &[(&str, &str)]| {
        shown(rules.read(&RequestView::new("/", &headers).with_authority(Some(authority))))
    };
    assert_eq!(with("acme.example.com", &[]), "slug acme");
    assert_eq!(with("ACME.example.com:443", &[("host", "acme.example.com")]), "slug acme");
    assert_eq!(with("acme.example.com", &[("host", "globex.example.com")]), "!");
    assert_eq!(with("user:pw@acme.example.com", &[]), "!");
}

#[test]
fn a_claim_speaks_only_when_the_adopter_verified_it() {
    let rules = rules(Resolver::claim("tenant").or(Resolver::path("/t/{tenant}")));
    let Value::Object(claims) = json!({ "tenant": ID, "number": 7 }) else { unreachable!("an object") };
    let claims = Claims(Arc::new(claims));
    let headers: &[(&str, &str)] = &[];
    let with = |path, claims| shown(rules.read(&RequestView::new(path, &headers).with_claims(claims)));
    assert_eq!(with("/", Some(&claims)), format!("id {ID}"));
    assert_eq!(with("/", None), "-");
    assert_eq!(with("/t/acme", Some(&claims)), format!("id {ID}, slug acme"));
    assert_eq!(with("/", Some(&Claims(Arc::new(Map::new())))), "-");
}

#[test]
fn what_is_wrong_with_a_resolver_is_said() {
    for (resolver, what) in [
        (Resolver::subdomain("*.example.com"), "base domain"),
        (Resolver::subdomain("127.0.0.1"), "base domain"),
        (Resolver::subdomain("example.com:443"), "base domain"),
        (Resolver::path("/t/"), "path pattern"),
        (Resolver::path("t/{tenant}"), "path pattern"),
        (Resolver::path("/t/x-{tenant}"), "path pattern"),
        (Resolver::path("/{org}/{tenant}"), "path pattern"),
        (Resolver::header("x tenant"), "header name"),
        (Resolver::custom_domain().with_own_host("http://localhost"), "host"),
        ((0..8).fold(Resolver::custom_domain(), |all, _| all.or(Resolver::custom_domain())), "resolver"),
    ] {
        assert_eq!(resolver.check().unwrap_err().what(), what);
    }
}

proptest! {
    #[test]
    fn no_request_makes_reading_panic_or_yields_more_names_than_sources(
        path in ".{0,40}", host in ".{0,40}", tenant in "\\PC{0,40}", forwarded in proptest::option::of(".{0,20}"),
    ) {
        let rules = rules(
            Resolver::subdomain("example.com")
                .or(Resolver::custom_domain())
                .or(Resolver::path("/{tenant}"))
                .or(Resolver::header("x-tenant"))
                .trusting_forwarded_host(),
        );
        let mut headers = vec![("host", host.as_str()), ("x-tenant", &tenant)];
        headers.extend(forwarded.iter().map(|host| ("x-forwarded-host", host.as_str())));
        if let Ok(names) = rules.read(&RequestView::new(&path, &headers.as_slice())) {
            prop_assert!((1..=4).contains(&names.len()));
        }
    }
}
