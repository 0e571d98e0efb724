//! The pages that sessions lead to, as plain forms.

use std::fmt::Write as _;

use super::{
    checkout,
    engine::Engine,
    simulator::StripeSimulator,
    world::{SimInvoice, SimSubscription},
};
use crate::object::ObjectKind;

/// What a browser is shown, or where it is sent.
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    pub(super) html: String,
}

impl Page {
    fn shown(title: &str, body: &str) -> Self {
        let html = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>{0}</title><body style=\"font:1rem/1.5 sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem\">\
             <h1>{0}</h1>{body}</body></html>",
            escape(title)
        );
        Self { status: 200, location: None, html }
    }

    fn sent(to: String) -> Self {
        Self { status: 303, location: Some(to), html: String::new() }
    }

    fn absent() -> Self {
        Self { status: 404, ..Self::shown("Not found", "<p>There is no such page, or it has expired.</p>") }
    }
}

/// Shows a page, or does what its form asks for.
pub(super) fn handle(simulator: &StripeSimulator, method: &str, path: &str, body: &[u8]) -> Page {
    let form = std::str::from_utf8(body).unwrap_or_default();
    let field = |name: &str| form.split('&').find_map(|pair| pair.strip_prefix(name)).unwrap_or_default().to_owned();
    let (wish, code) = (field("do="), field("code="));
    let acts = method == "POST";
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    simulator
        .act(|engine| match parts.as_slice() {
            ["pay", id] if acts => pay(engine, id, (&wish, &code)),
            ["pay", id] => checkout_page(engine, id),
            ["portal", id] if acts => manage(engine, id, &wish),
            ["portal", id] => portal_page(engine, id),
            ["invoice", id] if acts => settle(engine, id),
            ["invoice", id] | ["invoice", id, "pdf"] => invoice_page(engine, id),
            _ => None,
        })
        .unwrap_or_else(Page::absent)
}

fn checkout_page(engine: &Engine<'_>, id: &str) -> Option<Page> {
    let session = engine.world.sessions.get(id)?;
    let mut html = String::from("<ul>");
    for (price, quantity) in &session.lines {
        let of = engine.world.prices.get(price)?;
        let amount = money(of.pricing.amount(quantity.unwrap_or(1)), &of.currency);
        let _ =
            write!(html, "<li>{} × {}: {amount} per {}", quantity.unwrap_or(1), escape(price), escape(&of.interval));
    }
    html.push_str("</ul>");
    match session.status {
        "open" => html.push_str(&form(
            if session.takes_codes { "<p><label>Promotion code <input name=code></label></p>" } else { "" },
            &[("pay", "Subscribe"), ("decline", "Subscribe with a card that is declined"), ("cancel", "Back")],
        )),
        status => drop(write!(html, "<p>This session is {status}.</p>")),
    }
    Some(Page::shown("Subscribe", &html))
}

fn pay(engine: &mut Engine<'_>, id: &str, (wish, code): (&str, &str)) -> Option<Page> {
    let session = engine.world.sessions.get(id)?.clone();
    match wish {
        "pay" if !code.is_empty() && engine.enter_code(id, code).is_none() => {
            Some(Page::shown("This code is not valid", "<p>Go back and try another one.</p>"))
        }
        "pay" => {
            checkout::complete(engine, id)?;
            Some(Page::sent(session.success_url.replace("{CHECKOUT_SESSION_ID}", id)))
        }
        "decline" => Some(Page::shown("Your card was declined", "<p>Try another one.</p>")),
        _ => Some(Page::sent(session.cancel_url)),
    }
}

fn portal_page(engine: &Engine<'_>, id: &str) -> Option<Page> {
    let portal = engine.world.portals.get(id)?;
    let mut html = String::new();
    for sub in mine(engine, &portal.customer) {
        let ends = if sub.cancel_at_period_end { ", ends with the period" } else { "" };
        let _ = write!(
            html,
            "<h2>{}</h2><p>{}{ends}, until {}</p>",
            escape(&sub.id),
            sub.status,
            sub.period.1.date_naive()
        );
        let wishes: [(&str, &str); 2] =
            [("cancel", "Cancel at the end of the period"), ("keep", "Keep the subscription")];
        html.push_str(&form("", &[wishes[usize::from(sub.cancel_at_period_end)]]));
    }
    html.push_str("<h2>Invoices</h2><ul>");
    for invoice in engine.world.invoices.values().filter(|invoice| invoice.customer == portal.customer).rev() {
        let amount = money(invoice.total(), &invoice.currency);
        let _ =
            write!(html, "<li><a href=\"/invoice/{0}\">{0}</a>: {amount}, {1}", escape(&invoice.id), invoice.status);
    }
    html.push_str("</ul><h2>Card</h2>");
    html.push_str(&form("", &[("good-card", "Use a card that works"), ("bad-card", "Use a card that is declined")]));
    let _ = write!(html, "<p><a href=\"{}\">Back</a></p>", escape(&portal.return_url));
    Some(Page::shown("Billing", &html))
}

fn mine<'a>(engine: &'a Engine<'_>, customer: &str) -> Vec<&'a SimSubscription> {
    let live = |sub: &&SimSubscription| sub.customer == customer && sub.ended_at.is_none();
    engine.world.subscriptions.values().filter(live).collect()
}

fn manage(engine: &mut Engine<'_>, id: &str, wish: &str) -> Option<Page> {
    let customer = engine.world.portals.get(id)?.customer.clone();
    match wish {
        "cancel" | "keep" => {
            let subscriptions: Vec<String> = mine(engine, &customer).into_iter().map(|sub| sub.id.clone()).collect();
            for subscription in subscriptions {
                engine.world.subscriptions.get_mut(&subscription)?.cancel_at_period_end = wish == "cancel";
                engine.emit("customer.subscription.updated", ObjectKind::Subscription, &subscription);
            }
        }
        "good-card" | "bad-card" => {
            let payer = engine.world.customers.get_mut(&customer)?;
            (payer.has_payment_method, payer.declines) = (true, wish == "bad-card");
            engine.emit("customer.updated", ObjectKind::Customer, &customer);
        }
        _ => return None,
    }
    Some(Page::sent(format!("/portal/{id}")))
}

fn invoice_page(engine: &Engine<'_>, id: &str) -> Option<Page> {
    let invoice: &SimInvoice = engine.world.invoices.get(id)?;
    let mut html = String::from("<ul>");
    for line in &invoice.lines {
        let what = if line.proration { "rest of the period, " } else { "" };
        let _ = write!(html, "<li>{what}{}: {}", escape(&line.price), money(line.amount, &invoice.currency));
    }
    let _ = write!(html, "</ul><p>{}: {} to pay</p>", invoice.status, money(invoice.due(), &invoice.currency));
    if invoice.status == "open" {
        html.push_str(&form("", &[("pay", "Pay")]));
    }
    Some(Page::shown("Invoice", &html))
}

fn settle(engine: &mut Engine<'_>, id: &str) -> Option<Page> {
    let customer = engine.world.invoices.get(id)?.customer.clone();
    let payer = engine.world.customers.get_mut(&customer)?;
    (payer.has_payment_method, payer.declines, payer.wants_confirmation) = (true, false, false);
    engine.charge(id);
    Some(Page::sent(format!("/invoice/{id}")))
}

fn form(inputs: &str, wishes: &[(&str, &str)]) -> String {
    let mut html = format!("<form method=post>{inputs}");
    for (wish, label) in wishes {
        let _ = write!(html, "<p><button name=do value=\"{wish}\">{}</button></p>", escape(label));
    }
    html + "</form>"
}

fn money(minor: i64, currency: &str) -> String {
    format!("{minor} minor units {}", escape(currency))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}
