-- Usage goes with its tenant. Nothing else may delete it: these tables are only added to.
grant delete on saas.usage_event, saas.usage_counter, saas.usage_crossing to saas_system;
