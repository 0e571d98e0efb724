//! Rows on their way: out of one `COPY`, into another, never more than a chunk of them in memory.

use std::time::Instant;

use futures_util::StreamExt as _;
use saas_core::CoreError;

use super::{
    MoveError,
    report::{Listener, Phase, Progress},
    session::Session,
};

/// `COPY` sends a message per row; the target gets them in pieces of this many bytes.
const CHUNK: usize = 128 * 1024;
/// How often the listener hears of a long copy.
const REPORT_BYTES: u64 = 4 * 1024 * 1024;

/// What a copy carried.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// One stream of rows between two statements of `COPY`, whose identifiers come quoted from the catalogue.
#[derive(Debug)]
pub(super) struct Pipe<'a> {
    pub(super) table: &'a str,
    pub(super) out: String,
    pub(super) into: String,
}

impl Pipe<'_> {
    /// Carries all rows over. An error leaves both transactions failed.
    pub(super) async fn run(
        &self,
        source: &mut Session,
        target: &mut Session,
        phase: Phase,
        listener: Listener<'_>,
    ) -> Result<Carried, MoveError> {
        let refused =
            |error| MoveError::TargetRefused { table: self.table.to_owned(), cause: CoreError::from_database(error) };
        let begun = Instant::now();
        let mut rows = source.connection.copy_out_raw(&self.out).await.map_err(CoreError::from_database)?;
        let mut sink = target.connection.copy_in_raw(&self.into).await.map_err(refused)?;
        let mut chunk = Vec::with_capacity(CHUNK + CHUNK / 4);
        let (mut carried, mut told) = (Carried::default(), 0);
        while let Some(row) = rows.next().await {
            let row = row.map_err(CoreError::from_database)?;
            carried.rows += 1;
            carried.bytes += row.len() as u64;
            chunk.extend_from_slice(&row);
            if chunk.len() >= CHUNK {
                sink.send(chunk.as_slice()).await.map_err(refused)?;
                chunk.clear();
            }
            if carried.bytes - told >= REPORT_BYTES {
                told = carried.bytes;
                let bytes_per_second = carried.bytes as f64 / begun.elapsed().as_secs_f64().max(1e-9);
                let (rows, bytes) = (carried.rows, carried.bytes);
                listener(Progress { phase, table: self.table, rows, bytes, bytes_per_second });
            }
        }
        if !chunk.is_empty() {
            sink.send(chunk.as_slice()).await.map_err(refused)?;
        }
        carried.rows = sink.finish().await.map_err(refused)?;
        Ok(carried)
    }
}
