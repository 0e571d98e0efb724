//! The way to an address through the servers that an application configures.

use async_trait::async_trait;
use saas_core::CoreError;

use super::{Address, Endpoint, Endpoints};
use crate::placement::{Clusters, Database, Login, PlacementError, Site};

/// As the admin login of each cluster. What it connects to by default serves to drop a database of a tenant's own.
#[async_trait]
impl Endpoints for Clusters {
    async fn endpoint(&self, address: &Address) -> Result<Endpoint, CoreError> {
        let shared = Database { cluster: address.cluster.parse()?, name: None };
        let name = address.database.as_deref().map(str::parse).transpose()?;
        let own = Database { name, ..shared.clone() };
        let options = |database: &Database| self.options(database, Login::Admin).map_err(misconfigured);
        let endpoint = Endpoint::new(options(&own)?, address.schema.as_deref().unwrap_or("public"));
        Ok(if own.name.is_some() { endpoint.with_maintenance(options(&shared)?) } else { endpoint })
    }
}

/// Where the provisioner has made a place.
impl From<&Site> for Address {
    fn from(site: &Site) -> Self {
        let cluster = site.database.cluster.as_str();
        match (&site.database.name, &site.schema) {
            (Some(name), schema) => {
                Self { schema: schema.as_ref().map(ToString::to_string), ..Self::database(cluster, name.as_str()) }
            }
            (None, Some(schema)) => Self::schema(cluster, schema.as_str()),
            (None, None) => Self::pooled(cluster),
        }
    }
}

fn misconfigured(error: PlacementError) -> CoreError {
    match error {
        PlacementError::Core(error) => error,
        other => CoreError::Misconfigured {
            what: other.to_string(),
            remedy: "configure the cluster, with its admin login, in the process that moves tenants".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgConnectOptions;

    use super::*;
    use crate::placement::Cluster;

    #[tokio::test]
    async fn an_address_leads_to_its_cluster_and_an_unknown_one_is_named() {
        let login = |text: &str| text.parse::<PgConnectOptions>().unwrap();
        let cluster = Cluster::new(login("postgres://app@db/app"), login("postgres://system@db/app"))
            .with_admin(login("postgres://admin@db/postgres"));
        let clusters = Clusters::new(cluster);
        let own = clusters.endpoint(&Address::database("control", "acme")).await.unwrap();
        assert_eq!((own.login.get_database(), own.schema.as_str()), (Some("acme"), "public"));
        assert_eq!(own.maintenance.unwrap().get_database(), Some("app"), "never from the database that is dropped");
        let schema = clusters.endpoint(&Address::schema("control", "saas_t_1")).await.unwrap();
        assert_eq!((schema.login.get_database(), schema.schema.as_str()), (Some("app"), "saas_t_1"));
        assert!(schema.maintenance.is_none());
        let error = clusters.endpoint(&Address::pooled("mars")).await.unwrap_err();
        assert_eq!(error.code(), "misconfigured");
        assert!(error.to_string().contains("mars"), "{error}");
    }
}
