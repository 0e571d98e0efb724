-- What outlives an erased tenant: merchants must be able to show for years what was sold, to whom, for how much and what tax
-- was due (in the European Union up to ten years), and a disputed payment can come back after months. Stripe's objects are
-- that record; deliveries (saas.billing_receipt) belong to the system and end with their own retention.
select saas.retain('saas.billing_object', 'commercial and tax law: subscriptions, invoices and who paid them'),
       saas.retain('saas.billing_state', 'commercial and tax law: what was derived from them'),
       saas.retain('saas.billing_effect', 'a late delivery must not do again what was done');
