//! Looks through the database that `DATABASE_URL` names for every known way around the fence.
//!
//! ```sh
//! DATABASE_URL=postgres://saas_app@localhost/app cargo run -p doctor            # for people
//! DATABASE_URL=postgres://saas_app@localhost/app cargo run -p doctor -- --json  # for machines: an array of findings
//! ```
//! Exit code 0: nothing found; 1: something was; 2: it could not look. It only reads the catalogue, so any login that may
//! use the schema `saas` will do. For a server that asks for TLS, turn one of sqlx's TLS features on.

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use saas_core::doctor::{self, Finding};
use sqlx::postgres::PgPoolOptions;

/// How long a server may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(5);
const USAGE: &str = "usage: DATABASE_URL=postgres://user@host/database doctor [--json]";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            // Nobody is left to tell when this fails too.
            drop(writeln!(io::stderr(), "doctor: {error}{cause}"));
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<Vec<Finding>, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let is_json = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--json"] => true,
        _ => return Err(USAGE.into()),
    };
    let url = env::var("DATABASE_URL").map_err(|_| format!("DATABASE_URL is not set; {USAGE}"))?;
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect(&url).await?;
    let findings = doctor::examine(&pool).await?;
    pool.close().await;
    let mut output = io::stdout();
    if is_json {
        writeln!(output, "{}", serde_json::to_string_pretty(&findings)?)?;
    } else {
        for finding in &findings {
            writeln!(output, "{finding}")?;
        }
        writeln!(output, "{}", summary(findings.len()))?;
    }
    Ok(findings)
}

fn summary(findings: usize) -> String {
    match findings {
        0 => "no known way around the fence is open".to_owned(),
        1 => "1 finding; read its mend before you run it".to_owned(),
        many => format!("{many} findings; read a mend before you run it"),
    }
}
