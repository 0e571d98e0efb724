//! Rows of one person inside a tenant: nobody else sees them, and nobody at all sees any.

use saas_core::{CoreError, SystemClock, UserId};

use super::{
    report::Attack,
    stage::{Stage, script},
};

impl Stage {
    /// Looks at A's own rows as a member whose they are not, as a role that is not listed, and as nobody.
    pub(super) async fn attack_members(&mut self) -> Result<(), CoreError> {
        let stranger = UserId::mint(&SystemClock);
        for name in self.catalogue.row_fences.clone() {
            for member in
                [String::new(), format!("{stranger} "), format!("{stranger} saas_probe"), " saas_probe".to_owned()]
            {
                let who = self.as_a();
                let question = format!("set local saas.member = '{member}'; select count(*)::text from {name}");
                if let Ok(answer) = self.ask(who, &question).await?
                    && answer.first().is_some_and(|rows| rows != "0")
                {
                    let evidence = "rows of other members are visible";
                    self.report.leak(&name, Attack::Member, script(who, &question), evidence);
                }
            }
        }
        Ok(())
    }
}
