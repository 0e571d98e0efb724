//! Runs a development PostgreSQL until its standard input ends, and prints the superuser's URL on one line.
//!
//! ```sh
//! cargo run -p saas-core --example dev_postgres --features testing
//! ```
//! For `./dev test`, which shares one server among all test binaries, and for a look with `psql`.

use std::io::{self, Read as _, Write as _};

use saas_core::testing::{DevServer, Durability};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = DevServer::start_own(Durability::None)?;
    let mut output = io::stdout();
    writeln!(output, "{}", server.admin_url())?;
    output.flush()?;
    // Whatever arrives is of no interest; the end is.
    let mut ignored = [0; 512];
    while io::stdin().read(&mut ignored)? > 0 {}
    Ok(())
}
