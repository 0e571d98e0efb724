//! Nothing gives way where nothing is wrong, and nothing is left untried.

use saas_tenancy::assert_isolated;

use crate::shop;

#[tokio::test]
async fn nothing_gives_way_where_tables_are_fenced() {
    let database = shop::start().await;
    let report = assert_isolated!(&database);
    assert!(report.probes > 500, "{report}");
}
