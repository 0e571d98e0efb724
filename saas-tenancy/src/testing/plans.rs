//! Statements that a session prepared for one tenant and runs for the next.

use saas_core::CoreError;

use super::{
    catalogue::Kind,
    questions::contents,
    report::Attack,
    session::Who,
    stage::{Stage, script},
};

/// After five runs a server that chooses itself may keep one plan.
const RUNS: usize = 6;

impl Stage {
    pub(super) async fn attack_prepared_statements(&mut self) -> Result<(), CoreError> {
        let (a, b) = (self.as_a(), Who::Tenant(self.seeds.b));
        for relation in self.relations(|r| r.kind != Kind::Sequence && r.audience.is_none() && r.is_reachable) {
            let Some(question) = contents(&relation) else { continue };
            let Ok(honest) = self.ask(a, &question).await? else { continue };
            for mode in ["auto", "force_generic_plan"] {
                self.report.probes += 1;
                self.app.must(&format!("set plan_cache_mode = {mode}")).await?;
                let as_b = script(b, &format!("prepare probe as {question}; {}", ["execute probe"; RUNS].join("; ")));
                let prepared = self.app.step(&format!("{as_b}; commit")).await?;
                if prepared.is_err() {
                    self.app.rollback().await?;
                    continue;
                }
                for who in [a, Who::Nobody] {
                    let expected = if who == a { Ok(honest.clone()) } else { self.ask(who, &question).await? };
                    let answer = self.ask(who, "execute probe").await?;
                    if let (Ok(expected), Ok(answer)) = (expected, answer)
                        && answer != expected
                    {
                        let (answer, expected) = (answer.join(", "), expected.join(", "));
                        let evidence = format!(
                            "prepared for B, the statement answers {answer} here instead of {expected} ({mode})"
                        );
                        let statement = format!("{as_b}; commit; {}", script(who, "execute probe"));
                        self.report.leak(&relation.name, Attack::PreparedStatement, statement, evidence);
                    }
                }
                self.app.must("deallocate all; reset plan_cache_mode").await?;
            }
        }
        Ok(())
    }
}
